"""The decision trace: one JSON line per generated example, with its path, lengths, FLOPs and time.

A site's string has one character a layer, layer 1 first: '1' kept, '0' skipped, '=' outside the decision space.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from dataclasses import dataclass
from typing import List, Sequence, Tuple

SITE_FIELDS = (
    "encoder_attention",
    "encoder_ffn",
    "decoder_attention",
    "decoder_cross_attention",
    "decoder_ffn",
)


@dataclass(frozen=True)
class TraceRecord:
    """What one example decided and cost.

    Args:
        id: index in its data set.
        source_tokens, kept_source_tokens: S and S', end-of-sentence symbol included.
        target_tokens: tokens of the best hypothesis.
        decoder_steps: steps that the search ran for this example.
        beam: hypotheses side by side.
        encoder_attention, encoder_ffn, decoder_attention, decoder_cross_attention, decoder_ffn: see the module.
        token_strategy: ``keep``, ``last:PERCENT`` or ``uniform:PERCENT``.
        flops_generation, flops_generation_dense: FLOPs of its path and of the dense path, as generation executes them.
        flops_paper, flops_paper_dense: the same under the paper's definition.
        seconds: its share of the batch's time.
        generation: options of the search.
        model: architecture.
    """

    id: int
    source_tokens: int
    kept_source_tokens: int
    target_tokens: int
    decoder_steps: int
    beam: int
    encoder_attention: str
    encoder_ffn: str
    decoder_attention: str
    decoder_cross_attention: str
    decoder_ffn: str
    token_strategy: str
    flops_generation: int
    flops_generation_dense: int
    flops_paper: int
    flops_paper_dense: int
    seconds: float
    generation: str
    model: str

    @property
    def path(self) -> Tuple[str, ...]:
        """All decisions of the example; equal for equal paths."""
        return tuple(getattr(self, name) for name in SITE_FIELDS) + (self.token_strategy,)

    @property
    def relative_flops_generation(self) -> float:
        """FLOPs of generation relative to the dense path of the same example."""
        return self.flops_generation / self.flops_generation_dense

    @property
    def relative_flops_paper(self) -> float:
        """The paper's FLOPs relative to the dense path of the same example."""
        return self.flops_paper / self.flops_paper_dense


def to_json_line(record: TraceRecord) -> str:
    """Renders a record as one JSON line, without the line end."""
    return json.dumps(dataclasses.asdict(record))


def from_json_line(line: str) -> TraceRecord:
    """Reads one JSON line.

    Raises:
        ValueError: not JSON, not an object, a missing, unknown or wrongly typed field.
    """
    try:
        values = json.loads(line)
    except ValueError as error:
        raise ValueError(f"not valid JSON ({error})") from error
    if not isinstance(values, dict):
        raise ValueError(f"found a JSON {type(values).__name__}, expected an object")
    known = {field.name: field.type for field in dataclasses.fields(TraceRecord)}
    missing = sorted(set(known) - set(values))
    unknown = sorted(set(values) - set(known))
    if missing or unknown:
        raise ValueError(f"missing fields {missing}, unknown fields {unknown}")
    accepted = {"int": (int,), "float": (int, float), "str": (str,)}
    for name, kind in known.items():
        if not isinstance(values[name], accepted[str(kind)]) or isinstance(values[name], bool):
            raise ValueError(f"field {name!r} is {values[name]!r}, expected {kind}")
    return TraceRecord(**values)


def write_trace(path: str, records: Sequence[TraceRecord]) -> None:
    """Writes a trace beside its place and renames it, so that the file is whole or absent."""
    folder = os.path.dirname(os.path.abspath(path))
    handle, part = tempfile.mkstemp(prefix=os.path.basename(path) + ".", dir=folder)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as text:
            text.writelines(to_json_line(record) + "\n" for record in records)
        os.replace(part, path)
    except BaseException:
        os.remove(part)
        raise


def read_trace(path: str) -> List[TraceRecord]:
    """Reads a trace.

    Raises:
        ValueError: a malformed line; names file, line number and what is wrong. Also an empty file.
        OSError: the file cannot be read.
    """
    records = []
    with open(path, encoding="utf-8") as text:
        for number, line in enumerate(text, start=1):
            try:
                records.append(from_json_line(line))
            except ValueError as error:
                raise ValueError(f"{path}:{number}: {error}") from error
    if not records:
        raise ValueError(f"{path}: holds no records")
    return records
