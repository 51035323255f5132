"""``--criterion sd_exit_criterion``: trains a dense BART for the methods that leave or skip decoder layers by token.

They stand beside this package's own method on the same model; rules: :mod:`~sd_fairseq.decision.rules`.
"""

import math
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Dict, Iterator, List, Optional, Tuple

import torch
from fairseq.criterions import register_criterion
from fairseq.criterions.label_smoothed_cross_entropy import (
    LabelSmoothedCrossEntropyCriterion,
    LabelSmoothedCrossEntropyCriterionConfig,
)
from fairseq.dataclass import ChoiceEnum
from fairseq.logging import metrics
from torch import Tensor

from sd_fairseq.decision.confidence_rules import Free
from sd_fairseq.decision.rule_notation import build_rule, read_rule
from sd_fairseq.decision.rules import DecisionRule
from sd_fairseq.learning.exit_losses import depth_weights, hidden_distance
from sd_fairseq.plugin.criterions.distillation import Distiller, divergence
from sd_fairseq.plugin.criterions.options import option
from sd_fairseq.plugin.criterions.policy_step import Evaluator
from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.plugin.guards.preflight import check_teacher
from sd_fairseq.plugin.guards.presets import SELF_TEACHER, Run
from sd_fairseq.plugin.models.switchable_encoder import PathRequest

LOSSES = ("last", "calm", "free", "skipdecode")
SKIPDECODE = "skipdecode"  # a loss that is named after its rule
NLL = "sd_exit_nll_"  # of the exit after a layer, in the log


@dataclass
class SDExitCriterionConfig(LabelSmoothedCrossEntropyCriterionConfig):
    """Options of the criterion."""

    sd_exit_loss: ChoiceEnum(list(LOSSES)) = option(  # type: ignore[valid-type]
        "last",
        "last (cross-entropy of the last layer), calm (of every decoder layer, weighted by its depth), free (of the "
        "shallow exit and the last layer, and the distance of their states) or skipdecode (last, under "
        "--sd-exit-rule skipdecode)",
    )
    sd_exit_rule: Optional[str] = option(
        None,
        "rule by position under which decoder layers run in training, as --sd-path takes it in generation: hsd, "
        "skipdecode or uls with their values",
    )
    sd_exit_layer: Optional[int] = option(
        None, "decoder layer (from 1) of the shallow exit of --sd-exit-loss free (default: a quarter of the layers)"
    )
    sd_exit_distance: float = option(
        0.5, "weight of the distance between shallow and deep states in --sd-exit-loss free (FREE: 0.5)"
    )
    sd_distillation: float = option(0.0, "weight of the teacher's distribution in the loss of every exit, in [0, 1)")
    sd_teacher: Optional[str] = option(
        None, "checkpoint of the teacher, or self (default: the checkpoint of --finetune-from-model)"
    )


