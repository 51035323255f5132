"""What every fairseq task needs for switchable models: policy updates, whole test sets, n-gram blocking, a trace."""

from __future__ import annotations

import logging
import sys
import time
from contextlib import nullcontext
from functools import partial
from typing import Any, ContextManager, Dict, List, Optional, Tuple

import torch
from fairseq.data import FairseqDataset
from fairseq.optim.amp_optimizer import AMPOptimizer

from sd_fairseq.decision.token_strategies import count_kept_tokens
from sd_fairseq.plugin.generation.by_path import Pools, decider_of
from sd_fairseq.plugin.generation.choose_path import check_rule, choose_budget, choose_model
from sd_fairseq.plugin.generation.fast_model import FastModel, why_not_fast
from sd_fairseq.plugin.generation.positions import take_positions
from sd_fairseq.plugin.guards.dictionaries import read_dictionary
from sd_fairseq.plugin.guards.errors import InputError, fairseq_command
from sd_fairseq.plugin.guards.preflight import check_teacher, prepare_training
from sd_fairseq.plugin.guards.presets import PRESETS, SELF_TEACHER, Run, fill_criterion
from sd_fairseq.plugin.models.conversion import obey_architecture_override
from sd_fairseq.plugin.repairs.ngram_blocker import NGramBlocker
from sd_fairseq.plugin.repairs.same_batches import keep_first_batches
from sd_fairseq.plugin.tasks.backbone_update import check_unused_parameters, complete_gradients, update_backbone
from sd_fairseq.plugin.tasks.best_checkpoint import BestScore
from sd_fairseq.plugin.tasks.data_checks import check_lengths
from sd_fairseq.plugin.tasks.generation_summary import GenerationSummary
from sd_fairseq.plugin.tasks.policy_summary import PolicySummary
from sd_fairseq.plugin.tasks.trace_recorder import TraceRecorder, log_decisions, read_batch, rule_of

logger = logging.getLogger(__name__)


