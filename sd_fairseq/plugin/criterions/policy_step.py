"""Algorithm 1 on one micro-batch: the sampled path trains w, and the policy's two gradients are summed.

How the quality's gradient is estimated: :mod:`~sd_fairseq.plugin.criterions.estimators`.
Choice: the constraint compares q with c = (dense path's q on the same batch) + tolerance, dropout off.
Choice: FLOPs are averaged over documents, as the paper writes it, or over the corpus (``--sd-flops-average``): a
document then weighs as much as its dense path costs, which is what time is paid for. The sums of an update are divided
by the sum of these weights, the losses too: fairseq's batches hold equally many tokens, so that over an epoch every
document's loss counts the same; divided by the number of examples, a short document's would count less.
Choice: q in the constraint is measured on a path drawn from the sharpened policy (temperature 0.5 by default; 0 is
the mode path of the paper's wording). While every p is above 0.5 the mode path is the dense path, the constraint
sees nothing, all p fall together and cross 0.5 together; sharpened samples begin to skip before the mode does.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor, nn

from sd_fairseq.cost.path_flops import Lengths, ModelShape, dense_flops, expected_relative_flops, relative_flops
from sd_fairseq.decision.decisions import Decisions, DecisionSpace
from sd_fairseq.decision.noise import Noise
from sd_fairseq.decision.policy import PolicyDistribution, without_autocast
from sd_fairseq.learning.policy_learner import PolicyGradientSums, trainable_parameters
from sd_fairseq.learning.reinforce import flat_gradient, score_function_objective
from sd_fairseq.plugin.criterions.distillation import Distiller
from sd_fairseq.plugin.criterions.estimators import estimate_quality, salt
from sd_fairseq.plugin.criterions.quality import Quality, measure_quality
from sd_fairseq.plugin.models.switchable_encoder import PathRequest


@dataclass(frozen=True)
class PolicyStepSettings:
    """What one step needs to know besides the batch.

    Args:
        bound: sampling probabilities are p <- a p + (1 - a)(1 - p).
        temperature: of the path that the constraint is measured on; 0 = the mode path.
        tolerance: nats per token that q may exceed the dense path's loss by.
        flops_budget: target of mode ``budget``, or None where quality is the constraint.
        definition: FLOPs definition that is minimised.
        exact_flops_gradient: True = closed form of E[f]; False = score function, as in the paper.
        beam: beam size that the FLOPs of generation are counted for.
        seed: of the sampled paths.
        estimator: of the quality's gradient, see :mod:`~sd_fairseq.plugin.criterions.estimators`.
        samples: paths an example for ``leave-one-out``.
        halves: True = gradients of the examples with odd numbers are told apart, for an unbiased multiplier.
        mean_dense_flops: of the training pairs (see :mod:`~sd_fairseq.plugin.criterions.corpus_flops`), where FLOPs are
            averaged over the corpus; None = over the examples.
    """

    bound: float
    temperature: float
    tolerance: float
    flops_budget: Optional[float]
    definition: str
    exact_flops_gradient: bool
    beam: int
    seed: int
    estimator: str = "score-function"
    samples: int = 2
    halves: bool = False
    mean_dense_flops: Optional[float] = None


class PolicyStep(NamedTuple):
    """What one micro-batch yields.

    Args:
        trained: the path that trains the backbone, with its graph.
        mode: the deployed path's quality, no gradient; None where the estimator does without.
        constrained: the constraint path's quality, or None when it was not measured.
        dense: the dense path's quality, or None likewise.
        decisions: the mode path.
        lengths: of the batch.
        sums: the policy's gradient sums.
        states: what the policy read, one detached [B, C] a stage.
    """

    trained: Quality
    mode: Optional[Quality]
    constrained: Optional[Quality]
    dense: Optional[Quality]
    decisions: Decisions
    lengths: Lengths
    sums: PolicyGradientSums
    states: List[Tensor]


class Evaluator:
    """Scores paths of one batch.

    Args:
        model: the (possibly wrapped) switchable model.
        sample: fairseq's batch.
        padding: index of the padding symbol.
        smoothing: label smoothing of the backbone's loss.

    Attributes:
        distiller: mixes a teacher into the loss of paths run with gradients in training, or None.
    """

    distiller: Optional[Distiller] = None
    _dense: Optional[Tuple] = None

    def __init__(self, model: Any, sample: Dict[str, Any], padding: int, smoothing: float):
        self.model, self.sample, self.padding, self.smoothing = model, sample, padding, smoothing

    def forward(self, model: Any, **more: Any) -> Tuple:
        """Runs a model on the batch; ``more`` joins the arguments of its forward method."""
        return model(**self.sample["net_input"], **more)

    def forward_dropout_off(self, path: PathRequest) -> Tuple:
        """Runs one path with dropout off."""
        with dropout_off(self.model):
            return self.forward(self.model, path=path)

    def dense_dropout_off(self) -> Tuple:
        """Returns what the dense path gives, dropout off, without gradients: once a batch, whoever asks.

        It is the constraint's reference and, where the model teaches itself, the teacher.
        """
        if self._dense is None:
            with torch.no_grad():
                self._dense = self.forward_dropout_off(PathRequest("dense"))
        return self._dense

    def run(self, path: PathRequest) -> Tuple[Quality, Dict[str, Any]]:
        """Runs one path with gradients; returns its quality and the model's ``extra``."""
        output = self.forward(self.model, path=path)
        quality = self.quality(output)
        if self.distiller is not None and self.model.training and torch.is_grad_enabled():
            quality = quality._replace(loss=self.distiller.mix(self, output, quality.loss))
        return quality, output[1]

    def log_probs(self, output: Tuple) -> Tensor:
        """Log-probabilities [N, K] of everything that is predicted, for distillation."""
        log_probs = self.model.get_normalized_probs(output, log_probs=True)  # [B, T, V]
        return log_probs[self.sample["target"].ne(self.padding)]

    def quality(self, output: Tuple) -> Quality:
        """Scores what the model returned; a task without generation has another measure."""
        return measure_quality(self.model, output, self.sample, self.padding, self.smoothing)

    def score(self, path: PathRequest) -> Tuple[Quality, Decisions]:
        """Runs one path without gradients, in the model's present dropout setting."""
        with torch.no_grad():
            quality, extra = self.run(path)
        return quality, extra["decisions"]

    def lengths(self, beam: int) -> Lengths:
        """Source and target lengths of the batch, [B] each."""
        source = self.sample["net_input"]["src_tokens"].ne(self.padding).sum(dim=1)
        return Lengths(source, self.sample["target"].ne(self.padding).sum(dim=1), beam)

    @property
    def shape(self) -> ModelShape:
        """The dimensions that the batch's FLOPs are counted with."""
        return self.model.shape

    def sample_size(self, sentence_avg: bool) -> int:
        """What fairseq divides the summed loss by: target tokens, or sentences (``--sentence-avg``)."""
        return self.sample["target"].size(0) if sentence_avg else self.sample["ntokens"]


