"""Refuses the precisions that fairseq's trainer ends in a traceback for on the machine at hand."""

import argparse

import torch

from sd_fairseq.plugin.guards.errors import InputError

FLAGS = ("fp16", "fp16-no-flatten-grads", "memory-efficient-fp16", "bf16", "memory-efficient-bf16", "cpu")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that :func:`check_precision` looks at."""
    for name in FLAGS:
        parser.add_argument("--" + name, action="store_true")


def check_precision(command: str, options: argparse.Namespace) -> None:
    """Refuses a precision that fairseq-train cannot build its optimizer or find its device for.

    Args:
        command: without prefix, such as "train".
        options: parsed with :func:`add_options`, and ``tpu``.

    Raises:
        InputError: naming the option and what to use instead.
    """
    if command != "train" or options.tpu:
        return
    for name in ("bf16", "memory_efficient_bf16"):
        if getattr(options, name):
            raise InputError(
                f"--{name.replace('_', '-')} is the wish for a TPU to fairseq-train; use --amp or "
                "--memory-efficient-fp16, or fairseq-hydra-train with common.bf16=true"
            )
    flattened = options.fp16 and not (options.fp16_no_flatten_grads or options.memory_efficient_fp16)
    if flattened and (options.cpu or not torch.cuda.is_available()):
        raise InputError(
            "--fp16 flattens the gradients on a GPU, and none is used here; add --fp16-no-flatten-grads, or use "
            "--memory-efficient-fp16 or --amp"
        )
