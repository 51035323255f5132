"""What every fairseq task needs for switchable models: policy updates, whole test sets, n-gram blocking, a trace."""

from __future__ import annotations

import logging
import time
from contextlib import nullcontext
from functools import partial
from typing import Any, ContextManager, Dict, List, Optional

import torch
from fairseq.data import FairseqDataset
from fairseq.optim.amp_optimizer import AMPOptimizer

from sd_fairseq.plugin.conversion import obey_architecture_override
from sd_fairseq.plugin.errors import InputError
from sd_fairseq.plugin.generation.fast_model import FastModel, why_not_fast
from sd_fairseq.plugin.generation.ngram_blocker import NGramBlocker
from sd_fairseq.plugin.tasks.backbone_update import check_unused_parameters, complete_gradients, update_backbone
from sd_fairseq.plugin.tasks.trace_recorder import TraceRecorder

logger = logging.getLogger(__name__)


class SwitchableTaskMixin:
    """Put before a fairseq task's class; see ``switchable_translation``."""

    updates_policies = True
    policy_criterion: Optional[Any] = None
    wrapper_checked = False
    trace_recorder: Optional[TraceRecorder] = None

    def build_model(self, cfg: Any, *args: Any, **kwargs: Any) -> Any:
        """As fairseq's; an override of ``arch`` turns a plain BART checkpoint into a switchable model."""
        obey_architecture_override(cfg)
        return super().build_model(cfg, *args, **kwargs)  # type: ignore[misc]

    def build_criterion(self, cfg: Any, *args: Any, **kwargs: Any) -> Any:
        """Builds the criterion and remembers the one that has a policy to update."""
        criterion = super().build_criterion(cfg, *args, **kwargs)  # type: ignore[misc]
        self.policy_criterion = criterion if hasattr(criterion, "update_policy") else None
        return criterion

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
        if self._traces():
            self.trace_recorder = self.trace_recorder or TraceRecorder(self.cfg.sd_trace)  # type: ignore[attr-defined]
            shard, num_shards = kwargs.get("shard_id", 0), kwargs.get("num_shards", 1)
            self.trace_recorder.expect(iterator.frozen_batches, shard, num_shards)
        return iterator

    def _traces(self) -> bool:
        return bool(getattr(self.cfg, "sd_trace", None))  # type: ignore[attr-defined]

    def _train_subset(self) -> str:
        return getattr(self.cfg, "train_subset", "train")  # type: ignore[attr-defined]

    def build_generator(self, models: List[Any], args: Any, *more: Any, **kwargs: Any) -> Any:
        """As fairseq's, on the fast model unless an option needs fairseq's; n-grams are blocked without CUDA too."""
        generator = super().build_generator(models, args, *more, **kwargs)  # type: ignore[misc]
        self._run_fast(generator, models, args)
        size = getattr(args, "no_repeat_ngram_size", 0) or 0
        if size > 0 and hasattr(generator, "repeat_ngram_blocker"):
            generator.repeat_ngram_blocker = NGramBlocker(size)
        if self.trace_recorder is not None:
            self.trace_recorder.describe_generation(args, generator)
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
        elif wanted and hasattr(models[0], "space"):
            logger.info("fairseq's own generator is used: %s", reason)

    def inference_step(self, generator: Any, models: List[Any], sample: Dict[str, Any], **kwargs: Any) -> Any:
        """As fairseq's; with ``--sd-trace`` it also records decisions, lengths, FLOPs and time."""
        if self.trace_recorder is None:
            return super().inference_step(generator, models, sample, **kwargs)  # type: ignore[misc]
        observed = self.trace_recorder.observe(models, sample)
        synchronize(sample)
        started = time.perf_counter()
        hypotheses = super().inference_step(generator, models, observed, **kwargs)  # type: ignore[misc]
        synchronize(sample)
        self.trace_recorder.record(models[0], observed, hypotheses, time.perf_counter() - started)
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
            raise InputError(
                f"{side} of sentence {index} has {int(sizes[index])} tokens, the model takes {int(limit)}; use "
                f"--truncate-source or --skip-invalid-size-inputs-valid-test ({too_long.size} such sentences)"
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
