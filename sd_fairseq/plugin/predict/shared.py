"""What predictors share: the checkpoint that is loaded, the traces of a batch, the summary, the files."""

from __future__ import annotations

import argparse
import os
from typing import Any, Dict, List, Sequence

import torch
from torch import Tensor

from sd_fairseq.cost.path_flops import Lengths
from sd_fairseq.decision.decisions import Decisions
from sd_fairseq.decision.trace import TraceRecord
from sd_fairseq.evaluation.skip_report import summarise_trace
from sd_fairseq.plugin.guards.checkpoint_structure import stored_task
from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.plugin.guards.loading import loading
from sd_fairseq.plugin.guards.preflight import check_checkpoint
from sd_fairseq.plugin.models.hub_interface import SwitchableHubInterface
from sd_fairseq.plugin.models.switchable_bart import SwitchableBARTModel
from sd_fairseq.plugin.tasks.trace_recorder import describe_batch
from sd_fairseq.whole_files import write_json


def load_hub(options: argparse.Namespace, bpe_options: Dict[str, str], task: str) -> SwitchableHubInterface:
    """Loads a checkpoint.

    Args:
        options: with path, data, dense and cuda.
        bpe_options: what fairseq's hub interface is told about the data's tokeniser.
        task: that the checkpoint was trained for.

    Raises:
        InputError: an unreadable checkpoint, or one of another task.
    """
    check_checkpoint(options.path, "--path")
    trained = stored_task(options.path)
    if trained not in (None, task, task.replace("switchable_", "", 1)):  # fairseq's own gets a policy here
        raise InputError(f"--path {options.path}: was trained with --task {trained}, expected --task {task}")
    folder, name = os.path.split(os.path.abspath(options.path))
    overrides: Dict[str, Any] = {"sd_policy": "dense"} if options.dense else {}
    data = os.path.abspath(options.data)
    with loading(options.path, "--path"):
        hub = SwitchableBARTModel.from_pretrained(folder, name, data, **bpe_options, **overrides)
    return hub.cuda() if options.cuda else hub


def check_batch_size(options: argparse.Namespace) -> None:
    """Refuses an empty batch.

    Raises:
        InputError: naming the option.
    """
    if options.batch_size < 1:
        raise InputError(f"--batch-size {options.batch_size} is not 1 or more")


def describe_windows(
    predictor: Any,
    decisions: Decisions,
    lengths: Tensor,
    ids: List[int],
    rows: List[List[Dict[str, Tensor]]],
    head: str,
    seconds: float,
) -> List[TraceRecord]:
    """Describes what a batch took whose decoder runs once over the source.

    Args:
        predictor: with hub, space and shape.
        decisions: of B examples.
        lengths: LongTensor [B], tokens.
        ids: of the examples.
        rows: what fairseq's generator would return for each.
        head: ``head:NAME``, the trace's word for how the output was made.
        seconds: of one example.
    """
    name = getattr(predictor.hub.model.args, "arch", type(predictor.hub.model).__name__)
    about = {"beam": 1, "seconds": seconds, "generation": head, "model": name}
    taken = decisions.to(torch.device("cpu"))
    return describe_batch(predictor.space, predictor.shape, taken, Lengths(lengths, lengths), ids, rows, about)


def summarise_paths(traces: Sequence[TraceRecord]) -> Dict[str, Any]:
    """Collects FLOPs, seconds and skip rates."""
    report = summarise_trace(traces)
    names = "flops_generation flops_paper seconds skip_rates token_strategies distinct_paths top_path_share"
    return {name: getattr(report, name) for name in names.split()}


def write_summary(options: argparse.Namespace, summary: Dict[str, Any]) -> None:
    """Writes ``--summary``, if it is wanted."""
    if options.summary:
        write_json(options.summary, summary)
