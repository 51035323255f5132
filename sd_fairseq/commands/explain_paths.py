"""``sd-explain-paths``: what predicts the path that a document takes."""

from __future__ import annotations

import argparse
import sys
from typing import Optional, Sequence

from sd_fairseq.commands.shared import make_parser, run

ABOUT = """What predicts the path? Length, source, section and first word of a document against what the policy decided.

A decision tree guesses each example's path from one property at a time, on examples that it has not seen (5-fold).
What it must beat is the guess of the most frequent path. Line n of PAIRS is example n of the trace."""


def build_parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    example = "sd-explain-paths test.trace.jsonl --pairs test.jsonl.gz --plot paths.png"
    parser = make_parser("sd-explain-paths", ABOUT, example)
    parser.add_argument("trace", help="of fairseq-generate --sd-trace")
    parser.add_argument("--pairs", required=True, help="SPLIT.jsonl.gz that was generated from, in its order")
    parser.add_argument("--plot", metavar="PNG", help="draw the paths by length and domain, too")
    parser.add_argument("--output", help="JSON file to write")
    return parser


def work(args: argparse.Namespace) -> None:
    """Guesses, draws, writes and prints."""
    from tabulate import tabulate

    from sd_fairseq.decision.trace import read_trace
    from sd_fairseq.study.path_analysis import analyse, draw, read_pairs
    from sd_fairseq.whole_files import check_places, write_json

    check_places([args.output, args.plot], [args.trace, args.pairs])
    records, pairs = read_trace(args.trace), read_pairs(args.pairs)
    found = analyse(records, pairs)
    if args.plot:
        draw(records, pairs, args.plot)
    if args.output:
        write_json(args.output, found)
    rows = [("(most frequent path)", found["most_frequent"]), *found["guessed"].items()]
    print(f"{found['examples']} examples, {found['distinct_paths']} distinct paths")
    print(tabulate(rows, ["guess from", "right"], tablefmt="github", floatfmt=".3f"))


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Runs the command; returns its exit code."""
    return run(work, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
