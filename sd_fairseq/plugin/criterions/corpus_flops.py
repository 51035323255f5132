"""What the training pairs cost on the dense path, on average: the unit of ``--sd-flops-average corpus``.

It is read off the data's lengths, so it is the same for every worker, every order of the batches and every restart.
"""

from __future__ import annotations

from typing import Any

import torch

from sd_fairseq.cost.path_flops import Lengths, ModelShape, dense_flops
from sd_fairseq.decision.decisions import DecisionSpace
from sd_fairseq.plugin.guards.errors import InputError

FLOPS_AVERAGES = ("examples", "corpus")


def mean_dense_flops(task: Any, definition: str, shape: ModelShape, space: DecisionSpace, beam: int) -> float:
    """Averages the FLOPs of the dense path over the pairs that a task trains on.

    Args:
        task: fairseq's, its training data loaded.
        definition: of FLOPs.
        shape, space: of the model.
        beam: that the FLOPs of generation are counted for.

    Raises:
        InputError: data without source and target lengths, such as sentences to classify.
    """
    settings = getattr(task, "cfg", None) or task.args
    dataset = task.dataset(getattr(settings, "train_subset", "train"))
    sides = [getattr(dataset, name, None) for name in ("src_sizes", "tgt_sizes")]
    if any(side is None for side in sides):
        raise InputError(
            f"--sd-flops-average corpus needs pairs of source and target, found {type(dataset).__name__}; "
            "expected --task switchable_translation, or --sd-flops-average examples"
        )
    source, target = (torch.as_tensor(side).long() for side in sides)
    return float(dense_flops(definition, shape, space, Lengths(source, target, beam)).mean())