@register_criterion("sd_exit_criterion", dataclass=SDExitCriterionConfig)
class SDExitCriterion(LabelSmoothedCrossEntropyCriterion):
    """The losses of :mod:`~sd_fairseq.learning.exit_losses`, teacher forced.

    Args:
        cfg: the options.
        task: ``switchable_translation``.

    Raises:
        InputError: options out of their range or that do not go together, or another task.
    """

    def __init__(self, cfg: SDExitCriterionConfig, task: Any):
        super().__init__(task, cfg.sentence_avg, cfg.label_smoothing, cfg.ignore_prefix_size, cfg.report_accuracy)
        check_exit_options(cfg)
        if not hasattr(task, "updates_policies") or hasattr(task, "build_evaluator"):
            raise InputError(
                f"--criterion sd_exit_criterion needs --task switchable_translation, found {type(task).__name__}"
            )
        self.cfg = cfg
        self.loss = str(cfg.sd_exit_loss)
        self.rule_text = cfg.sd_exit_rule or (SKIPDECODE if self.loss == SKIPDECODE else "")
        self.distiller = build_distiller(cfg, task)

    @classmethod
    def build_criterion(cls, cfg: SDExitCriterionConfig, task: Any) -> "SDExitCriterion":
        """Builds the criterion."""
        return cls(cfg, task)

    def forward(self, model: Any, sample: Dict[str, Any], reduce: bool = True) -> Tuple[Tensor, Any, Dict[str, Any]]:
        """Computes the loss of a batch.

        Args:
            model: the (possibly wrapped) switchable BART, dense.
            sample: fairseq's batch.
            reduce: must be True; per-token losses are not offered.

        Returns:
            Loss (summed over tokens), sample size, figures to log. ``nll_loss`` is the last layer's.

        Raises:
            InputError: a model that this cannot train.
        """
        check_model(model, by_layer=self.loss in ("calm", "free"))
        evaluator = Evaluator(model, sample, self.padding_idx, self.eps)
        with under_rule(model.decoder, self.build_rule(model)):
            output = evaluator.forward(model, path=PathRequest("dense"))
        states = output[1]["inner_states"]
        exits = self.exits(len(states) - 1)
        wanted = self.teach(evaluator)
        loss, figures = torch.zeros((), device=output[0].device), {}
        for layer, weight in zip(exits, depth_weights(exits)):
            one = output if layer == exits[-1] else leave_after(model.decoder, states[layer])
            quality = evaluator.quality(one)
            loss = loss + weight * self.distil(evaluator, wanted, one, quality.loss)
            figures[f"{NLL}{layer}"] = quality.nll.data
        last_nll = figures.pop(f"{NLL}{exits[-1]}")
        if self.loss == "free":
            distance = hidden_distance(states, exits[0], sample["target"].ne(self.padding_idx))
            loss = loss + self.cfg.sd_exit_distance * distance
            figures["sd_exit_distance"] = distance.data
        sample_size = evaluator.sample_size(self.sentence_avg)
        figures.update(
            loss=loss.data,
            nll_loss=last_nll,
            ntokens=sample["ntokens"],
            nsentences=sample["target"].size(0),
            sample_size=sample_size,
        )
        return loss, sample_size, figures

    def build_rule(self, model: Any) -> DecisionRule:
        """Builds the rule of the training for a model's decoder.

        Raises:
            InputError: values that this decoder cannot have.
        """
        try:
            return build_rule(self.rule_text, len(model.decoder.layers))
        except InputError as error:
            raise InputError(f"--sd-exit-rule {error}") from error

    def exits(self, layers: int) -> List[int]:
        """Lists the decoder layers (from 1) after which there is a loss, the last one included.

        Args:
            layers: L of the decoder.

        Raises:
            InputError: an exit that this decoder cannot have.
        """
        if self.loss == "calm":
            return list(range(1, layers + 1))
        if self.loss != "free":
            return [layers]
        exit_layer = self.cfg.sd_exit_layer
        if exit_layer is None:
            rule = build_rule("free", layers)
            assert isinstance(rule, Free)
            exit_layer = rule.first
        if not 1 <= exit_layer < layers:
            raise InputError(f"--sd-exit-layer {exit_layer} is not in 1..{layers - 1} of this decoder")
        return [exit_layer, layers]

    def teach(self, evaluator: Evaluator) -> Optional[Tensor]:
        """Returns the teacher's log-probabilities [N, V] of the batch's targets; None = there is no teacher, or no
        training.
        """
        if self.distiller is None or not evaluator.model.training:
            return None
        with torch.no_grad():
            return evaluator.log_probs(self.distiller.teach(evaluator))

    def distil(self, evaluator: Evaluator, wanted: Optional[Tensor], output: Tuple, loss: Tensor) -> Tensor:
        """Mixes the teacher into the loss of one exit; see :class:`Distiller`."""
        if wanted is None or self.distiller is None:
            return loss
        weight = self.distiller.weight
        return (1 - weight) * loss + weight * divergence(wanted, evaluator.log_probs(output))

    @classmethod
    def reduce_metrics(cls, logging_outputs: List[Dict[str, Any]]) -> None:
        """Logs fairseq's usual figures, each exit's loss in bits a token, and FREE's distance a token."""
        super().reduce_metrics(logging_outputs)
        tokens = sum(output.get("ntokens", 0) for output in logging_outputs)
        for name in sorted({key for output in logging_outputs for key in output if key.startswith("sd_exit_")}):
            total = sum(output.get(name, 0) for output in logging_outputs)
            unit = math.log(2) if name.startswith(NLL) else 1.0
            metrics.log_scalar(name, total / max(tokens, 1) / unit, tokens, round=3)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """All figures are sums."""
        return True


