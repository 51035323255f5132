"""``sd-import``: a switchable checkpoint of another package's pretrained T5, GPT-2 or LLaMA."""

from __future__ import annotations

import argparse
import sys
from typing import Optional, Sequence

from sd_fairseq.commands.shared import make_parser, run

ABOUT = """Writes a checkpoint of --arch switchable_t5, _gpt2 or _llama from pretrained weights, and its tokenizer.

SOURCE is a folder of Hugging Face's (config.json and model.safetensors or pytorch_model.bin), one of a T5's ONNX graphs
(encoder.onnx and decoder.onnx, 8-bit ones too; needs the package onnx), a LLaMA's .gguf file (also Q4_0, Q4_1, Q8_0),
or a .pt checkpoint of fairseq's transformer_lm (its dict.txt beside it), such as transformer_lm_gpt2_small's."""


def build_parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    parser = make_parser("sd-import", ABOUT, "sd-import flan-t5-small t5")
    parser.add_argument("source", help="folder, .gguf or .pt file of the pretrained model")
    parser.add_argument("output", help="folder to write model.pt, dict.txt and the tokenizer to")
    return parser


def work(args: argparse.Namespace) -> None:
    """Imports and prints what was done."""
    from sd_fairseq.plugin.convert.import_model import import_model

    print("\n".join(import_model(args.source, args.output)))


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Runs the command; returns its exit code."""
    return run(work, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