class SwitchableTaskMixin:
    """Put before a fairseq task's class; see ``switchable_translation``."""

    updates_policies = True
    policy_criterion: Optional[Any] = None
    policy_summary: Optional[PolicySummary] = None
    run_options = Run(trains=False)
    model_values: List[str] = []
    wrapper_checked = False
    slow_reasons: Tuple[str, ...] = ()
    trace_recorder: Optional[TraceRecorder] = None
    summary: Optional[GenerationSummary] = None
    pools: Optional[Pools] = None

    @classmethod
    def load_dictionary(cls, filename: str) -> Any:
        """As fairseq's, with one line where it cannot be read."""
        return super().load_dictionary(filename) if "://" in filename else read_dictionary(filename)  # type: ignore[misc]

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """As fairseq's; a command that generates builds a plain BART as a switchable one, which runs fast.

        An override of ``arch`` does that in every command. Training a plain BART keeps fairseq's own model. A training
        that starts from a checkpoint has its sizes (see :mod:`~sd_fairseq.plugin.guards.checkpoint_structure`).
        """
        obey_architecture_override(cfg)
        if not from_checkpoint:
            self.model_values = prepare_training(cfg)
            self.run_options = Run.of(cfg)
        path = getattr(self.cfg, "sd_path", None)  # type: ignore[attr-defined]
        budget = self._asked_budget()
        choose_budget(cfg, budget, path)
        if self._generates():
            choose_model(cfg, path, self._wants_fast())
        model = super().build_model(cfg, from_checkpoint)  # type: ignore[misc]
        if self._generates() or not from_checkpoint:
            take_positions(self.cfg, model)  # type: ignore[attr-defined]
        if self._generates():
            self.summary = self.summary or GenerationSummary()
            self.summary.budget = budget
        return model

    def _asked_budget(self) -> Optional[float]:
        """Returns the budget that a generation asks for; what a training's task has under that name was its own."""
        command = fairseq_command(sys.argv[0] if sys.argv else "")
        return self.cfg.sd_flops_budget if command in ("generate", "interactive") and self._has_budget() else None

    def _has_budget(self) -> bool:
        return getattr(self.cfg, "sd_flops_budget", None) is not None  # type: ignore[attr-defined]

    def _generates(self) -> bool:
        """Tells whether this process only searches with models that are trained."""
        command = fairseq_command(sys.argv[0] if sys.argv else "")
        validates = command == "validate" and getattr(self.cfg, "eval_bleu", False)  # type: ignore[attr-defined]
        return command in ("generate", "interactive") or validates

    def _wants_fast(self) -> bool:
        return getattr(self.cfg, "sd_generator", "fairseq") == "fast"  # type: ignore[attr-defined]

    def build_criterion(self, cfg: Any, *args: Any, **kwargs: Any) -> Any:
        """Builds the criterion, its preset filled in, and remembers the one that has a policy to update."""
        if getattr(cfg, "_name", getattr(cfg, "criterion", None)) == "sd_policy_criterion":
            teacher = getattr(cfg, "sd_teacher", None)
            filled = fill_criterion(cfg, self.run_options)
            if teacher not in (None, SELF_TEACHER) and cfg.sd_distillation:
                check_teacher(teacher, self.source_dictionary)  # type: ignore[attr-defined]
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
        if criterion is not None and freeze and getattr(model, "policy_learner", None) is not None:
            score = BestScore(self.state.state_dict)  # type: ignore[attr-defined]
            score.before_validation(criterion.update + 1 < freeze)

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
        noted = None if policy_criterion is None else policy_criterion.noted()
        with mixed_precision_of_cpu(optimizer, model):
            result = super().train_step(  # type: ignore[misc]
                sample, model, criterion, optimizer, update_num, ignore_grad, **extra
            )
        if ignore_grad and policy_criterion is not None:
            policy_criterion.forget_since(noted)
        return result

    def optimizer_step(self, optimizer: Any, model: Any, update_num: int) -> None:
        """Moves the backbone (unless only the policy learns yet), then the policy."""
        criterion = self.policy_criterion
        frozen = criterion is not None and criterion.backbone_is_frozen()
        if hasattr(model, "space"):
            complete_gradients(model)
        step = partial(super().optimizer_step, optimizer, model, update_num)  # type: ignore[misc]
        counts = update_backbone(step, optimizer, frozen)
        if criterion is not None and counts:
            criterion.update_policy(model)

    def get_batch_iterator(self, dataset: FairseqDataset, *args: Any, **kwargs: Any) -> Any:
        """As fairseq's, but an evaluation keeps the sentences of its last batch, and a training its batches.

        Raises:
            InputError: a sentence longer than the model takes, unless such sentences are to be left out.
        """
        make = partial(keep_first_batches, self, super().get_batch_iterator)  # type: ignore[misc]
        if dataset is not self.datasets.get(self._train_subset()):  # type: ignore[attr-defined]
            kwargs["required_batch_size_multiple"] = 1
            if not kwargs.get("ignore_invalid_inputs", False):
                check_lengths(dataset, kwargs.get("max_positions"))
        batches = getattr(self.cfg, "sd_batch_by_path", 1)  # type: ignore[attr-defined]
        if self._generates() and batches != 1:
            self.pools = Pools(batches, kwargs.get("max_sentences"), kwargs.get("max_tokens"))
            kwargs.update(self.pools.limits())
        iterator = make(dataset, *args, **kwargs)
        if self.summary is not None:
            self._expect(iterator.frozen_batches, kwargs)
        if self._traces():
            shard, num_shards = kwargs.get("shard_id", 0), kwargs.get("num_shards", 1)
            self._start_trace().expect(iterator.frozen_batches, shard, num_shards)
        return iterator

    def _expect(self, batches: Any, kwargs: Dict[str, Any]) -> None:
        """Lets the summary know this shard's documents."""
        summary = self.summary
        assert summary is not None, "only a command that generates comes here"
        summary.shard, summary.num_shards = kwargs.get("shard_id", 0), kwargs.get("num_shards", 1)
        documents = sum(len(batch) for batch in batches[summary.shard :: summary.num_shards])
        summary.expected = (summary.expected or 0) + documents

    def _traces(self) -> bool:
        return bool(getattr(self.cfg, "sd_trace", None))  # type: ignore[attr-defined]

    def _start_trace(self) -> TraceRecorder:
        self.trace_recorder = self.trace_recorder or TraceRecorder(
            self.cfg.sd_trace,  # type: ignore[attr-defined]
            str(self.cfg.data),  # type: ignore[attr-defined]
        )
        return self.trace_recorder

    def _train_subset(self) -> str:
        return getattr(self.cfg, "train_subset", "train")  # type: ignore[attr-defined]

    def build_generator(self, models: List[Any], args: Any, *more: Any, **kwargs: Any) -> Any:
        """As fairseq's, on the fast model unless an option needs fairseq's; n-grams are blocked without CUDA too.

        Raises:
            InputError: an option that a trace or a precision cannot go with.
        """
        if self._traces() and getattr(args, "score_reference", False):
            raise InputError("--sd-trace records a search, found --score-reference, which has none")
        for model in models:
            check_rule(rule_of(model), args)
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
        wanted = self._wants_fast()
        reason = why_not_fast(models, args) if wanted else "--sd-generator fairseq"
        if reason is None:
            generator.model = FastModel(models[0], precision)
            generator.model.set_decoder_beam_size(generator.beam_size)
        elif precision != "model":
            raise InputError(f"--sd-generation-precision {precision} needs the fast generator, found {reason}")
        elif wanted and reason not in self.slow_reasons:
            self.slow_reasons = (*self.slow_reasons, reason)  # the hub builds a generator a call
            logger.warning("fairseq's slower generator runs, not the fast one: %s", reason)

    def inference_step(self, generator: Any, models: List[Any], sample: Dict[str, Any], **kwargs: Any) -> Any:
        """As fairseq's; counts decisions, FLOPs and time for the summary and, with ``--sd-trace``, writes them."""
        recorder, summary = self.trace_recorder, self.summary
        if recorder is None and summary is None:
            return super().inference_step(generator, models, sample, **kwargs)  # type: ignore[misc]
        searches = hasattr(generator, "beam_size")  # scoring a reference does not
        observed = sample
        if recorder is not None:
            observed = recorder.observe(models, sample)
        elif searches:
            observed = log_decisions(models, sample)
        synchronize(sample)
        started = time.perf_counter()
        step = partial(super().inference_step, generator, models)  # type: ignore[misc]
        if self.pools is not None and searches:
            hypotheses = self.pools.generate(step, decider_of(generator, models), models, observed, **kwargs)
        else:
            hypotheses = step(observed, **kwargs)
        synchronize(sample)
        seconds = time.perf_counter() - started
        if summary is not None:
            self._summarize(generator, models, observed, hypotheses, seconds)
        if recorder is not None:
            recorder.record(models[0], observed, hypotheses, seconds)
        return hypotheses

    def _summarize(self, generator: Any, models: List[Any], sample: Any, hypotheses: Any, seconds: float) -> None:
        summary = self.summary
        assert summary is not None, "only a command that generates comes here"
        summary.add_batch(len(hypotheses), seconds, isinstance(getattr(generator, "model", None), FastModel))
        if not sample["net_input"].get("decision_log"):
            return
        model = models[0]
        decisions, lengths = read_batch(model, model.space, sample, hypotheses, generator.beam_size)
        encoded = model.shape.encoded_tokens(lengths.source)
        kept = count_kept_tokens(encoded, model.space.token_strategies)
        kept = kept.gather(1, decisions.token_choice.unsqueeze(1)) + (lengths.source - encoded).unsqueeze(1)
        summary.rule = rule_of(model).text
        summary.wants_dense = summary.wants_dense or model.encoder.policy is None
        summary.add_decisions(model.space, model.shape, decisions, lengths, kept)


def mixed_precision_of_cpu(optimizer: Any, model: Any) -> ContextManager:
    """Lets ``--amp`` mean bfloat16 products on a CPU; fairseq's own automatic mixed precision knows GPUs only."""
    wanted = isinstance(optimizer, AMPOptimizer) and next(model.parameters()).device.type == "cpu"
    return torch.autocast("cpu", dtype=torch.bfloat16) if wanted else nullcontext()


def synchronize(sample: Dict[str, Any]) -> None:
    """Waits for the accelerator, so that a time is the work's."""
    if sample["net_input"]["src_tokens"].is_cuda:
        torch.cuda.synchronize()
