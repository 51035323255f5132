"""Rewrites a modern plain BART checkpoint into the layouts that fairseq has written since 2019; same weights in all."""

import argparse
from typing import Any, Dict

import torch

LAYERS = 3
FUSED = ("in_proj", "out_proj", "fc1", "fc2")


def with_mask_row(state: Dict[str, Any]) -> None:
    """Pre-trained BART's embedding: one row, of ``<mask>``, more than the data's dictionary has."""
    model = state["model"]
    for key in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "decoder.output_projection.weight"):
        model[key] = torch.cat([model[key], torch.full_like(model[key][:1], 9.0)])


def with_heads(state: Dict[str, Any]) -> None:
    """A classification head beside the rest."""
    width = state["model"]["encoder.embed_tokens.weight"].size(1)
    for name, rows in (("dense", width), ("out_proj", 3)):
        state["model"][f"classification_heads.mnli.{name}.weight"] = torch.randn(rows, width)
        state["model"][f"classification_heads.mnli.{name}.bias"] = torch.zeros(rows)


def with_fused_copies(state: Dict[str, Any]) -> None:
    """fairseq 0.12.2's second names for encoder parameters."""
    model = state["model"]
    for layer in range(LAYERS):
        for name in FUSED:
            for kind in ("weight", "bias"):
                model[f"encoder.layers.{layer}.{name}_{kind}"] = torch.ones(5)


def of_2019(state: Dict[str, Any]) -> Dict[str, Any]:
    """Options in one Namespace under ``args``, no ``cfg``, running averages as objects."""
    from fairseq.logging.meters import AverageMeter, TimeMeter

    options = {key: value for key, value in vars(state["cfg"]["model"]).items() if key != "_name"}
    for later in ("tpu", "azureml_logging", "user_dir", "finetune_from_model", "path", "post_process"):
        options.pop(later, None)
    options.update(remove_bpe=None, min_lr=-1.0, lr=[0.001])
    meter = AverageMeter()
    meter.update(3.0)
    return {
        "args": argparse.Namespace(**options),
        "model": state["model"],
        "optimizer_history": [
            {
                "criterion_name": "LabelSmoothedCrossEntropyCriterion",
                "optimizer_name": "FairseqAdam",
                "lr_scheduler_state": {"best": 3.0},
                "num_updates": 1,
            }
        ],
        "last_optimizer_state": state["last_optimizer_state"],
        "extra_state": {
            "train_iterator": {"epoch": 1, "iterations_in_epoch": 1},
            "val_loss": 3.0,
            "train_meters": {"train_loss": meter, "train_wall": TimeMeter()},
        },
    }
