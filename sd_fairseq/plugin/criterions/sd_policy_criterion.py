"""``--criterion sd_policy_criterion``: trains backbone and policy together (Algorithm 1).

The backbone's loss is returned to fairseq's trainer as any criterion's; the policy's gradients are summed here over
micro-batches, and the task's ``optimizer_step`` asks for one policy update (see
:class:`~sd_fairseq.plugin.tasks.switchable_task.SwitchableTaskMixin`).
"""

import logging
from dataclasses import replace
from typing import Any, Dict, List, Tuple

import torch
from fairseq.criterions import register_criterion
from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterion
from fairseq.distributed import utils as distributed_utils
from torch import Tensor

from sd_fairseq.decision.decider import PathRequest
from sd_fairseq.decision.noise import Noise
from sd_fairseq.learning.policy_learner import PolicyGradientSums, trainable_parameters
from sd_fairseq.learning.settling import Settling
from sd_fairseq.plugin.criterions.budgets import Budgets, serving
from sd_fairseq.plugin.criterions.corpus_flops import mean_dense_flops
from sd_fairseq.plugin.criterions.distillation import Distiller
from sd_fairseq.plugin.criterions.flops_window import FlopsWindow
from sd_fairseq.plugin.criterions.head_metrics import reduce_head_metrics
from sd_fairseq.plugin.criterions.options import (
    SDPolicyCriterionConfig,
    check_options,
    multiplier_rule,
)
from sd_fairseq.plugin.criterions.policy_metrics import count_nothing, describe_path, reduce_policy_metrics
from sd_fairseq.plugin.criterions.policy_step import (
    Evaluator,
    PolicyStepSettings,
    measure_with_dropout_off,
    policy_step,
)
from sd_fairseq.plugin.criterions.quality import Quality
from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.plugin.guards.presets import Run, fill_criterion

logger = logging.getLogger(__name__)


