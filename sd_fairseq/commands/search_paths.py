"""``sd-search-paths``: what decisions per input are worth at most, by one search."""

from __future__ import annotations

import argparse
import sys
from typing import Optional, Sequence

from sd_fairseq.commands.shared import add_batches, add_model, add_sample, make_parser, run

ABOUT = """What are decisions per input worth? Best static path and oracle at a learned policy's FLOPs, by one search.

A greedy search removes what costs the least quality per FLOP saved; every path it tries is scored on every example,
teacher-forced. At equal mean FLOPs it then compares

  static     the best one path for all
  oracle     the best path of each example, chosen by the reported loss: an upper bound
  halves     the path chosen by every second target token and scored on the others, which chance does not help
  by length  a path for each of four ranges of source lengths, chosen on half of the examples"""


def build_parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    parser = make_parser("sd-search-paths", ABOUT, "sd-search-paths DATA --path CHECKPOINT --examples 300")
    add_model(parser, "valid")
    add_sample(parser, 300)
    text = "mean FLOPs at which the search ends, or the policy's (default: %(default)s)"
    parser.add_argument("--lowest", type=float, default=0.6, help=text)
    add_batches(parser)
    parser.add_argument("--output", help="JSON file to write")
    return parser


def work(args: argparse.Namespace) -> None:
    """Searches, writes and prints."""
    import json

    from tabulate import tabulate

    from sd_fairseq.study.path_scorer import load
    from sd_fairseq.study.path_search import analyse, greedy_search, show
    from sd_fairseq.whole_files import check_places, write_json

    check_places([args.output], [args.path])
    scorer = load(args)
    of_policy = float(scorer.score_policy()[0].flops.mean())
    found = analyse(scorer, greedy_search(scorer, min(args.lowest, of_policy)))
    if args.output:
        write_json(args.output, found)
    print(tabulate([(name, show(value)) for name, value in found.items() if name != "static_frontier"]))
    print(tabulate([(p["flops_generation"], p["nll"], json.dumps(p["path"])) for p in found["static_frontier"]]))


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Runs the command; returns its exit code."""
    return run(work, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
