"""``sd-fit``: a policy fitted to searched paths, and what its decisions per input are worth."""

from __future__ import annotations

import argparse
import sys
from typing import Optional, Sequence

from sd_fairseq.commands.shared import add_batches, add_model, make_parser, run

ABOUT = """Fits a policy to searched paths, and measures what decisions per input are worth on examples it has not seen.

A greedy search on a few pairs; the best paths are scored on many pairs, teacher-forced; a policy network is fitted to
that table by the exact gradient of its expected cost. The report compares, at equal mean FLOPs, the best static path,
the policy (fitted on other examples), a path for each range of lengths, and the oracle, which nothing reaches.

The checkpoint written holds the base's weights and a policy fitted on all pairs; it generates, or starts a training."""


def build_parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    parser = make_parser("sd-fit", ABOUT, "sd-fit DATA --path BASE.pt --flops 0.7 --output FITTED.pt --held-out valid")
    add = parser.add_argument
    add_model(parser, "train")
    add("--flops", type=float, required=True, help="mean relative FLOPs to end at, in (0, 1)")
    text = "what their mean is: of the examples' own shares, or the share of all examples' FLOPs (default: %(default)s)"
    add("--flops-average", choices=("examples", "corpus"), default="examples", help=text)
    add("--table", help="file of the scored paths: read where it is there, else written")
    add("--examples", type=int, default=2000, help="pairs of the table, 0 = all (default: %(default)s)")
    add("--search-examples", type=int, default=200, help="pairs of the search (default: %(default)s)")
    add("--paths", type=int, default=24, help="of the table (default: %(default)s)")
    add("--held-out", metavar="SPLIT", help="compare policy and static path on all of this split, too")
    add("--seed", type=int, default=1, help="of the fit (default: %(default)s)")
    add_batches(parser)
    add("--output", help="checkpoint to write")
    add("--report", help="JSON file to write")
    return parser


def work(args: argparse.Namespace) -> None:
    """Fits, writes and prints."""
    from tabulate import tabulate

    from sd_fairseq.study.path_search import show
    from sd_fairseq.study.policy_fit import make

    found = make(args)
    held_out = {"held out: " + name: value for name, value in found.pop("held_out", {}).items()}
    print(tabulate([(name, show(value)) for name, value in {**found, **held_out}.items()]))


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Runs the command; returns its exit code."""
    return run(work, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
