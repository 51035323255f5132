"""What are decisions per input worth? Best static path and oracle at the FLOPs of a learned policy, by one search.

A greedy search removes, step by step, the sub-layer (or takes the token strategy) that costs the least quality per FLOP
saved, for all examples together. Every path that it tries is scored on every example, teacher-forced, so one table of
losses and FLOPs [paths, examples] answers four questions at equal mean FLOPs:

* static: the best one path for all (a point on the lower convex hull: two paths may be mixed at random);
* oracle: the best path of each example, chosen by the very loss that is reported - an upper bound that no policy can
  reach, because it also picks what suits the reference by chance;
* halves: the path chosen by every second target token and scored on the others, which chance does not help;
* by length: a path for each of four ranges of source lengths, chosen on half of the examples and scored on the others.
"""

from __future__ import annotations

import math
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
from torch import Tensor
from tqdm import tqdm

from sd_fairseq.decision.decisions import Decisions
from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.study.path_scorer import Key, Scorer

LENGTH_RANGES = 4  # of as many examples each


def greedy_search(scorer: Scorer, lowest: float, weights: Optional[Tensor] = None, lazy: bool = False) -> List[Key]:
    """Removes one thing after the other until the mean FLOPs fall to ``lowest``; returns the chain from the dense path.

    Each step takes the change that loses the least per FLOP saved.

    Args:
        scorer: of the examples.
        lowest: mean relative FLOPs.
        weights: of the examples in that mean, [N], 1 on average; None = all alike.
        lazy: try again only what looked better, when it was tried last, than the best found in this step. The chain is
            the same where a change loses more the more is gone already, for a fraction of the scores (lazy greedy
            search, Minoux 1978).
    """
    space = scorer.model.space

    def mean_flops(key: Key) -> float:
        flops = scorer.score(key).flops
        return float((flops if weights is None else flops * weights).mean())

    current: Key = ((True,) * space.num_switches, 0)
    chain = [current]
    progress = tqdm(desc="search", unit=" paths", disable=None)
    rates: Dict[Tuple[str, int], float] = {}  # change -> loss per FLOP saved, when it was tried last
    while mean_flops(current) > lowest:
        here = scorer.score(current)
        best: Optional[Tuple[float, Key]] = None
        changes = {changed(current, one): one for one in neighbours(current, len(space.token_strategies))}
        for change in sorted(changes, key=lambda one: rates.get(one, -math.inf)) if lazy else changes:
            if lazy and best and rates.get(change, -math.inf) >= best[0]:
                break
            candidate = changes[change]
            there = scorer.score(candidate)
            progress.update()
            saved = mean_flops(current) - mean_flops(candidate)
            rates[change] = math.inf
            if saved > 0:
                lost = float((there.loss - here.loss).mean())
                rates[change] = lost / saved if lost > 0 else lost * saved
                best = min(best, (rates[change], candidate)) if best else (rates[change], candidate)
        if best is None:
            break
        current = best[1]
        chain.append(current)
    progress.close()
    return chain


def changed(key: Key, neighbour: Key) -> Tuple[str, int]:
    """Names what sets a neighbour apart: the switch it skips, or its token strategy."""
    if key[1] != neighbour[1]:
        return "tokens", neighbour[1]
    return "switch", next(place for place, pair in enumerate(zip(key[0], neighbour[0])) if pair[0] != pair[1])


def neighbours(key: Key, strategies: int) -> List[Key]:
    """Lists the paths that skip one sub-layer more, or take another token strategy."""
    kept, choice = key
    found = [(kept[:i] + (False,) + kept[i + 1 :], choice) for i in range(len(kept)) if kept[i]]
    return found + [(kept, other) for other in range(1, strategies) if other != choice]


def best_static(losses: Tensor, flops: Tensor, target: float) -> Tensor:
    """Returns the best static path at mean FLOPs ``target``, mixtures of two paths included.

    Args:
        losses, flops: [paths], means over the examples.
        target: mean relative FLOPs.

    Returns:
        float64 [paths], each path's share; they sum to 1.

    Raises:
        InputError: every path costs more, or every path costs less.
    """
    best: Optional[Tuple[float, Tensor]] = None
    below, above = flops <= target, flops >= target
    for low in below.nonzero().view(-1).tolist():
        for high in above.nonzero().view(-1).tolist():
            width = float(flops[high] - flops[low])
            share = 0.0 if width <= 0 else (target - float(flops[low])) / width
            loss = (1 - share) * float(losses[low]) + share * float(losses[high])
            if best is None or loss < best[0]:
                shares = torch.zeros(len(losses), dtype=torch.float64)
                shares[low] += 1 - share
                shares[high] += share
                best = (loss, shares)
    if best is None:
        lowest, highest = float(flops.min()), float(flops.max())
        raise InputError(f"no static path costs {target:.4f} of the FLOPs, those found {lowest:.4f} to {highest:.4f}")
    return best[1]


def mix(shares: Tensor, losses: Tensor) -> Tensor:
    """Returns the loss of each example, [N], under a mixture of paths.

    Args:
        shares: [paths].
        losses: [paths, N].
    """
    return shares.to(losses.dtype) @ losses


def interval(differences: Tensor) -> Dict[str, float]:
    """Returns the mean of [N] paired differences and its 95 % interval (of a normal distribution)."""
    mean = float(differences.mean())
    margin = 1.96 * float(differences.std()) / differences.numel() ** 0.5
    return {"difference": mean, "low": mean - margin, "high": mean + margin}


