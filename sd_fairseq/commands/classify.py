"""``sd-classify``: the lines of a file classified, and what each one skipped."""

from __future__ import annotations

import argparse
import sys
from typing import Optional, Sequence

from sd_fairseq.commands.shared import add_prediction, make_parser, run

ABOUT = """Classifies the lines of a file and says what each one skipped.

Writes one JSON line an example: id, label, probabilities, the file's own label where it has one, decisions, lengths,
FLOPs and seconds. Prints a summary."""


def build_parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    example = "sd-classify RTE-bin --path checkpoint_best.pt --input RTE/dev.tsv --output out.jsonl"
    parser = make_parser("sd-classify", ABOUT, example)
    add = parser.add_argument
    add("data", metavar="DATA", help="folder made by examples/glue/prepare.py")
    add("--input", required=True, metavar="FILE", help=".tsv, .csv or .jsonl, plain or .gz")
    add("--output", metavar="FILE", help="predictions, JSON lines")
    add_prediction(parser, "examples")
    add("--columns", nargs="+", metavar="NAME", help="columns of the texts, if others than of the data")
    add("--label-column", metavar="NAME", help="column of the label, if another than of the data")
    add("--gpt2-folder", metavar="FOLDER", help="encoder.json and vocab.bpe, for data of GPT-2's BPE")
    return parser


def work(args: argparse.Namespace) -> None:
    """Classifies, writes and prints."""
    import json

    from sd_fairseq.plugin.predict.sentences import classify

    print(json.dumps(classify(args)))


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Runs the command; returns its exit code."""
    return run(work, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
