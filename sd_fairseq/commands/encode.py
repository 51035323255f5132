"""``sd-encode``: lines of text -> lines of token ids, for ``fairseq-preprocess``."""

from __future__ import annotations

import argparse
import sys
from typing import Optional, Sequence

from sd_fairseq.commands.shared import make_parser, run

ABOUT = """Turns every line of a text into the token ids of an imported model, as fairseq-preprocess reads them."""


def build_parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    parser = make_parser("sd-encode", ABOUT, "sd-encode t5/tokenizer.json train.source train.ids.source")
    parser.add_argument("tokenizer", help="tokenizer.json or spiece.model")
    parser.add_argument("input", help="text, one example a line")
    parser.add_argument("output", help="file to write")
    text = r"\n in a text stands for the end of a line, as chat templates need it"
    parser.add_argument("--line-ends", action="store_true", help=text)
    return parser


def work(args: argparse.Namespace) -> None:
    """Encodes line by line."""
    from sd_fairseq.plugin.text.tokenizer import SDTokenizer, SDTokenizerConfig
    from sd_fairseq.user_files import numbered_lines
    from sd_fairseq.whole_files import check_places, write_text

    check_places([args.output], [args.input, args.tokenizer])
    tokenizer = SDTokenizer(SDTokenizerConfig(sd_tokenizer=args.tokenizer, sd_line_ends=args.line_ends))
    lines = (line.rstrip("\r\n") for _, line in numbered_lines(args.input))
    write_text(args.output, "".join(tokenizer.encode(line) + "\n" for line in lines))


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Runs the command; returns its exit code."""
    return run(work, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
