"""What a fitted policy is worth: against the best static path, and against the best path of each example."""

from __future__ import annotations

from typing import Any, Dict

import torch
from torch import Tensor, nn

from sd_fairseq.learning.path_table import PathTable, chosen_scores
from sd_fairseq.study.path_scorer import Scorer
from sd_fairseq.study.path_search import (
    best_static,
    choose_paths,
    concatenate,
    gain_by_length,
    interval,
    mix,
    pick,
)
from sd_fairseq.study.path_tables import ScoredPaths, example_weights


def compare(table: PathTable, scored: ScoredPaths, chosen: Tensor) -> Dict[str, Any]:
    """Compares decisions per input with the best static path and the oracle at their mean FLOPs.

    Args:
        table: of N examples.
        scored: what the table was made of.
        chosen: LongTensor [N], a path for each example.
    """
    loss, flops = chosen_scores(table, chosen)
    target = float(flops.mean())
    means = table.loss.mean(dim=1), table.flops.mean(dim=1)
    static = mix(best_static(*means, target), table.loss)
    oracle = pick(table.loss, choose_paths(table.loss, table.flops, target))
    gap = float((static - oracle).mean())
    gain = interval(static - loss)
    return {
        "flops_generation": target,
        "distinct_paths": int(chosen.unique().numel()),
        "nll_dense": float(scored.dense_loss.mean()),
        "nll_static": float(static.mean()),
        "nll_policy": float(loss.mean()),
        "nll_oracle": float(oracle.mean()),
        "gain_over_static": gain,
        "gain_of_length_ranges": gain_by_length(table.loss, table.flops, scored.dense_flops, target),
        "static_flops_at_equal_loss": flops_at(*means, float(loss.mean())),
        "oracle_gap": gap,
        "share_of_oracle_gap": gain["difference"] / gap if gap > 0 else 0.0,
    }


def compare_held_out(scorer: Scorer, policy: nn.Module, table: PathTable, average: str) -> Dict[str, Any]:
    """Compares a fitted policy with the static path that its table chooses, on examples that neither has seen.

    Args:
        scorer: of these examples; its model's policy is replaced.
        policy: the fitted one.
        table: what it was fitted to; the best static path (or mixture of two) there, at the policy's FLOPs here.
        average: see :func:`~sd_fairseq.study.path_tables.example_weights`.
    """
    scorer.model.encoder.policy.load_state_dict(policy.state_dict())
    weights = example_weights(scorer.dense_flops, average)
    mine, decisions = scorer.score_policy()
    means = table.loss.mean(dim=1), table.flops.mean(dim=1)
    target = float((mine.flops * weights).mean())
    shares = best_static(*means, min(max(target, float(means[1].min())), float(means[1].max())))
    parts = shares.nonzero().view(-1).tolist()
    static = [scorer.score((tuple(table.keep[path].tolist()), int(table.token_choice[path]))) for path in parts]
    loss = mix(shares[parts], torch.stack([one.loss for one in static]))
    flops = mix(shares[parts], torch.stack([one.flops * weights for one in static]))
    return {
        "examples": len(loss),
        "flops_policy": target,
        "flops_static": float(flops.mean()),
        "nll_dense": float(scorer.score(((True,) * scorer.model.space.num_switches, 0)).loss.mean()),
        "nll_policy": float(mine.loss.mean()),
        "nll_static": float(loss.mean()),
        "gain_over_static": interval(loss - mine.loss),
        "distinct_paths": concatenate(decisions).count_distinct_paths(),
    }


def flops_at(losses: Tensor, flops: Tensor, loss: float) -> float:
    """Returns the FLOPs at which the best static path, or mixture of two, has this loss; the most where none has.

    Args:
        losses, flops: [paths], means over the examples.
        loss: nats.
    """
    low, high = float(flops.min()), float(flops.max())
    for _ in range(50):
        middle = (low + high) / 2
        reached = float(best_static(losses, flops, middle) @ losses.double())
        low, high = (middle, high) if reached > loss else (low, middle)
    return high
