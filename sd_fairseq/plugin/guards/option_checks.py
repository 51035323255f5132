"""Refuses the options of fairseq that end in a traceback far from their cause, whatever the model is."""

import argparse
from typing import Any

import numpy

from sd_fairseq.plugin.guards.errors import InputError

_NO_FILE = "@@ "  # what fairseq takes for a file name where none is given


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that :func:`check_options` looks at."""
    parser.add_argument("--num-batch-buckets", type=int, default=0)
    parser.add_argument("--constraints", nargs="?", const="ordered")
    parser.add_argument("--print-step", action="store_true")
    parser.add_argument("--print-alignment", nargs="?", const="hard")
    parser.add_argument("--replace-unk", nargs="?", const=_NO_FILE)


def check_options(command: str, options: argparse.Namespace) -> None:
    """Refuses what fairseq's own code cannot do here.

    Args:
        command: without prefix, such as "generate".
        options: parsed with :func:`add_options`.

    Raises:
        InputError: naming the option and what to do instead.
    """
    if options.num_batch_buckets > 0 and not takes_interpolation():
        raise InputError(
            "--num-batch-buckets {} needs an older numpy, found {}: fairseq asks its percentile() for an argument "
            "that is gone; leave the option out".format(options.num_batch_buckets, numpy.__version__)
        )
    if command == "generate" and options.constraints:
        raise InputError("--constraints needs fairseq-interactive, which reads them from its input behind a tab")
    if command in ("generate", "interactive"):
        _check_output(options)


def _check_output(options: argparse.Namespace) -> None:
    """Refuses what the two generating commands cannot print."""
    if options.print_step:
        raise InputError("--print-step is for non-autoregressive models, which count refinement steps")
    if options.replace_unk == _NO_FILE:
        raise InputError("--replace-unk needs a file of 'source target' lines, or '' to copy the source word")
    if options.replace_unk is not None and options.print_alignment is not None:
        raise InputError("--replace-unk and --print-alignment read the same alignment in two ways; give one of them")


def takes_interpolation() -> bool:
    """Tells whether numpy.percentile still has its argument of before 1.22, which fairseq uses."""
    try:
        numpy.percentile([1], 50, interpolation="lower")  # type: ignore[call-overload]
    except TypeError:
        return False
    return True


def check_workers_agree(args: Any) -> None:
    """Refuses the engines of fairseq whose workers do not all hold the same whole model after every update.

    Raises:
        InputError: naming the option.
    """
    apart = "lets the workers' backbones drift apart, while one policy is learned from all of them"
    refused = {"fully_sharded": "shards sub-layers that a worker may skip", "slowmo": apart}
    backend = str(getattr(args, "ddp_backend", None))
    if backend in refused:
        raise InputError(f"--ddp-backend {backend} {refused[backend]}; use legacy_ddp")
    if getattr(args, "use_bmuf", False):
        raise InputError(f"--use-bmuf {apart}; use --ddp-backend legacy_ddp")
