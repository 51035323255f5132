"""Finds the keep-probability at which random decisions cost what a learned policy's did (the control of Table 8).

It is the NUMBER of ``--model-overrides "{'sd_policy': 'random', 'sd_random_keep': NUMBER}"``.
"""

from __future__ import annotations

from typing import Any, List, Optional

import torch
from fairseq import checkpoint_utils

from sd_fairseq.cost.path_flops import Lengths, ModelShape, expected_relative_flops
from sd_fairseq.decision.decisions import DecisionSpace
from sd_fairseq.decision.given_policies import uniform_distribution
from sd_fairseq.decision.trace import TraceRecord
from sd_fairseq.plugin.guards.dictionaries import check_dictionaries
from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.plugin.guards.loading import loading
from sd_fairseq.plugin.guards.preflight import check_checkpoint
from sd_fairseq.plugin.models.conversion import overrides_for


def matching_keep_probability(
    space: DecisionSpace, shape: ModelShape, records: List[TraceRecord], flops: Optional[float] = None
) -> float:
    """Returns the keep-probability whose expected relative FLOPs equal the records' mean, or those that are given.

    Args:
        space, shape: of the model; random decisions run no policy network.
        records: the learned policy's trace; of any policy where ``flops`` are given: its lengths count.
        flops: mean relative FLOPs to match; None = the records'.

    Raises:
        InputError: ``flops`` that are no share, a trace of a model of another depth, or a mean that no
            keep-probability reaches.
    """
    if flops is not None and not 0 < flops < 1:
        raise InputError(f"--flops {flops} is not between 0 and 1")
    depths = space.encoder_layers, space.decoder_layers
    for record in records:
        found = len(record.encoder_ffn), len(record.decoder_ffn)
        if found != depths:
            raise InputError(
                f"example {record.id} of the trace is of a model of {found[0]} + {found[1]} layers, the checkpoint has "
                f"{depths[0]} + {depths[1]}"
            )
    target = sum(record.relative_flops_generation for record in records) / len(records) if flops is None else flops
    lengths = Lengths(
        torch.tensor([record.source_tokens for record in records]),
        torch.tensor([record.decoder_steps for record in records]),
        records[0].beam,
    )

    def expected(keep: float) -> float:
        distribution = uniform_distribution(space, keep, len(records))
        return float(expected_relative_flops("generation", shape, distribution, lengths).mean())

    low, high = 0.0, 1.0
    target = min(target, expected(high))  # a policy that skips nothing costs a little more than dense: itself
    if target < expected(low):
        raise InputError(
            f"mean FLOPs {target:.3f} are below {expected(low):.3f}, where random decisions skip everything"
        )
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if expected(middle) < target else (low, middle)
    return (low + high) / 2


def load_model(path: str, data: str, overrides: str = "{}") -> Any:
    """Loads a switchable model; a plain BART becomes one.

    Args:
        path: its checkpoint.
        data: folder of the dictionaries.
        overrides: of the model's options, JSON.

    Raises:
        InputError: an unreadable checkpoint, a folder without dictionaries, or a model of another kind.
    """
    check_checkpoint(path, "--path")
    check_dictionaries(data)
    options = {**overrides_for(path, overrides, data), "sd_policy": "dense"}
    with loading(path, "--path"):
        models, _, _ = checkpoint_utils.load_model_ensemble_and_task([path], arg_overrides=options)
    if not hasattr(models[0], "space"):
        raise InputError(f"{path} holds a {type(models[0]).__name__}, expected a switchable_bart")
    return models[0]
