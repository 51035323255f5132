"""fairseq checkpoints that no training wrote: options, weights and what fairseq looks for before it loads a model."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Dict

import torch
from torch import Tensor

from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.whole_files import whole


def plain_options(options: Dict[str, Any]) -> Any:
    """Returns options as a checkpoint holds them; what is no plain value is left out.

    They are an ``OrderedDict`` that has its items as attributes too: the only container with attributes which
    ``torch.load`` takes from torch 2.6 on without an allow-list. A ``Namespace``, fairseq's own, it refuses.
    """
    values = {key: value for key, value in options.items() if _is_plain(value)}
    args: Any = OrderedDict(values)
    args.__dict__.update(values)
    return args


def _is_plain(value: Any) -> bool:
    return value is None or type(value) in (bool, int, float, str)


def plain_checkpoint(args: Any, weights: Dict[str, Tensor]) -> Dict[str, Any]:
    """Returns a checkpoint of plain containers and tensors.

    Args:
        args: what :func:`plain_options` made.
        weights: the model's state.
    """
    return {
        "args": args,
        "cfg": None,
        "model": weights,
        # What fairseq looks for before it loads a model; there is no optimizer to go on with.
        "optimizer_history": [{"optimizer_name": "", "lr_scheduler_state": {}, "num_updates": 0}],
        "extra_state": {"train_iterator": {"epoch": 1, "iterations_in_epoch": 0}},
        "last_optimizer_state": None,
    }


def write_checkpoint(path: str, checkpoint: Dict[str, Any]) -> None:
    """Writes beside the place and renames, so that the file is whole or absent.

    Raises:
        InputError: it cannot be written.
    """
    try:
        with whole(path) as part:
            torch.save(checkpoint, part)
    except (OSError, RuntimeError) as error:  # torch reports a missing folder as a RuntimeError
        raise InputError(f"cannot write {path}: {error}") from error
