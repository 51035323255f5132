"""Algorithm 1 on one micro-batch: the sampled path trains w, and the policy's two gradients are summed.

Choice: the self-critical baseline is the mode path of the same example under the same dropout setting, without
gradient. The constraint compares q with c = (dense path's q on the same batch) + tolerance, dropout off.
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

from sd_fairseq.cost.path_flops import Lengths, ModelShape, expected_relative_flops, relative_flops
from sd_fairseq.decision.decisions import Decisions, DecisionSpace
from sd_fairseq.decision.policy import Noise, PolicyDistribution, without_autocast
from sd_fairseq.learning.policy_learner import PolicyGradientSums, trainable_parameters
from sd_fairseq.learning.reinforce import flat_gradient, score_function_objective, self_critical_advantage
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
    """

    bound: float
    temperature: float
    tolerance: float
    flops_budget: Optional[float]
    definition: str
    exact_flops_gradient: bool
    beam: int
    seed: int


class PolicyStep(NamedTuple):
    """What one micro-batch yields.

    Args:
        trained: the path that trains the backbone, with its graph.
        mode: the deployed path's quality, no gradient.
        constrained: the constraint path's quality, or None when it was not measured.
        dense: the dense path's quality, or None likewise.
        decisions: the mode path.
        lengths: of the batch.
        sums: the policy's gradient sums.
    """

    trained: Quality
    mode: Quality
    constrained: Optional[Quality]
    dense: Optional[Quality]
    decisions: Decisions
    lengths: Lengths
    sums: PolicyGradientSums


class Evaluator:
    """Scores paths of one batch.

    Args:
        model: the (possibly wrapped) switchable model.
        sample: fairseq's batch.
        padding: index of the padding symbol.
        smoothing: label smoothing of the backbone's loss.
    """

    def __init__(self, model: Any, sample: Dict[str, Any], padding: int, smoothing: float):
        self.model, self.sample, self.padding, self.smoothing = model, sample, padding, smoothing

    def run(self, path: PathRequest) -> Tuple[Quality, Dict[str, Any]]:
        """Runs one path with gradients; returns its quality and the model's ``extra``."""
        output = self.model(**self.sample["net_input"], path=path)
        return self.quality(output), output[1]

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
    noise = Noise.for_examples(ids, settings.seed * 1000003 + 2 * update, space)
    trained, extra = evaluator.run(PathRequest("sample", bound=settings.bound, noise=noise))
    mode, mode_decisions = evaluator.score(PathRequest("mode"))
    constrained = dense = None
    if measure_constraint:
        other_noise = Noise.for_examples(ids, settings.seed * 1000003 + 2 * update + 1, space)
        constrained, dense = measure_with_dropout_off(evaluator, settings.temperature, other_noise)
    lengths = evaluator.lengths(settings.beam)
    advantage = self_critical_advantage(
        trained.per_example, mode.per_example, extra["decisions"].same_path(mode_decisions)
    )
    policy = model.encoder.policy
    with trainable(policy) as parameters:
        distribution = policy(extra["policy_states"])
        log_prob = distribution.bounded(settings.bound).log_prob(extra["decisions"])
        quality = flat_gradient(score_function_objective(advantage, log_prob), parameters, retain_graph=True)
        cost = flops_objective(
            distribution, log_prob, extra["decisions"], mode_decisions, evaluator.shape, lengths, settings
        )
        flops = flat_gradient(cost, parameters)
    violation, measured = constraint_sums(settings, distribution, evaluator.shape, lengths, constrained, dense)
    examples = torch.tensor(float(ids.numel()), device=quality.device)
    sums = PolicyGradientSums(quality, flops, examples, violation.to(quality.device), measured.to(quality.device))
    return PolicyStep(trained, mode, constrained, dense, mode_decisions, lengths, sums)


def flops_objective(
    distribution: PolicyDistribution,
    log_prob: Tensor,
    sampled: Decisions,
    mode: Decisions,
    shape: ModelShape,
    lengths: Lengths,
    settings: PolicyStepSettings,
) -> Tensor:
    """Returns the sum over examples whose gradient is that of the relative FLOPs: exact, or a score function."""
    if settings.exact_flops_gradient:
        return expected_relative_flops(settings.definition, shape, distribution, lengths).sum().float()
    space: DecisionSpace = distribution.space
    difference = relative_flops(settings.definition, shape, space, sampled, lengths)
    difference = difference - relative_flops(settings.definition, shape, space, mode, lengths)
    return score_function_objective(difference.float(), log_prob)


def constraint_sums(
    settings: PolicyStepSettings,
    distribution: PolicyDistribution,
    shape: ModelShape,
    lengths: Lengths,
    constrained: Optional[Quality],
    dense: Optional[Quality],
) -> Tuple[Tensor, Tensor]:
    """Returns the summed violation and the number of examples it covers.

    For a FLOPs budget the violation is E[f] under the (sharpened) policy minus the budget, a closed form.
    """
    count = lengths.source.numel()
    if settings.flops_budget is not None:
        with torch.no_grad():
            nearly_deployed = distribution.sharpened(max(settings.temperature, 0.02))
            flops = expected_relative_flops(settings.definition, shape, nearly_deployed, lengths)
        return (flops - settings.flops_budget).sum().float(), torch.tensor(float(count))
    if constrained is None or dense is None:
        return torch.zeros(()), torch.zeros(())
    violation = (constrained.per_example - dense.per_example - settings.tolerance).sum()
    return violation, torch.tensor(float(count))


def measure_with_dropout_off(evaluator: Evaluator, temperature: float, noise: Noise) -> Tuple[Quality, Quality]:
    """Scores the constraint path and the dense path, dropout off, without gradients."""
    kind = PathRequest("sharpened", temperature=temperature, noise=noise) if temperature > 0 else PathRequest("mode")
    was_training = evaluator.model.training
    evaluator.model.eval()
    try:
        constrained, _ = evaluator.score(kind)
        dense, _ = evaluator.score(PathRequest("dense"))
    finally:
        evaluator.model.train(was_training)
    return constrained, dense


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
