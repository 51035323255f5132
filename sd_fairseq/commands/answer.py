"""``sd-answer``: questions answered, and what each one skipped."""

from __future__ import annotations

import argparse
import sys
from typing import Optional, Sequence

from sd_fairseq.commands.shared import add_prediction, make_parser, run

ABOUT = """Answers questions and says what each one skipped.

Reads SQuAD 1.1 or 2.0 JSON, or JSON lines of {"id", "question", "context"}. Prints a summary, with scores where the
file has answers."""


def build_parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    example = "sd-answer SQUAD --path checkpoint_best.pt --input dev-v1.1.json --output answers.json"
    parser = make_parser("sd-answer", ABOUT, example)
    add = parser.add_argument
    add("data", metavar="DATA", help="folder made by examples/squad/prepare.py")
    add("--input", required=True, metavar="FILE", help="SQuAD .json or .jsonl, plain or .gz")
    add("--output", metavar="FILE", help="id -> answer, JSON, as SQuAD's own scripts read it")
    add("--na-probs", metavar="FILE", help="id -> probability of having no answer, JSON")
    add("--n-best-output", metavar="FILE", help="id -> best answers with probabilities, JSON")
    add("--decisions", metavar="FILE", help="path, lengths, FLOPs and seconds of windows, JSON lines")
    add_prediction(parser, "windows")
    add("--n-best", type=int, default=20, metavar="N", help="answers to keep (default: %(default)s)")
    add("--answer-tokens", type=int, default=30, metavar="N", help="longest answer (default: %(default)s)")
    add(
        "--no-answer-threshold",
        type=float,
        metavar="P",
        help="probability of having no answer above which there is none (default: 0.5 if the file has questions "
        "without an answer, as SQuAD 2.0, else every question gets an answer)",
    )
    return parser


def work(args: argparse.Namespace) -> None:
    """Answers, writes and prints."""
    import json

    from sd_fairseq.plugin.predict.squad import answer_all

    print(json.dumps(answer_all(args)))


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Runs the command; returns its exit code."""
    return run(work, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
