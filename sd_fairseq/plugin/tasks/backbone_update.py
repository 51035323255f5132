"""The backbone's half of an update (Algorithm 1, the w half) under fairseq's optimizer and data-parallel wrappers."""

from __future__ import annotations

from typing import Any, Callable

import torch
from fairseq.optim.amp_optimizer import AMPOptimizer
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sd_fairseq.plugin.guards.errors import InputError


def update_backbone(step: Callable[[], None], optimizer: Any, frozen: bool) -> bool:
    """Moves the backbone unless it is frozen.

    An overflow under ``--fp16`` never gets here: fairseq raises it before the optimizer is asked. ``--amp``'s scaler
    skips the step in silence, and fairseq's trainer then runs the same batch again.

    Args:
        step: moves the backbone.
        optimizer: fairseq's, which ``step`` uses.
        frozen: True = leave the backbone as it is.

    Returns:
        False if ``--amp``'s loss scaler found an overflow, so that this update does not count.
    """
    scaler = optimizer.scaler if isinstance(optimizer, AMPOptimizer) else None
    scale = 0.0 if scaler is None else scaler.get_scale()
    if not frozen:
        step()
    elif scaler is not None:
        scaler.update()  # fairseq has unscaled the gradients, which the scaler allows once between two updates
    return scaler is None or scaler.get_scale() >= scale


def complete_gradients(model: Any) -> None:
    """Gives the sub-layers that no example of the effective batch ran the gradient 0, which is their mean.

    Without one an optimizer passes a parameter by: no momentum, no decay. fairseq's ``legacy_ddp`` and flattened
    ``--fp16`` have zeros there, a single float32 worker and ``pytorch_ddp`` have none: they would learn differently.

    Args:
        model: the (possibly wrapped) switchable model, gradients summed over all workers.
    """
    for stack in (model.encoder, model.decoder):
        for parameter in stack.layers.parameters():
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)


def check_unused_parameters(model: nn.Module) -> None:
    """Refuses torch's data parallel engine where it waits for the gradients of sub-layers that a worker skips.

    Args:
        model: as fairseq wrapped it.

    Raises:
        InputError: ``DistributedDataParallel`` that does not look for unused parameters.
    """
    for module in model.modules():
        if isinstance(module, DistributedDataParallel) and not module.find_unused_parameters:
            raise InputError(
                "--ddp-backend pytorch_ddp waits for the gradient of every sub-layer, a worker whose examples skip one "
                "has none: add --find-unused-parameters, or use --ddp-backend legacy_ddp"
            )
