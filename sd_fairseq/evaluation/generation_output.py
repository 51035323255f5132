"""Reads what fairseq-generate printed: sources (S-), references (T-) and best hypotheses (D-) by example id.

The texts of the ROUGE rows of "Switchable Decision" (ICML 2024, section 4).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Dict, List, Sequence, Tuple

from sd_fairseq.errors import InputError
from sd_fairseq.user_files import numbered_lines


@dataclass(frozen=True)
class GenerationOutput:
    """The texts of one system.

    Args:
        hypotheses: id -> best hypothesis, detokenised; may be empty.
        references: id -> reference.
        sources: id -> source; empty where fairseq-generate printed none.
        lengths: id -> tokens of the best hypothesis, by its scores (P-); empty where none were printed.
    """

    hypotheses: Dict[int, str]
    references: Dict[int, str]
    sources: Dict[int, str] = field(default_factory=dict)
    lengths: Dict[int, int] = field(default_factory=dict)

    @property
    def ids(self) -> List[int]:
        """The example ids, ascending."""
        return sorted(self.hypotheses)


def read_generation(paths: Sequence[str]) -> GenerationOutput:
    """Reads one output, or the outputs of several shards.

    Args:
        paths: files with fairseq-generate's standard output, or its ``generate-<subset>.txt``.

    Raises:
        InputError: unreadable, no hypotheses, a hypothesis without reference or the reverse, an id that stands twice, a
            malformed line, a last line that breaks off.
    """
    merged = GenerationOutput({}, {}, {}, {})
    for path in paths:
        shard = _read_shard(path)
        both = sorted(set(merged.hypotheses) & set(shard.hypotheses))
        if both:
            raise InputError(f"{path}: example {both[0]} stands in another shard too ({len(both)} such examples)")
        merged.hypotheses.update(shard.hypotheses)
        merged.references.update(shard.references)
        merged.sources.update(shard.sources)
        merged.lengths.update(shard.lengths)
    return merged


def _read_shard(path: str) -> GenerationOutput:
    texts: Dict[str, Dict[int, str]] = {"D-": {}, "T-": {}, "S-": {}, "P-": {}}
    for number, line in numbered_lines(path):
        kind, identity, text = _split_line(line, f"{path}:{number}")
        if kind not in texts:
            continue
        if kind == "T-" and identity in texts[kind]:
            raise InputError(f"{path}:{number}: example {identity} stands twice; two outputs in one file?")
        texts[kind].setdefault(identity, text)  # of several hypotheses the first is the best
    hypotheses, references = texts["D-"], texts["T-"]
    if not hypotheses:
        raise InputError(f"{path}: holds no hypotheses (lines 'D-<id>'), expected fairseq-generate's output")
    odd = sorted(set(hypotheses) ^ set(references))
    if odd:
        missing = "reference" if odd[0] in hypotheses else "hypothesis"
        raise InputError(f"{path}: example {odd[0]} has no {missing} ({len(odd)} such examples); truncated output?")
    lengths = {identity: len(scores.split()) for identity, scores in texts["P-"].items()}
    return GenerationOutput(hypotheses, references, texts["S-"], lengths)


def _split_line(line: str, place: str) -> Tuple[str, int, str]:
    """Returns the line's kind, id and text; the kind is empty where the line is none of S-, T-, D- and P-."""
    if not line.endswith("\n"):
        raise InputError(f"{place}: the last line breaks off; truncated output?")
    if line[:2] not in ("S-", "T-", "D-", "P-"):
        return "", 0, ""
    parts = line.rstrip("\r\n").split("\t", 2 if line[:1] == "D" else 1)
    if not re.fullmatch("[0-9]{1,18}", parts[0][2:]) or len(parts) != (3 if line[:1] == "D" else 2):
        raise InputError(f"{place}: malformed line {parts[0][:60]!r}")
    return parts[0][:2], int(parts[0][2:]), parts[-1]
