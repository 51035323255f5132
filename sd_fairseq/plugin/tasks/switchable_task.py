"""What every fairseq task needs for switchable models: policy updates, whole test sets, n-gram blocking, a trace."""

from __future__ import annotations

import atexit
import logging
import sys
import time
from contextlib import nullcontext
from functools import partial
from typing import Any, ContextManager, Dict, List, Optional

import torch
from fairseq.data import FairseqDataset
from fairseq.optim.amp_optimizer import AMPOptimizer

from sd_fairseq.plugin.generation.fast_model import FastModel, why_not_fast
from sd_fairseq.plugin.guards.errors import InputError, fairseq_command
from sd_fairseq.plugin.guards.preflight import prepare_training
from sd_fairseq.plugin.guards.presets import PRESETS, Run, fill_criterion
from sd_fairseq.plugin.models.conversion import obey_architecture_override, run_plain_as_switchable, take_path
from sd_fairseq.plugin.repairs.ngram_blocker import NGramBlocker
from sd_fairseq.plugin.tasks.backbone_update import check_unused_parameters, complete_gradients, update_backbone
from sd_fairseq.plugin.tasks.best_checkpoint import BestScore
from sd_fairseq.plugin.tasks.policy_summary import PolicySummary
from sd_fairseq.plugin.tasks.trace_recorder import TraceRecorder

logger = logging.getLogger(__name__)
GENERATING = ("generate", "interactive")