@contextmanager
def under_rule(decoder: Any, rule: DecisionRule) -> Iterator[None]:
    """Lets a decoder follow a rule in the block; "" leaves it its own."""
    own = decoder.rule
    decoder.rule = rule if rule.text else own
    try:
        yield
    finally:
        decoder.rule = own


def leave_after(decoder: Any, states: Tensor) -> Tuple[Tensor, Dict[str, Any]]:
    """Returns what the decoder would answer from a layer's states: logits [B, T, V] of [T, B, C]."""
    return decoder.output_layer(decoder.finish(states)), {}


def build_distiller(cfg: SDExitCriterionConfig, task: Any) -> Optional[Distiller]:
    """Loads the teacher; None = there is none.

    Raises:
        InputError: no teacher is named, or one that cannot be loaded.
    """
    if not cfg.sd_distillation:
        return None
    teacher = cfg.sd_teacher or getattr(task, "run_options", Run(trains=False)).base
    if teacher is None:
        raise InputError(f"--sd-distillation needs --sd-teacher: a checkpoint, or {SELF_TEACHER}")
    if teacher != SELF_TEACHER:
        check_teacher(teacher, task.source_dictionary)
    return Distiller(cfg.sd_distillation, teacher, task)


def check_model(model: Any, by_layer: bool) -> None:
    """Refuses a model that this cannot train.

    Args:
        model: any of fairseq's.
        by_layer: True = losses of single layers, which no family but BART can be left after.

    Raises:
        InputError: naming it.
    """
    name = type(getattr(model, "module", model)).__name__
    fits = hasattr(model, "space") and not model.space.tied
    if not fits or (by_layer and not getattr(model.decoder, "can_leave_early", False)):
        raise InputError(f"--criterion sd_exit_criterion needs --arch switchable_bart*, found {name}")
    if model.encoder.policy is not None:
        raise InputError("--criterion sd_exit_criterion trains without decisions: give --sd-policy dense")


def check_exit_options(cfg: SDExitCriterionConfig) -> None:
    """Refuses options out of their range, or that do not go together.

    Raises:
        InputError: naming the option and what is expected.
    """
    loss, rule = str(cfg.sd_exit_loss), cfg.sd_exit_rule
    if cfg.report_accuracy or cfg.ignore_prefix_size:
        raise InputError("--report-accuracy and --ignore-prefix-size do not apply to --criterion sd_exit_criterion")
    if rule:
        try:
            read_rule(rule)
        except InputError as error:
            raise InputError(f"--sd-exit-rule {error}") from error
        name = rule.strip().partition(":")[0]
        if loss in ("calm", "free") or name in ("calm", "free"):
            found = f"--sd-exit-loss {loss}" if loss in ("calm", "free") else name
            raise InputError(f"--sd-exit-rule is for rules by position (hsd, skipdecode, uls), found {found}")
        if loss == SKIPDECODE and name != SKIPDECODE:
            raise InputError(f"--sd-exit-loss skipdecode needs a rule of that name, found --sd-exit-rule {rule}")
    if cfg.sd_exit_layer is not None and loss != "free":
        raise InputError(f"--sd-exit-layer needs --sd-exit-loss free, found {loss}")
    if not 0 <= cfg.sd_exit_distance < math.inf:
        raise InputError(f"--sd-exit-distance {cfg.sd_exit_distance} is not 0 or more")
    if not 0 <= cfg.sd_distillation < 1:
        raise InputError(f"--sd-distillation {cfg.sd_distillation} is not in [0, 1)")
    if cfg.sd_teacher and not cfg.sd_distillation:
        raise InputError("--sd-teacher needs --sd-distillation, the weight of the teacher in the loss")
