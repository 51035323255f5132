"""``sd-export``: a plain model of one path of a switchable one."""

from __future__ import annotations

import argparse
import sys
from typing import Optional, Sequence

from sd_fairseq.commands.shared import make_parser, run

ABOUT = """Writes one path of a switchable checkpoint as a plain model, which needs no plugin.

A BART becomes fairseq's. A T5, GPT-2 or LLaMA (--format huggingface) becomes a folder of Hugging Face's, with the
tokenizer that stands beside the checkpoint. There a skipped layer is left out, and a sub-layer that is skipped alone
keeps its place with a zero output projection, which changes nothing and saves nothing; the command says how many.

PATH is dense, most-frequent (with --trace), or sites with a 0/1 for each layer, such as
encoder_ffn=101111,decoder_attention=111101,token_strategy=keep."""


def build_parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    parser = make_parser("sd-export", ABOUT, "sd-export checkpoint_best.pt plain.pt --path dense")
    parser.add_argument("checkpoint", help="switchable checkpoint")
    parser.add_argument("output", help="plain checkpoint to write; with --format huggingface a folder")
    text = "fairseq (BART) or huggingface (T5, GPT-2, LLaMA) (default: %(default)s)"
    parser.add_argument("--format", choices=("fairseq", "huggingface"), default="fairseq", help=text)
    parser.add_argument("--path", required=True, help="dense, most-frequent, or a path in the notation above")
    parser.add_argument("--trace", help="decision trace of the same model, for --path most-frequent")
    parser.add_argument(
        "--nearest", action="store_true", help="change as few decisions as needed for the plain model; says which"
    )
    return parser


def work(args: argparse.Namespace) -> None:
    """Exports and prints what was done."""
    from sd_fairseq.plugin.convert.export import export

    print("\n".join(export(args)))


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Runs the command; returns its exit code."""
    return run(work, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