class SwitchableTaskMixin:
    """Put before a fairseq task's class; see ``switchable_translation``."""

    updates_policies = True
    policy_criterion: Optional[Any] = None
    policy_summary: Optional[PolicySummary] = None
    run_options = Run()
    model_values: List[str] = []
    wrapper_checked = False
    trace_recorder: Optional[TraceRecorder] = None

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """As fairseq's; a plain BART that is loaded runs as a switchable one that skips nothing.

        A training that starts from a checkpoint has its sizes (see
        :mod:`~sd_fairseq.plugin.guards.checkpoint_structure`).
        """
        obey_architecture_override(cfg)
        if from_checkpoint:
            run_plain_as_switchable(cfg)
            if getattr(self.cfg, "sd_path", None):  # type: ignore[attr-defined]
                take_path(cfg, self.cfg.sd_path)  # type: ignore[attr-defined]
        else:
            self.model_values = prepare_training(cfg)
            self.run_options = Run.of(cfg)
        return super().build_model(cfg, from_checkpoint)  # type: ignore[misc]

    def build_criterion(self, cfg: Any, *args: Any, **kwargs: Any) -> Any:
        """Builds the criterion, its preset filled in, and remembers the one that has a policy to update."""
        if getattr(cfg, "_name", getattr(cfg, "criterion", None)) == "sd_policy_criterion":
            filled = fill_criterion(cfg, self.run_options)
            if filled:
                preset = getattr(cfg, "sd_preset", None) or PRESETS[0]
                logger.info("preset %s: %s", preset, ", ".join([*self.model_values, *filled]))
        criterion = super().build_criterion(cfg, *args, **kwargs)  # type: ignore[misc]
        self.policy_criterion = criterion if hasattr(criterion, "update_policy") else None
        return criterion

    def begin_valid_epoch(self, epoch: int, model: Any) -> None:
        """As fairseq's; a best score of the time in which the policy learned is forgotten."""
        super().begin_valid_epoch(epoch, model)  # type: ignore[misc]
        criterion = self.policy_criterion
        freeze = criterion.cfg.sd_policy_freeze_update if criterion is not None else 0
        if freeze and getattr(model, "policy_learner", None) is not None:
            BestScore(self.state.state_dict).before_validation(criterion.update + 1 < freeze)  # type: ignore

    def reduce_metrics(self, logging_outputs: List[Dict[str, Any]], criterion: Any) -> None:
        """As fairseq's; the summary of the policy follows what trainings log."""
        super().reduce_metrics(logging_outputs, criterion)  # type: ignore[misc]
        if criterion is self.policy_criterion and getattr(criterion, "learns_policy", False) and criterion.training:
            if self.policy_summary is None:
                self.policy_summary = PolicySummary(criterion.cfg, self.run_options.max_update)
            self.policy_summary.follow(criterion.update, logging_outputs)

    def train_step(
        self,
        sample: Any,
        model: Any,
        criterion: Any,
        optimizer: Any,
        update_num: int,
        ignore_grad: bool = False,
        **extra,
    ) -> Any:
        """As fairseq's; a batch that only fills up a worker's share leaves no policy gradient behind."""
        if not self.wrapper_checked:
            check_unused_parameters(model)
            self.wrapper_checked = True
        policy_criterion = self.policy_criterion
        if policy_criterion is not None:
            policy_criterion.update = update_num
            self.uses_loss_scaling = getattr(optimizer, "scaler", None) is not None
        pending = 0 if policy_criterion is None else len(policy_criterion.pending)
        with mixed_precision_of_cpu(optimizer, model):
            result = super().train_step(  # type: ignore[misc]
                sample, model, criterion, optimizer, update_num, ignore_grad, **extra
            )
        if ignore_grad and policy_criterion is not None:
            del policy_criterion.pending[pending:]
        return result

    def optimizer_step(self, optimizer: Any, model: Any, update_num: int) -> None:
        """Moves the backbone (unless only the policy learns yet), then the policy."""
        frozen = self.policy_criterion is not None and self.policy_criterion.backbone_is_frozen()
        if hasattr(model, "space"):
            complete_gradients(model)
        step = partial(super().optimizer_step, optimizer, model, update_num)  # type: ignore[misc]
        counts = update_backbone(step, optimizer, frozen)
        if self.policy_criterion is not None and counts:
            self.policy_criterion.update_policy(model)

    def get_batch_iterator(self, dataset: FairseqDataset, *args: Any, **kwargs: Any) -> Any:
        """As fairseq's, but an evaluation never loses the sentences of its last batch.

        Raises:
            InputError: a sentence longer than the model takes, unless such sentences are to be left out.
        """
        if dataset is not self.datasets.get(self._train_subset()):  # type: ignore[attr-defined]
            kwargs["required_batch_size_multiple"] = 1
            if not kwargs.get("ignore_invalid_inputs", False):
                check_lengths(dataset, kwargs.get("max_positions"))
        iterator = super().get_batch_iterator(dataset, *args, **kwargs)  # type: ignore[misc]
        recorder = self._recorder()
        if recorder is not None:
            shard, num_shards = kwargs.get("shard_id", 0), kwargs.get("num_shards", 1)
            recorder.expect(dataset, iterator.frozen_batches, shard, num_shards)
        return iterator

    def _recorder(self) -> Optional[TraceRecorder]:
        """Returns who follows a generation: one that is traced, or one that a command of fairseq makes."""
        trace = getattr(self.cfg, "sd_trace", None)  # type: ignore[attr-defined]
        command = fairseq_command(sys.argv[0]) if sys.argv else None
        if self.trace_recorder is None and (trace or command in GENERATING):
            self.trace_recorder = TraceRecorder(trace)
            self.trace_recorder.summary.interactive = command == "interactive"
            if command in GENERATING:
                atexit.register(self.trace_recorder.summary.report)
        return self.trace_recorder

    def _train_subset(self) -> str:
        return getattr(self.cfg, "train_subset", "train")  # type: ignore[attr-defined]

    def build_generator(self, models: List[Any], args: Any, *more: Any, **kwargs: Any) -> Any:
        """As fairseq's, on the fast model unless an option needs fairseq's; n-grams are blocked without CUDA too."""
        generator = super().build_generator(models, args, *more, **kwargs)  # type: ignore[misc]
        self._run_fast(generator, models, args)
        size = getattr(args, "no_repeat_ngram_size", 0) or 0
        if size > 0 and hasattr(generator, "repeat_ngram_blocker"):
            generator.repeat_ngram_blocker = NGramBlocker(size)
        recorder = self._recorder()
        if recorder is not None:
            recorder.describe_generation(args, generator)
            recorder.summary.generator = "fast" if isinstance(getattr(generator, "model", None), FastModel) else "fairseq's"
            recorder.summary.dense_wanted = getattr(getattr(models[0], "encoder", None), "policy", None) is None
        return generator

    def _run_fast(self, generator: Any, models: List[Any], args: Any) -> None:
        """Gives a generator the fast model (``--sd-generator fast``) where every option of the search allows it."""
        precision = getattr(self.cfg, "sd_generation_precision", "model")  # type: ignore[attr-defined]
        wanted = getattr(self.cfg, "sd_generator", "fast") == "fast"  # type: ignore[attr-defined]
        reason = why_not_fast(models, args) if wanted else "--sd-generator fairseq"
        if reason is None:
            generator.model = FastModel(models[0], precision)
            generator.model.set_decoder_beam_size(generator.beam_size)
        elif precision != "model":
            raise InputError(f"--sd-generation-precision {precision} needs the fast generator, found {reason}")
        elif wanted:
            logger.warning("fairseq's own generator runs, which is slower: %s", reason)

    def inference_step(self, generator: Any, models: List[Any], sample: Dict[str, Any], **kwargs: Any) -> Any:
        """As fairseq's; the recorder follows decisions, lengths, FLOPs and time."""
        recorder = self.trace_recorder
        if recorder is None:
            return super().inference_step(generator, models, sample, **kwargs)  # type: ignore[misc]
        observed = recorder.observe(models, sample)
        synchronize(sample)
        started = time.perf_counter()
        hypotheses = super().inference_step(generator, models, observed, **kwargs)  # type: ignore[misc]
        synchronize(sample)
        recorder.record(models, observed, hypotheses, time.perf_counter() - started)
        return hypotheses


