"""Reads what fairseq-generate printed: sources (S-), references (T-) and best hypotheses (D-) by example id."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, List, Sequence


@dataclass(frozen=True)
class GenerationOutput:
    """The texts of one system.

    Args:
        hypotheses: id -> best hypothesis, detokenised; may be empty.
        references: id -> reference.
    """

    hypotheses: Dict[int, str]
    references: Dict[int, str]

    @property
    def ids(self) -> List[int]:
        """The example ids, ascending."""
        return sorted(self.hypotheses)


def read_generation(paths: Sequence[str]) -> GenerationOutput:
    """Reads one output, or the outputs of several shards.

    Args:
        paths: files with fairseq-generate's standard output.

    Raises:
        ValueError: no hypotheses, a hypothesis without reference or the reverse, an id in two shards, a malformed line.
        OSError: a file cannot be read.
    """
    hypotheses: Dict[int, str] = {}
    references: Dict[int, str] = {}
    for path in paths:
        shard = _read_shard(path)
        both = sorted(set(hypotheses) & set(shard.hypotheses))
        if both:
            raise ValueError(f"{path}: example {both[0]} stands in another shard too ({len(both)} such examples)")
        hypotheses.update(shard.hypotheses)
        references.update(shard.references)
    return GenerationOutput(hypotheses, references)


def _read_shard(path: str) -> GenerationOutput:
    hypotheses: Dict[int, str] = {}
    references: Dict[int, str] = {}
    with open(path, encoding="utf-8") as text:
        for number, line in enumerate(text, start=1):
            if line[:2] not in ("D-", "T-"):
                continue
            parts = line.rstrip("\n").split("\t", 2 if line[0] == "D" else 1)
            if not parts[0][2:].isdigit() or len(parts) != (3 if line[0] == "D" else 2):
                raise ValueError(f"{path}:{number}: malformed line {line.rstrip()[:60]!r}")
            found = hypotheses if line[0] == "D" else references
            found.setdefault(int(parts[0][2:]), parts[-1])  # of several hypotheses the first is the best
    if not hypotheses:
        raise ValueError(f"{path}: holds no hypotheses (lines 'D-<id>'), expected fairseq-generate's output")
    odd = sorted(set(hypotheses) ^ set(references))
    if odd:
        missing = "reference" if odd[0] in hypotheses else "hypothesis"
        raise ValueError(f"{path}: example {odd[0]} has no {missing} ({len(odd)} such examples); truncated output?")
    return GenerationOutput(hypotheses, references)
