"""A fixed path for every input, in the notation of the decision trace, and where it comes from.

A path is a dictionary of one string per site ('1' kept, '0' skipped, '=' outside the decision space; one character a
layer, layer 1 first) and ``token_strategy``.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, Dict, List

import torch

from sd_fairseq.decision.decisions import SITES, Decisions, DecisionSpace
from sd_fairseq.decision.trace import SITE_FIELDS, TraceRecord, read_trace
from sd_fairseq.plugin.guards.errors import InputError

Path = Dict[str, str]
TOKENS = "token_strategy"
NOTATION = "encoder_attention=110,decoder_ffn=101,token_strategy=keep (a site left out is kept), or that as JSON"


def dense_path(space: DecisionSpace) -> Path:
    """Returns the path that keeps everything."""
    return space.describe(space.keep_all(1, torch.device("cpu")), 0)


def parse_path(text: str, space: DecisionSpace, place: str = "--path") -> Path:
    """Reads a path as a user writes it, or a line of a trace.

    Args:
        text: ``site=keeps,...`` or a JSON object.
        space: of the model.
        place: option that the text was given to, for messages.

    Raises:
        InputError: unknown notation, or a path that the model cannot take.
    """
    given = _parse_json(text, place) if text.lstrip().startswith("{") else _parse_pairs(text, place)
    path = {**dense_path(space), **given}
    if "decoder_attention" in given and "decoder_cross_attention" not in given and not space.cross_attention_apart:
        path["decoder_cross_attention"] = path["decoder_attention"]
    if space.tied:
        _tie(path, given)
    check_path(path, space, place)
    return path


def _tie(path: Path, given: Path) -> None:
    """Gives the sites of an answer what stands for the prompt's, where they are not given."""
    for site in SITES:
        partner = "encoder_ffn" if site.endswith("ffn") else "encoder_attention"
        if site not in given:
            path[site] = path[partner]


def _parse_pairs(text: str, place: str) -> Path:
    found = {}
    for part in text.split(","):
        name, separator, value = (piece.strip() for piece in part.partition("="))
        # '=' also stands for a layer outside the space, so a value may begin with it: only the first one separates
        if not separator or name not in (*SITE_FIELDS, TOKENS) or name in found:
            words = "dense, most-frequent or " if place == "--path" else ""
            raise InputError(f"{place}: found {part.strip()!r}, expected {words}{NOTATION}")
        found[name] = value
    return found


def _parse_json(text: str, place: str) -> Path:
    try:
        values: Any = json.loads(text)
    except ValueError as error:
        raise InputError(f"{place}: not valid JSON ({error}), expected {NOTATION}") from error
    unknown = sorted(set(values) - set(TraceRecord.__dataclass_fields__))
    found = {name: values[name] for name in (*SITE_FIELDS, TOKENS) if name in values}
    if unknown or not found or not all(isinstance(value, str) for value in found.values()):
        raise InputError(f"{place}: found {text.strip()!r}, expected {NOTATION}")
    return found


def most_frequent_path(trace: str, space: DecisionSpace, arch: str) -> Path:
    """Finds the path that most examples of a trace took; of equally frequent ones the first.

    Args:
        trace: file written by ``--sd-trace``.
        space: of the model.
        arch: the model's architecture.

    Raises:
        InputError: an unreadable trace, or one of another model.
    """
    try:
        records: List[TraceRecord] = read_trace(trace)
    except (OSError, ValueError) as error:
        raise InputError(f"--trace: {error}") from error
    for number, record in enumerate(records, start=1):
        if record.model != arch:
            raise InputError(f"--trace {trace}:{number}: decisions of a {record.model}, the checkpoint is a {arch}")
        check_path({name: getattr(record, name) for name in (*SITE_FIELDS, TOKENS)}, space, f"--trace {trace}:{number}")
    chosen = Counter(record.path for record in records).most_common(1)[0][0]
    return dict(zip((*SITE_FIELDS, TOKENS), chosen))


def check_path(path: Path, space: DecisionSpace, place: str) -> None:
    """Refuses a path that the model cannot take.

    Raises:
        InputError: beginning with ``place``: another number of layers, a sub-layer that always runs, an unknown token
            strategy.
    """
    for site in SITES:
        depth, kept = space.layers_of(site), path[site]
        if len(kept) != depth or set(kept) - set("01="):
            raise InputError(f"{place}: {site} is {kept!r}, expected {depth} of '0', '1' and '=', one a layer")
        switchable = {layer for _, layer in space.switch_indices(site)}
        for layer, character in enumerate(kept):
            if character == "0" and layer not in switchable:
                raise InputError(f"{place}: {site} is {kept!r}, but in layer {layer + 1} of this model it always runs")
            if character == "=" and layer in switchable:
                raise InputError(f"{place}: {site} is {kept!r}, but layer {layer + 1} is switchable in this model")
    if space.tied and any(
        _plain(path[site]) != _plain(path["encoder_ffn" if site.endswith("ffn") else "encoder_attention"])
        for site in SITES
    ):
        raise InputError(f"{place}: prompt and answer differ, but this model switches them together")
    together = not space.cross_attention_apart
    if together and _plain(path["decoder_attention"]) != _plain(path["decoder_cross_attention"]):
        raise InputError(f"{place}: self- and cross-attention differ, but this model switches them together")
    strategies = [str(strategy) for strategy in space.token_strategies]
    if path[TOKENS] not in strategies:
        raise InputError(f"{place}: token strategy {path[TOKENS]!r} is not one of {', '.join(strategies)}")


def path_decisions(path: Path, space: DecisionSpace, batch_size: int) -> Decisions:
    """Returns the same path for ``batch_size`` examples."""
    kept = {site: [[character != "0" for character in path[site]]] * batch_size for site in SITES}
    choice = [str(strategy) for strategy in space.token_strategies].index(path[TOKENS])
    return Decisions(
        token_choice=torch.full((batch_size,), choice, dtype=torch.long),
        **{site: torch.tensor(rows, dtype=torch.bool) for site, rows in kept.items()},
    )


def _plain(kept: str) -> str:
    return kept.replace("=", "1")