def choose_paths(losses: Tensor, flops: Tensor, target: float) -> Tensor:
    """Chooses a path for each example, [N], to the lowest sum of losses with mean FLOPs at most ``target``.

    Args:
        losses, flops: [paths, N].
        target: mean relative FLOPs.
    """
    low, high = 0.0, 1e4
    for _ in range(60):  # the price of FLOPs
        price = (low + high) / 2
        chosen = (losses + price * flops).argmin(dim=0)
        if float(pick(flops, chosen).mean()) > target:
            low = price
        else:
            high = price
    return (losses + high * flops).argmin(dim=0)


def pick(table: Tensor, chosen: Tensor) -> Tensor:
    """Takes one row of [paths, N] for each column."""
    return table.gather(0, chosen.unsqueeze(0)).squeeze(0)


def gain_by_length(losses: Tensor, flops: Tensor, lengths: Tensor, target: float) -> Dict[str, float]:
    """Compares one path for each range of lengths with the best static path, chosen on the other half of the examples.

    Args:
        losses, flops: [paths, N].
        lengths: [N], source tokens.
        target: mean relative FLOPs.

    Returns:
        Interval of the loss of the static path minus that of the ranges' paths, and both means of FLOPs: the static
        path is the best at what the ranges' paths cost where both are chosen.
    """
    order = lengths.argsort(stable=True)
    folds = [order[0::2], order[1::2]]  # each covers all lengths
    gains, costs = [], []
    for there, here in (folds, folds[::-1]):
        bins = [part for part in there.tensor_split(LENGTH_RANGES) if len(part)]
        table = [torch.stack([values[:, part].mean(dim=1) for part in bins], dim=1) for values in (losses, flops)]
        means = losses[:, there].mean(dim=1), flops[:, there].mean(dim=1)
        goal = min(max(target, float(means[1].min())), float(means[1].max()))  # a half may differ
        paths = choose_paths(*table, goal)  # [ranges]
        edges = torch.stack([lengths[part[-1]] for part in bins[:-1]]) if len(bins) > 1 else lengths[:0]
        chosen = paths[torch.bucketize(lengths[here], edges)]
        assigned = paths[torch.bucketize(lengths[there], edges)]
        spent = float(pick(flops[:, there], assigned).mean())  # at most the goal: paths are few
        shares = best_static(*means, min(max(spent, float(means[1].min())), float(means[1].max())))
        gains.append(mix(shares, losses[:, here]) - pick(losses[:, here], chosen))
        costs.append(torch.stack([mix(shares, flops[:, here]), pick(flops[:, here], chosen)]))
    static, ranges = torch.cat(costs, dim=1).mean(dim=1).tolist()
    return {**interval(torch.cat(gains)), "flops_static": static, "flops_ranges": ranges}


def concatenate(decisions: Sequence[Decisions]) -> Decisions:
    """Joins the decisions of several batches."""
    return Decisions(*(torch.cat([getattr(one, name) for one in decisions]) for name in vars(decisions[0])))


def analyse(scorer: Scorer, chain: Sequence[Key]) -> Dict[str, Any]:
    """Compares policy, static path and oracle at the policy's mean FLOPs."""
    policy, decisions = scorer.score_policy()
    keys = list(scorer.known)
    losses = torch.stack([scorer.known[key].loss for key in keys])  # [paths, N]
    flops = torch.stack([scorer.known[key].flops for key in keys])
    halves = torch.stack([scorer.known[key].halves for key in keys])  # [paths, 2, N]
    target = float(policy.flops.mean())
    chosen = choose_paths(losses, flops, target)
    honest = torch.stack(
        [pick(halves[:, 1 - half], choose_paths(halves[:, half], flops, target)) for half in (0, 1)]
    ).mean()
    static_halves = float(
        mix(best_static(halves.mean(dim=(1, 2)), flops.mean(dim=1), target), halves.mean(dim=1)).mean()
    )
    static_losses = mix(best_static(losses.mean(dim=1), flops.mean(dim=1), target), losses)  # [N]
    static = float(static_losses.mean())
    dense = scorer.known[chain[0]]
    oracle = float(pick(losses, chosen).mean())
    mine = float(policy.loss.mean())
    return {
        "examples": policy.loss.numel(),
        "paths_tried": len(keys),
        "flops_generation": target,
        "distinct_paths": concatenate(decisions).count_distinct_paths(),
        "oracle_distinct_paths": int(chosen.unique().numel()),
        "nll_dense": float(dense.loss.mean()),
        "nll_policy": mine,
        "nll_static": static,
        "nll_oracle": oracle,
        "policy_minus_static": interval(policy.loss - static_losses),
        "oracle_gap": static - oracle,
        "share_of_oracle_gap": (static - mine) / (static - oracle) if static > oracle else 0.0,
        "predictable_gap": static_halves - float(honest),
        "gain_by_length": gain_by_length(losses, flops, scorer.source_lengths, target),
        "static_frontier": [
            {
                "flops_generation": float(scorer.known[key].flops.mean()),
                "nll": float(scorer.known[key].loss.mean()),
                "path": scorer.model.space.describe(
                    scorer.model.space.to_decisions(torch.tensor([key[0]]), torch.tensor([key[1]])), 0
                ),
            }
            for key in chain
        ],
    }


def show(value: Any) -> str:
    """Writes a figure, or an interval as "difference [low, high]"."""
    if isinstance(value, dict):
        return "{difference:+.4f} [{low:+.4f}, {high:+.4f}]".format(**value)
    return f"{value:.4f}" if isinstance(value, float) else str(value)
