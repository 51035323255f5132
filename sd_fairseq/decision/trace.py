"""The decision trace: one JSON line per generated example, with its path, lengths, FLOPs and time.

Every figure of "Switchable Decision" (ICML 2024, Table 10: skip rates; FLOPs columns) is a mean over such records.

A site's string has one character a layer, layer 1 first: '1' kept, '0' skipped, '=' outside the decision space.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence, Tuple

from sd_fairseq.errors import InputError
from sd_fairseq.user_files import check_object, numbered_lines, parse_json
from sd_fairseq.whole_files import write_text

SITE_FIELDS = (
    "encoder_attention",
    "encoder_ffn",
    "decoder_attention",
    "decoder_cross_attention",
    "decoder_ffn",
)
POSITIVE_COUNTS = ("source_tokens", "kept_source_tokens", "beam", "flops_generation_dense", "flops_paper_dense")


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
        rule: what else than the decisions decided which decoder layers ran, as ``--sd-path`` has it; "" = nothing.
        layer_tokens: tokens of all hypotheses that ran each decoder layer, such as ``40,40,31``; "" without a rule.
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
    rule: str = ""
    layer_tokens: str = ""

    @property
    def layer_shares(self) -> Optional[List[float]]:
        """Share of the tokens of all hypotheses that ran each decoder layer; None without a rule."""
        if not self.layer_tokens:
            return None
        tokens = self.decoder_steps * self.beam
        return [int(count) / max(tokens, 1) for count in self.layer_tokens.split(",")]

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


def from_json_line(line: str, place: str = "the trace") -> TraceRecord:
    """Reads one JSON line.

    Args:
        line: of a trace.
        place: file and line, for messages.

    Raises:
        InputError: not JSON, not an object, a missing, unknown or wrongly typed field, an impossible value.
    """
    values = check_object(parse_json(line, place), place)
    try:
        return _to_record(values)
    except ValueError as error:
        raise InputError(f"{place}: {error}") from error


def _to_record(values: Dict[str, Any]) -> TraceRecord:
    known = {field.name: field.type for field in dataclasses.fields(TraceRecord)}
    optional = {field.name for field in dataclasses.fields(TraceRecord) if field.default is not dataclasses.MISSING}
    missing = sorted(set(known) - set(values) - optional)
    unknown = sorted(set(values) - set(known))
    if missing or unknown:
        raise ValueError(f"missing fields {missing}, unknown fields {unknown}")
    accepted = {"int": (int,), "float": (int, float), "str": (str,)}
    for name, kind in known.items():
        if name not in values:
            continue
        if not isinstance(values[name], accepted[str(kind)]) or isinstance(values[name], bool):
            raise ValueError(f"field {name!r} is {values[name]!r}, expected {kind}")
    _check_values(values)
    return TraceRecord(**values)


def _check_values(values: Dict[str, Any]) -> None:
    """Refuses values that no generation can have; a wrong one would spoil every mean without a sign."""
    for name, value in values.items():
        if isinstance(value, str):
            continue
        least = 1 if name in POSITIVE_COUNTS else 0
        if not least <= value < math.inf:  # also refuses NaN
            raise ValueError(f"field {name!r} is {value!r}, expected at least {least}")
    if values["kept_source_tokens"] > values["source_tokens"]:
        raise ValueError(f"keeps {values['kept_source_tokens']} of {values['source_tokens']} source tokens")
    for site in SITE_FIELDS:
        if set(values[site]) - set("01="):
            raise ValueError(f"field {site!r} is {values[site]!r}, expected only '0', '1' and '='")
    for stack in ("encoder", "decoder"):
        depths = {site: len(values[site]) for site in SITE_FIELDS if site.startswith(stack)}
        if len(set(depths.values())) > 1:
            raise ValueError(f"the {stack}'s sites differ in their number of layers: {depths}")
    counts, whole = values.get("layer_tokens", ""), values["decoder_steps"] * values["beam"]
    if counts:
        numbers = [int(count) if count.isdigit() else -1 for count in counts.split(",")]
        if len(numbers) != len(values["decoder_ffn"]) or not all(0 <= number <= whole for number in numbers):
            raise ValueError(f"field 'layer_tokens' is {counts!r}, expected a count of 0..{whole} for every layer")
    if not re.fullmatch("keep|(last|uniform):[1-9][0-9]?", values["token_strategy"]):
        found = values["token_strategy"]
        raise ValueError(f"field 'token_strategy' is {found!r}, expected 'keep', 'last:PERCENT' or 'uniform:PERCENT'")


def write_trace(path: str, records: Sequence[TraceRecord]) -> None:
    """Writes a trace; see :mod:`~sd_fairseq.whole_files`."""
    write_text(path, "".join(to_json_line(record) + "\n" for record in records))


def read_trace(path: str) -> List[TraceRecord]:
    """Reads a trace, written in whatever order; blank lines do not count.

    Returns:
        The records in the order of their ids.

    Raises:
        InputError: unreadable, a malformed line (with file, line number and what is wrong), or an empty file.
    """
    records = []
    for number, line in numbered_lines(path):
        if line.strip():
            records.append(from_json_line(line, f"{path}:{number}"))
    if not records:
        raise InputError(f"{path}: holds no records")
    return sorted(records, key=lambda record: record.id)
