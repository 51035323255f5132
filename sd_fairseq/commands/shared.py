"""What the console scripts share: a parser that has ``--version`` and an example, and errors of one line.

Nothing heavy is imported here, and a command imports its work when it runs: ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
from typing import Optional

from sd_fairseq.errors import QuietParser, end_quietly, run
from sd_fairseq.version import __version__

__all__ = ["add_batches", "add_model", "add_prediction", "add_sample", "make_parser", "run"]


def make_parser(name: str, about: str, example: str) -> argparse.ArgumentParser:
    """Makes a command's parser.

    Args:
        name: as it is typed, ``sd-...``.
        about: what it does; line breaks are kept.
        example: one command line.
    """
    end_quietly()
    epilog = "example:\n  " + example
    kind = argparse.RawDescriptionHelpFormatter
    parser = QuietParser(prog=name, description=about, epilog=epilog, formatter_class=kind)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def add_model(parser: argparse.ArgumentParser, split: Optional[str]) -> None:
    """Adds data, checkpoint and split.

    Args:
        parser: of a command that loads a switchable model with a split.
        split: taken by default; None = has to be named.
    """
    add = parser.add_argument
    add("data", help="binarised data folder")
    add("--path", required=True, help="checkpoint of the switchable model")
    add("--model-overrides", default="{}", help='JSON, such as {"sd_space": "encoder"}')
    add("--gen-subset", default=split, help="split (default: %(default)s)" if split else "split, has to be named")
    add("--cuda", action="store_true", help="run on the GPU")


def add_batches(parser: argparse.ArgumentParser, max_tokens: int = 4096) -> None:
    """Adds how much is scored side by side, and for which beam FLOPs are counted."""
    parser.add_argument("--beam", type=int, default=4, help="beam that the FLOPs are counted for")
    text = "source or target tokens side by side (default: %(default)s)"
    parser.add_argument("--max-tokens", type=int, default=max_tokens, help=text)


def add_sample(parser: argparse.ArgumentParser, examples: int) -> None:
    """Adds the options that choose the pairs; ``examples`` are taken by default."""
    add = parser.add_argument
    add("--examples", type=int, default=examples, help="so many, 0 = all (default: %(default)s)")
    add(
        "--sample",
        choices=("examples", "batches"),
        default="examples",
        help="pairs evenly spread over all, sorted by length (default); or every n-th batch from the shortest on, with "
        "at least so many pairs: mostly short ones where few are asked for",
    )
    add("--every", type=int, default=0, help="instead: every n-th batch, sorted by length, up to --examples")


def add_prediction(parser: argparse.ArgumentParser, what: str) -> None:
    """Adds the options of a command that answers with a trained head; ``what`` stands side by side in a batch."""
    add = parser.add_argument
    add("--path", required=True, metavar="CHECKPOINT", help="trained checkpoint")
    add("--summary", metavar="FILE", help="scores, FLOPs and skip rates, JSON")
    add("--dense", action="store_true", help="skip nothing (a comparison on the same weights)")
    add("--batch-size", type=int, default=32, metavar="N", help=f"{what} side by side (default: %(default)s)")
    add("--cuda", action="store_true", help="run on the GPU")