def policy_step(
    evaluator: Evaluator, settings: PolicyStepSettings, update: int, measure_constraint: bool
) -> PolicyStep:
    """Runs Algorithm 1 on one micro-batch; nothing is updated here.

    Args:
        evaluator: of the batch.
        settings: see :class:`PolicyStepSettings`.
        update: number of the update, part of the sampling noise.
        measure_constraint: compare the constraint path with the dense path (two more forward passes).
    """
    model = evaluator.model
    space, ids = model.space, evaluator.sample["id"]
    estimate = estimate_quality(evaluator, settings.estimator, settings.bound, settings.samples, settings.seed, update)
    constrained = dense = None
    if measure_constraint:
        noise = Noise.for_examples(ids, salt(settings.seed, update) + 1, space)
        constrained, dense = measure_with_dropout_off(evaluator, settings.temperature, noise)
    lengths = evaluator.lengths(settings.beam)
    weights = flops_weights(settings, space, evaluator.shape, lengths)
    policy = model.encoder.policy
    with trainable(policy) as parameters:
        distribution = policy(estimate.states)
        quality = flat_gradient(estimate.objective(distribution), parameters, retain_graph=True)
        mode = estimate.mode_decisions or distribution.mode()
        about = (distribution, distribution.bounded(settings.bound).log_prob(estimate.sampled), estimate.sampled, mode)

        def cost(of: Tensor) -> Tensor:
            return flops_objective(*about, evaluator.shape, lengths, settings, of)

        flops = flat_gradient(cost(weights), parameters, retain_graph=settings.halves)
        odd: Tuple[Optional[Tensor], ...] = (None, None, None)
        if settings.halves:
            half = (ids % 2).to(weights)
            odd_quality = flat_gradient(estimate.objective(distribution, half), parameters, retain_graph=True)
            odd_weight = (weights * half).sum().to(quality.device)
            odd = (odd_quality, flat_gradient(cost(weights * half), parameters), odd_weight)
    violation, measured = constraint_sums(settings, distribution, evaluator.shape, lengths, weights, constrained, dense)
    examples = weights.sum().to(quality.device)
    sums = PolicyGradientSums(quality, flops, examples, violation.to(quality.device), measured.to(quality.device), *odd)
    return PolicyStep(estimate.trained, estimate.mode, constrained, dense, mode, lengths, sums, estimate.states)