def mixed_precision_of_cpu(optimizer: Any, model: Any) -> ContextManager:
    """Lets ``--amp`` mean bfloat16 products on a CPU; fairseq's own automatic mixed precision knows GPUs only."""
    wanted = isinstance(optimizer, AMPOptimizer) and next(model.parameters()).device.type == "cpu"
    return torch.autocast("cpu", dtype=torch.bfloat16) if wanted else nullcontext()


def synchronize(sample: Dict[str, Any]) -> None:
    """Waits for the accelerator, so that a time is the work's."""
    if sample["net_input"]["src_tokens"].is_cuda:
        torch.cuda.synchronize()


def check_lengths(dataset: Any, max_positions: Any) -> None:
    """Refuses a data set with a sentence longer than the model takes.

    Args:
        dataset: a pair data set with ``src_sizes`` and ``tgt_sizes``.
        max_positions: (source, target) limits, or None.

    Raises:
        InputError: naming the first such sentence, its length and the limit.
    """
    if not isinstance(max_positions, (tuple, list)):
        return
    for name, limit in zip(("src", "tgt"), max_positions):
        sizes = getattr(dataset, f"{name}_sizes", None)
        if sizes is None or limit is None:
            continue
        too_long = (sizes > limit).nonzero()[0]
        if too_long.size:
            index = int(too_long[0])
            side = "source" if name == "src" else "target"
            helps = "--truncate-source or " if name == "src" else ""
            raise InputError(
                f"{side} of sentence {index} has {int(sizes[index])} tokens, the model takes {int(limit)}; use "
                f"{helps}--skip-invalid-size-inputs-valid-test ({too_long.size} such sentences)"
            )


def check_not_empty(dataset: Any, split: str) -> None:
    """Refuses a data set with an empty source line (only an end-of-sentence symbol).

    Raises:
        InputError: naming the split and the first such line, from 1.
    """
    sizes = getattr(dataset, "src_sizes", None)
    empty = (sizes <= 1).nonzero()[0] if sizes is not None else []
    if len(empty):
        raise InputError(f"source line {int(empty[0]) + 1} of {split!r} is empty ({len(empty)} such lines)")
