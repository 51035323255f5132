"""Which stock BART layers compute a fixed path exactly: kept sub-layers of neighbouring layers merge into one.

A stock post-norm layer always computes ``LayerNorm(x + f(x))`` for each of its sub-layers, and no weights make that the
identity. So the kept sub-layers of a stack, in order, must read attention, feed-forward, attention, feed-forward, ...
(in the decoder self-attention, cross-attention, feed-forward, ...), whichever layers they come from. Where zero weights
switch a sub-layer off, because the stack is pre-norm or a skipped sub-layer keeps its LayerNorm, every path has its
stock layers.
"""

from __future__ import annotations

from typing import Dict, List, NamedTuple, Tuple

from sd_fairseq.decision.decisions import DecisionSpace
from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.plugin.models.fixed_path import TOKENS, Path

SUBLAYERS = {
    "encoder": ("encoder_attention", "encoder_ffn"),
    "decoder": ("decoder_attention", "decoder_cross_attention", "decoder_ffn"),
}


class Source(NamedTuple):
    """Where a stock sub-layer's weights come from.

    Args:
        layer: of the switchable model, from 0.
        runs: False = its output projection is zero.
    """

    layer: int
    runs: bool = True


StockLayer = Dict[str, Source]


class Norms(NamedTuple):
    """What a stack's LayerNorms do.

    Args:
        before: pre-norm.
        when_skipped: a skipped sub-layer still applies its own.
    """

    before: bool = False
    when_skipped: bool = False


def stock_layers(path: Path, stack: str, norms: Norms) -> List[StockLayer]:
    """Lists the stock layers that compute ``path`` exactly.

    Args:
        path: a checked path.
        stack: ``encoder`` or ``decoder``.
        norms: of that stack.

    Raises:
        InputError: there are none; names the layer.
    """
    sites = SUBLAYERS[stack]
    if norms.before and norms.when_skipped:
        raise InputError(f"a pre-norm {stack} with --sd-skip-keeps-layer-norm has no counterpart in stock BART")
    if norms.when_skipped:
        return [{site: Source(i, path[site][i] != "0") for site in sites} for i in range(len(path[sites[0]]))]
    layers = _pack(path, sites)
    for layer in layers:
        present = next(site for site in sites if site in layer)
        for site in sites:
            if site not in layer and not norms.before:
                raise InputError(
                    f"{present} of layer {layer[present].layer + 1} runs without {_place(sites, present, site)} "
                    f"{site}, a stock post-norm layer runs both; --nearest takes the nearest path that it can run"
                )
            layer.setdefault(site, Source(layer[present].layer, runs=False))
    return layers


def _pack(path: Path, sites: Tuple[str, ...]) -> List[StockLayer]:
    """Puts every kept sub-layer into the current stock layer, or into a new one if its place there has passed."""
    layers: List[StockLayer] = []
    last = len(sites)
    for index in range(len(path[sites[0]])):
        for place, site in enumerate(sites):
            if path[site][index] != "0":
                if place <= last:
                    layers.append({})
                layers[-1][site] = Source(index)
                last = place
    return layers


def _place(sites: Tuple[str, ...], present: str, missing: str) -> str:
    return "a following" if sites.index(missing) > sites.index(present) else "a preceding"


def nearest_path(path: Path, space: DecisionSpace, norms: Dict[str, Norms]) -> Path:
    """Returns the path that stock layers can compute with the fewest decisions changed.

    Among equally near paths the one that skips the least more, then the one that keeps the earlier sub-layers.

    Args:
        path: a checked path.
        space: of the model.
        norms: by stack.
    """
    nearest = {**path, TOKENS: "keep"}
    for stack, sites in SUBLAYERS.items():
        if not (norms[stack].before or norms[stack].when_skipped):
            together = stack == "decoder" and not space.cross_attention_apart
            groups: List[Tuple[str, ...]] = [sites[:2], sites[2:]] if together else [(site,) for site in sites]
            nearest.update(_nearest_cycle(path, space, groups))
    return nearest


def _nearest_cycle(path: Path, space: DecisionSpace, groups: List[Tuple[str, ...]]) -> Path:
    """Finds the nearest path whose kept groups follow each other in turn, by dynamic programming over the sub-layers.

    Args:
        path: the path of one stack.
        space: of the model.
        groups: the sites that one switch governs, in the order of a layer.
    """
    depth = len(path[groups[0][0]])
    # next group in turn -> (decisions changed, of these newly skipped, choices so far; 0 = keep)
    best: Dict[int, Tuple[int, int, Tuple[int, ...]]] = {0: (0, 0, ())}
    for index in range(depth):
        for place, group in enumerate(groups):
            wanted = path[group[0]][index] != "0"
            fixed = index not in {layer for _, layer in space.switch_indices(group[0])}
            candidates: Dict[int, List[Tuple[int, int, Tuple[int, ...]]]] = {}
            for turn, (changes, skips, choices) in best.items():
                if not fixed:
                    step = (changes + wanted, skips + wanted, choices + (1,))
                    candidates.setdefault(turn, []).append(step)
                if turn == place:
                    kept = (changes + (not wanted), skips, choices + (0,))
                    candidates.setdefault((turn + 1) % len(groups), []).append(kept)
            best = {turn: min(found) for turn, found in candidates.items()}
    skipped = best[0][2]  # the dense path ends in turn 0, so there is one
    found = {}
    for place, group in enumerate(groups):
        for site in group:
            column = zip(path[site], skipped[place :: len(groups)])
            found[site] = "".join("0" if skip else ("1" if old == "0" else old) for old, skip in column)
    return found


def describe_changes(before: Path, after: Path) -> List[str]:
    """Lists the decisions that differ, in words."""
    changes = []
    for sites in SUBLAYERS.values():
        for site in sites:
            for index, (old, new) in enumerate(zip(before[site], after[site])):
                if old != new:
                    changes.append(f"{site} of layer {index + 1} is {'skipped' if new == '0' else 'kept'}")
    if before[TOKENS] != after[TOKENS]:
        changes.append(f"all source tokens are kept (the path has {before[TOKENS]})")
    return changes