def flops_objective(
    distribution: PolicyDistribution,
    log_prob: Tensor,
    sampled: Decisions,
    mode: Decisions,
    shape: ModelShape,
    lengths: Lengths,
    settings: PolicyStepSettings,
    weights: Tensor,
) -> Tensor:
    """Returns the weighted sum over examples whose gradient is that of the FLOPs: exact, or a score function."""
    if settings.exact_flops_gradient:
        return (expected_relative_flops(settings.definition, shape, distribution, lengths) * weights).sum().float()
    space: DecisionSpace = distribution.space
    difference = relative_flops(settings.definition, shape, space, sampled, lengths)
    difference = difference - relative_flops(settings.definition, shape, space, mode, lengths)
    return score_function_objective((difference * weights).float(), log_prob)


def constraint_sums(
    settings: PolicyStepSettings,
    distribution: PolicyDistribution,
    shape: ModelShape,
    lengths: Lengths,
    weights: Tensor,
    constrained: Optional[Quality],
    dense: Optional[Quality],
) -> Tuple[Tensor, Tensor]:
    """Returns the summed violation and the weight of the examples it covers: their number, but for corpus FLOPs.

    For a FLOPs budget the violation is E[f] under the (sharpened) policy minus the budget, a closed form.
    """
    measured = weights.sum()
    if settings.flops_budget is not None:
        return budget_violation(settings, distribution, shape, lengths, weights), measured
    if constrained is None or dense is None:
        return torch.zeros(()), torch.zeros(())
    violation = (constrained.per_example - dense.per_example - settings.tolerance).sum()
    return violation, measured


def budget_violation(
    settings: PolicyStepSettings,
    distribution: PolicyDistribution,
    shape: ModelShape,
    lengths: Lengths,
    weights: Tensor,
) -> Tensor:
    """Returns the weighted sum of what the nearly deployed paths cost above the budget, a closed form."""
    with torch.no_grad():
        nearly_deployed = distribution.sharpened(max(settings.temperature, 0.02))
        flops = expected_relative_flops(settings.definition, shape, nearly_deployed, lengths)
    return ((flops - settings.flops_budget) * weights).sum().float()


def flops_weights(settings: PolicyStepSettings, space: DecisionSpace, shape: ModelShape, lengths: Lengths) -> Tensor:
    """Returns what each example's relative FLOPs count for, float32 [B]: 1, or its dense path's share, 1 on average."""
    if settings.mean_dense_flops is None:
        return torch.ones(lengths.source.numel(), device=lengths.source.device)
    return (dense_flops(settings.definition, shape, space, lengths) / settings.mean_dense_flops).float()


def measure_with_dropout_off(evaluator: Evaluator, temperature: float, noise: Noise) -> Tuple[Quality, Quality]:
    """Scores the constraint path and the dense path, dropout off, without gradients."""
    kind = PathRequest("sharpened", temperature=temperature, noise=noise) if temperature > 0 else PathRequest("mode")
    with dropout_off(evaluator.model):
        constrained, _ = evaluator.score(kind)
    with torch.no_grad():
        dense = evaluator.quality(evaluator.dense_dropout_off())
    return constrained, dense


@contextmanager
def dropout_off(model: nn.Module) -> Iterator[None]:
    """Puts a model in eval mode for the block."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@contextmanager
def trainable(policy: nn.Module) -> Iterator[List[nn.Parameter]]:
    """Lets gradients reach the policy's parameters in the block only; the backbone's optimizer must not see them.

    In the block all mathematics is float32, under automatic mixed precision too.
    """
    parameters = trainable_parameters(policy)
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        with torch.enable_grad(), without_autocast(parameters[0].device):
            yield parameters
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)