@register_criterion("sd_policy_criterion", dataclass=SDPolicyCriterionConfig)
class SDPolicyCriterion(LabelSmoothedCrossEntropyCriterion):
    """Algorithm 1 as a fairseq criterion.

    Args:
        cfg: the options.
        task: a task with :class:`~sd_fairseq.plugin.tasks.switchable_task.SwitchableTaskMixin`.

    Raises:
        InputError: an option out of its range, or a task that never updates the policy.
    """

    def __init__(self, cfg: SDPolicyCriterionConfig, task: Any):
        super().__init__(task, cfg.sentence_avg, cfg.label_smoothing, cfg.ignore_prefix_size, cfg.report_accuracy)
        # nothing is left to fill where the task has done it
        fill_criterion(cfg, getattr(task, "run_options", Run(trains=False)))
        check_options(cfg)
        if not hasattr(task, "updates_policies"):
            raise InputError(
                "--criterion sd_policy_criterion needs --task switchable_translation or another switchable_* task, "
                f"found {type(task).__name__}"
            )
        self.cfg = cfg
        self.rule = multiplier_rule(cfg)
        self.settings = PolicyStepSettings(
            bound=cfg.sd_bound,
            temperature=cfg.sd_constraint_temperature,
            tolerance=cfg.sd_tolerance,
            flops_budget=None,  # an update's own
            definition=str(cfg.sd_flops_definition),
            exact_flops_gradient=not cfg.sd_score_function_flops,
            beam=cfg.sd_cost_beam,
            seed=cfg.sd_sampling_seed,
            estimator=str(cfg.sd_estimator),
            samples=cfg.sd_samples,
            halves=str(cfg.sd_multiplier_norm) == "unbiased" and self.divides_by_an_estimate(cfg),
        )
        waits = self.rule.standard_errors > 0
        self.settling = Settling(cfg.sd_policy_freeze_update, cfg.sd_settle_share, waits)
        self.distiller = Distiller(cfg.sd_distillation, cfg.sd_teacher, task) if cfg.sd_distillation else None
        self.update = 0
        self.learns_policy = False
        self.pending: List[PolicyGradientSums] = []
        self.budgets = Budgets(cfg)
        self.window = FlopsWindow(cfg.sd_flops_window)

    def divides_by_an_estimate(self, cfg: SDPolicyCriterionConfig) -> bool:
        """Tells whether the multiplier divides by the square of a gradient that is estimated from samples.

        FLOPs in closed form have no noise of sampling; where they are the constraint, nothing else is squared.
        """
        return self.rule.mode != "fixed" and (not self.rule.constrains_flops or cfg.sd_score_function_flops)

    @classmethod
    def build_criterion(cls, cfg: SDPolicyCriterionConfig, task: Any) -> "SDPolicyCriterion":
        """Builds the criterion."""
        return cls(cfg, task)

    def forward(self, model: Any, sample: Dict[str, Any], reduce: bool = True) -> Tuple[Tensor, Any, Dict[str, Any]]:
        """Computes the backbone's loss and, while training, the policy's gradient sums.

        Args:
            model: the (possibly wrapped) switchable model.
            sample: fairseq's batch.
            reduce: must be True; per-token losses are not offered.

        Returns:
            Loss (summed over tokens), sample size, figures to log.

        Raises:
            InputError: a model without decisions, or a loss that is not finite.
        """
        if not hasattr(model, "space"):
            raise InputError(
                f"--criterion sd_policy_criterion needs --arch switchable_bart*, found {type(model).__name__}"
            )
        self.learns_policy = model.policy_learner is not None
        build_evaluator = getattr(self.task, "build_evaluator", Evaluator)
        evaluator = build_evaluator(model, sample, self.padding_idx, self.eps)
        evaluator.distiller = None if self.backbone_is_frozen() else self.distiller
        if not model.training:
            trained, figures = self.validate(evaluator)
        elif model.policy_learner is None or self.policy_is_frozen():
            trained, figures = self.train_deployed_path(evaluator)
        else:
            trained, figures = self.train_sampled_path(evaluator)
        sample_size = evaluator.sample_size(self.sentence_avg)
        figures.update(
            trained.figures,
            loss=trained.loss.data,
            nll_loss=trained.nll.data,
            ntokens=sample["ntokens"],
            nsentences=sample["target"].size(0),
            sample_size=sample_size,
        )
        loss = trained.loss
        if model.training and self.skips_backward():
            loss = loss.detach().requires_grad_()
        return loss, sample_size, figures

    def skips_backward(self) -> bool:
        """True where the backbone's gradient would be computed for nothing.

        Several workers wait for each other's gradients, and a loss scaler looks at them for overflows.
        """
        alone = distributed_utils.get_data_parallel_world_size() == 1
        return self.backbone_is_frozen() and alone and not getattr(self.task, "uses_loss_scaling", False)

    def train(self, mode: bool = True) -> "SDPolicyCriterion":
        """Starts an update, as fairseq's trainer does: gradients of one that a loss scaler skipped are forgotten."""
        self.pending, self.window.pending = [], []
        self.budgets.forget()
        return super().train(mode)

    def noted(self) -> Tuple[int, int]:
        """Returns how much micro-batches have left behind, for :meth:`forget_since`."""
        return len(self.pending), len(self.budgets.residuals)

    def forget_since(self, noted: Tuple[int, int]) -> None:
        """Forgets what a micro-batch that does not count has left behind."""
        del self.pending[noted[0] :], self.window.pending[noted[0] :], self.budgets.residuals[noted[1] :]

    def train_sampled_path(self, evaluator: Evaluator) -> Tuple[Quality, Dict[str, Any]]:
        """One micro-batch of Algorithm 1; the policy's gradients join :attr:`pending`."""
        self.find_average(evaluator)
        settings = self.settings_of_update(evaluator.model)
        budget = settings.flops_budget
        quality_constrains = budget is None and str(self.cfg.sd_mode) != "fixed"
        measure = quality_constrains and self.update % self.cfg.sd_constraint_interval == 0
        with serving(evaluator.model, budget):
            step = policy_step(evaluator, settings, self.update, measure)
        finite = self.check_finite(step.trained.loss, "sampled")
        finite = finite and self.check_finite(step.sums.flatten().sum(), "deployed or the dense")
        if finite:
            self.pending.append(step.sums)
            self.window.note(step)
        learner = evaluator.model.policy_learner
        figures = describe_path(
            evaluator.model.space, evaluator.shape, step.decisions, step.lengths, step.mode and step.mode.per_example
        )
        figures.update(
            sd_quality_sample=step.trained.per_example.detach().sum(),
            sd_sampled=step.lengths.source.numel(),
            sd_multiplier=learner.multiplier.clone(),
            sd_violation=learner.violation.clone(),
            sd_policy_batches=1,
        )
        if hasattr(evaluator.model.encoder.policy, "budget"):
            figures.update(sd_budget=budget * step.lengths.source.numel())
        if step.dense is not None:
            dense = step.dense.per_example.sum()  # unlike the other two of a training, without dropout
            figures.update(sd_quality_dense_dropout_off=dense, sd_dense=step.lengths.source.numel())
        return step.trained, figures if finite else count_nothing(figures)

    def settings_of_update(self, model: Any) -> PolicyStepSettings:
        """Returns the settings with the temperature and the budget of the present update."""
        temperature = self.settings.temperature * self.settling.temperature_factor(self.update)
        budget = self.budgets.of_update(model.encoder.policy, self.update)
        return replace(self.settings, temperature=temperature, flops_budget=budget)

    def find_average(self, evaluator: Evaluator) -> None:
        """Finds what FLOPs are averaged over, once."""
        if str(self.cfg.sd_flops_average) == "corpus" and self.settings.mean_dense_flops is None:
            about = self.settings.definition, evaluator.shape, evaluator.model.space, self.settings.beam
            self.settings = replace(self.settings, mean_dense_flops=mean_dense_flops(self.task, *about))

    def train_deployed_path(self, evaluator: Evaluator) -> Tuple[Quality, Dict[str, Any]]:
        """Trains the backbone on the mode path."""
        budgets = self.budgets.of_documents(evaluator, self.settings.seed, self.update)
        with serving(evaluator.model, budgets):
            trained, extra = evaluator.run(PathRequest("mode"))
        self.check_finite(trained.loss, "deployed")
        lengths = evaluator.lengths(self.settings.beam)
        figures = describe_path(
            evaluator.model.space, evaluator.shape, extra["decisions"], lengths, trained.per_example
        )
        if budgets is not None:
            figures.update(sd_budget=budgets.sum())
        if self.budgets.tracks and evaluator.model.policy_learner is not None:
            self.find_average(evaluator)
            self.budgets.note(self.settings, evaluator, extra["decisions"], budgets)
        return trained, figures

    def validate(self, evaluator: Evaluator) -> Tuple[Quality, Dict[str, Any]]:
        """Scores the deployed path (the reported loss), a sampled one and the dense one; dropout is off."""
        deployed, extra = evaluator.run(PathRequest("mode"))
        lengths = evaluator.lengths(self.settings.beam)
        figures = describe_path(
            evaluator.model.space, evaluator.shape, extra["decisions"], lengths, deployed.per_example
        )
        if evaluator.model.policy_learner is not None:
            noise = Noise.for_examples(evaluator.sample["id"], self.settings.seed, evaluator.model.space)
            sampled, dense = measure_with_dropout_off(evaluator, 1.0, noise)
            examples = lengths.source.numel()
            figures.update(sd_quality_sample=sampled.per_example.sum(), sd_sampled=examples)
            figures.update(sd_quality_dense=dense.per_example.sum(), sd_dense=examples)
        return deployed, figures

    def check_finite(self, loss: Tensor, path: str) -> bool:
        """Tells whether the loss is finite.

        Under half precision a loss that is not finite is left to the loss scaler, which skips the update.

        Raises:
            InputError: not finite in float32; raised before any parameter moves.
        """
        if bool(torch.isfinite(loss)):
            return True
        if loss.dtype != torch.float32 or getattr(self.task, "uses_loss_scaling", False):
            return False
        raise InputError(
            f"loss is {float(loss.detach())} at update {self.update} on the {path} path; update refused, "
            "parameters unchanged"
        )

    def policy_is_frozen(self) -> bool:
        """True once only the backbone learns."""
        return 0 < self.cfg.sd_policy_freeze_update <= self.update

    def backbone_is_frozen(self) -> bool:
        """True while only the policy learns."""
        return self.update < self.cfg.sd_policy_warmup_updates

    def update_policy(self, model: Any) -> None:
        """Averages the pending gradients over micro-batches and workers, and moves the policy once.

        Every worker must call this once an update, whether it has gradients pending or not.
        """
        learner = getattr(model, "policy_learner", None)
        if learner is None:
            return
        if self.policy_is_frozen():
            if self.budgets.tracks:
                self.budgets.track(model.encoder.policy, self.update)
            return
        parameters = trainable_parameters(model.encoder.policy)
        sums = PolicyGradientSums.zeros(learner.first_moment.numel(), learner.first_moment.device)
        for micro_batch in self.pending:
            sums = sums + micro_batch
        self.pending = []
        if self.window.size:
            if not self.window.lets_learn(model):
                return
            settings = self.settings_of_update(model)
            with serving(model, settings.flops_budget):
                sums = self.window.measure(model, settings, sums)
        if distributed_utils.get_data_parallel_world_size() > 1:
            packed = sums.flatten()
            distributed_utils.all_reduce(packed, group=distributed_utils.get_data_parallel_group())
            sums = PolicyGradientSums.unflatten(packed)
        if float(sums.examples) > 0:
            cfg = self.cfg
            learning_rate = cfg.sd_policy_lr * self.settling.learning_rate_factor(self.update)
            smoothing = 0.0 if cfg.sd_violation_smoothing is None else cfg.sd_violation_smoothing
            one_price = self.window.size > 0
            learner.update(parameters, sums, self.rule, learning_rate, smoothing, one_price)
            if self.settings.halves and float(learner.steps) == 50 and float(learner.products_updates) == 0:
                logger.warning("no update held pairs of odd and of even numbers: the multiplier's norm stays naive")

    @classmethod
    def reduce_metrics(cls, logging_outputs: List[Dict[str, Any]]) -> None:
        """Logs fairseq's usual figures, or a head's, and the policy's."""
        if any("head_examples" in output for output in logging_outputs):
            reduce_head_metrics(logging_outputs)
        else:
            super().reduce_metrics(logging_outputs)
        reduce_policy_metrics(logging_outputs)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """All figures are sums."""
        return True
