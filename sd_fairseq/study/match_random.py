"""Finds the keep-probability at which random decisions cost what a learned policy's did (the control of Table 8).

``python -m sd_fairseq.study.match_random --path CHECKPOINT --trace TRACE [DATA]`` prints one number, for
``--model-overrides "{'sd_policy': 'random', 'sd_random_keep': NUMBER}"``.
"""

from __future__ import annotations

import argparse
import sys
from typing import List, Optional

import torch
from fairseq import checkpoint_utils

from sd_fairseq.cost.path_flops import Lengths, ModelShape, expected_relative_flops
from sd_fairseq.decision.decisions import DecisionSpace
from sd_fairseq.decision.given_policies import uniform_distribution
from sd_fairseq.decision.trace import TraceRecord, read_trace
from sd_fairseq.plugin.guards.errors import InputError


def matching_keep_probability(space: DecisionSpace, shape: ModelShape, records: List[TraceRecord]) -> float:
    """Returns the keep-probability whose expected relative FLOPs equal the records' mean.

    Args:
        space, shape: of the model; random decisions run no policy network.
        records: the learned policy's trace.

    Raises:
        ValueError: a mean that no keep-probability reaches.
    """
    target = sum(record.relative_flops_generation for record in records) / len(records)
    lengths = Lengths(
        torch.tensor([record.source_tokens for record in records]),
        torch.tensor([record.decoder_steps for record in records]),
        records[0].beam,
    )

    def expected(keep: float) -> float:
        distribution = uniform_distribution(space, keep, len(records))
        return float(expected_relative_flops("generation", shape, distribution, lengths).mean())

    low, high = 0.0, 1.0
    target = min(target, expected(high))  # a policy that skips nothing costs a little more than dense: itself
    if target < expected(low):
        raise ValueError(
            f"mean FLOPs {target:.3f} are below {expected(low):.3f}, where random decisions skip everything"
        )
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if expected(middle) < target else (low, middle)
    return (low + high) / 2


def main(argv: Optional[List[str]] = None) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(description="keep-probability of random decisions at a trace's FLOPs")
    parser.add_argument("data", help="binarised data folder (for the dictionaries)")
    parser.add_argument("--path", required=True, help="checkpoint of the switchable model")
    parser.add_argument("--trace", required=True, help="decision trace of its generation")
    args = parser.parse_args(argv)
    try:
        overrides = {"data": args.data, "sd_policy": "dense"}
        models, _, _ = checkpoint_utils.load_model_ensemble_and_task([args.path], arg_overrides=overrides)
        if not hasattr(models[0], "space"):
            raise InputError(f"{args.path} holds a {type(models[0]).__name__}, expected a switchable_bart")
        print(f"{matching_keep_probability(models[0].space, models[0].shape, read_trace(args.trace)):.4f}")
    except (OSError, ValueError) as error:
        print(f"sd_fairseq: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
