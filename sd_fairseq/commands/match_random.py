"""``sd-match-random``: the keep-probability at which random decisions cost what a learned policy's did."""

from __future__ import annotations

import argparse
import sys
from typing import Optional, Sequence

from sd_fairseq.commands.shared import make_parser, run

ABOUT = """Prints the keep-probability at which random decisions cost what a trace's did: the NUMBER of
--model-overrides "{'sd_policy': 'random', 'sd_random_keep': NUMBER}"."""


def build_parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    parser = make_parser("sd-match-random", ABOUT, "sd-match-random DATA --path CHECKPOINT --trace TRACE.jsonl")
    parser.add_argument("data", help="binarised data folder (for the dictionaries)")
    parser.add_argument("--path", required=True, help="checkpoint of the switchable model")
    parser.add_argument("--trace", required=True, help="decision trace of its generation")
    parser.add_argument("--model-overrides", default="{}", help='JSON, such as {"sd_space": "encoder"}')
    parser.add_argument("--flops", type=float, help="match this share of the dense FLOPs; the trace gives the lengths")
    return parser


def work(args: argparse.Namespace) -> None:
    """Prints the number."""
    from sd_fairseq.decision.trace import read_trace
    from sd_fairseq.study.match_random import load_model, matching_keep_probability

    model = load_model(args.path, args.data, args.model_overrides)
    print(f"{matching_keep_probability(model.space, model.shape, read_trace(args.trace), args.flops):.4f}")


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Runs the command; returns its exit code."""
    return run(work, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
