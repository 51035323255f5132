"""How the gradient of E[quality] with respect to the policy is estimated (section 3.2, "Optimization").

Choice: the paper's estimator is the score function with the mode path's loss as baseline. Others stand beside it:
leave-one-out baselines of several sampled paths (unbiased too, less noise, more forward passes), and gradients through
gates: the switches of the one sampled path are gates of 0 and 1 whose slopes are taken at these values (biased, no
second forward pass for the switches; the token strategy keeps the score function).

What a switch is worth is L(1) - L(0), and straight-through puts the slope at the sampled value in its place. Of a
trained backbone the slope at 1 is about 0, because scaling a sub-layer's output is something its weights have learned,
so at high keep-probabilities nearly nothing is left. ``reinmax`` (Liu et al., "Bridging Discrete and Backpropagation",
NeurIPS 2023) weights each slope by 1 / (2 pi(sampled value)): in expectation the mean of the slopes at 0 and at 1,
which is L(1) - L(0) itself where the loss is quadratic in the gate.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, List, NamedTuple, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from sd_fairseq.decision.decider import PathRequest
from sd_fairseq.decision.decisions import Decisions
from sd_fairseq.decision.noise import Noise
from sd_fairseq.decision.policy import PolicyDistribution
from sd_fairseq.learning.reinforce import leave_one_out_advantages, score_function_objective, self_critical_advantage
from sd_fairseq.plugin.criterions.quality import Quality
from sd_fairseq.plugin.guards.errors import InputError

ESTIMATORS = ("score-function", "leave-one-out", "straight-through", "reinmax")
GATED = ("straight-through", "reinmax")


class QualityEstimate(NamedTuple):
    """What one estimator makes of one micro-batch.

    Args:
        trained: the sampled path that trains the backbone, with its graph.
        sampled: its decisions.
        states: what the policy saw, one detached [B, C] a stage.
        objective: maps the policy's distribution (not yet bounded), and what each example counts for [B] (None = 1),
            to the sum over examples whose gradient is the estimate.
        mode, mode_decisions: the mode path's quality and decisions, where the estimator needs them.
    """

    trained: Quality
    sampled: Decisions
    states: List[Tensor]
    objective: Callable[..., Tensor]
    mode: Optional[Quality] = None
    mode_decisions: Optional[Decisions] = None


def salt(seed: int, update: int, sample: int = 0) -> int:
    """Returns the salt of an update's sampling noise; odd ones are the constraint's."""
    return seed * 1000003 + 2 * (update + 500009 * sample)


def estimate_quality(evaluator: Any, name: str, bound: float, samples: int, seed: int, update: int) -> QualityEstimate:
    """Samples a path, runs it with gradients, and estimates.

    Args:
        evaluator: an :class:`~sd_fairseq.plugin.criterions.policy_step.Evaluator`.
        name: one of :data:`ESTIMATORS`.
        bound: sampling probabilities are p <- a p + (1 - a)(1 - p).
        samples: paths an example, for ``leave-one-out``.
        seed, update: of the sampling noise.
    """
    ids, space = evaluator.sample["id"], evaluator.model.space
    requests = [
        PathRequest("sample", bound=bound, noise=Noise.for_examples(ids, salt(seed, update, sample), space))
        for sample in range(samples if name == "leave-one-out" else 1)
    ]
    if name == "leave-one-out":
        return leave_one_out(evaluator, requests)
    if name in GATED:
        return through_gates(evaluator, requests[0], second_order=name == "reinmax")
    return self_critical(evaluator, requests[0])


def self_critical(evaluator: Any, request: PathRequest) -> QualityEstimate:
    """The paper's: score function; baseline = the mode path of the same example in the same dropout setting."""
    trained, extra = evaluator.run(request)
    mode, mode_decisions = evaluator.score(PathRequest("mode"))
    sampled = extra["decisions"]
    advantage = self_critical_advantage(trained.per_example, mode.per_example, sampled.same_path(mode_decisions))

    def objective(distribution: PolicyDistribution, counts: Optional[Tensor] = None) -> Tensor:
        log_prob = distribution.bounded(request.bound).log_prob(sampled)
        return score_function_objective(advantage, log_prob if counts is None else log_prob * counts)

    return QualityEstimate(trained, sampled, extra["policy_states"], objective, mode, mode_decisions)


def leave_one_out(evaluator: Any, requests: List[PathRequest]) -> QualityEstimate:
    """Score function of K samples; the baseline of each is the mean of the others. The first one is trained on."""
    trained, extra = evaluator.run(requests[0])
    others = [evaluator.score(request) for request in requests[1:]]
    decisions = [extra["decisions"]] + [path for _, path in others]
    qualities = torch.stack([trained.per_example.detach()] + [quality.per_example for quality, _ in others])  # [K, B]
    advantages = leave_one_out_advantages(qualities)

    def objective(distribution: PolicyDistribution, counts: Optional[Tensor] = None) -> Tensor:
        bounded = distribution.bounded(requests[0].bound)
        values = advantages if counts is None else advantages * counts
        terms = [score_function_objective(a, bounded.log_prob(path)) for a, path in zip(values, decisions)]
        return torch.stack(terms).mean()

    return QualityEstimate(trained, decisions[0], extra["policy_states"], objective)


def through_gates(evaluator: Any, request: PathRequest, second_order: bool) -> QualityEstimate:
    """Gradients through gates for the switches; for the token strategy the score function.

    The token strategy's baseline runs the sampled switches with the mode's token strategy, so that the two paths
    differ in nothing else.

    Args:
        evaluator: of the micro-batch.
        request: the path to sample.
        second_order: False = straight-through, True = ``reinmax``.

    Raises:
        InputError: decisions made layer by layer, whose gates would be opened too late.
    """
    if len(getattr(evaluator.model.encoder.policy, "stages", ())) > 1:
        raise InputError("--sd-estimator through gates needs --sd-policy network, found a layer-wise policy")
    trained, extra = evaluator.run(request._replace(gated=True))
    (gates,) = extra["switch_gates"]  # [B, num_switches]
    (slope,) = torch.autograd.grad(trained.nll, [gates], retain_graph=True, allow_unused=True)
    slope = torch.zeros_like(gates) if slope is None else slope.float() / trained.tokens.unsqueeze(1)
    sampled = extra["decisions"]
    tokens = token_advantage(evaluator, trained, sampled, extra["policy_states"])

    def objective(distribution: PolicyDistribution, counts: Optional[Tensor] = None) -> Tensor:
        bounded = distribution.bounded(request.bound)
        keep = bounded.keep_probability
        slopes = slope
        if second_order:
            taken = torch.where(evaluator.model.space.to_keep(sampled), keep, 1 - keep).detach()
            slopes = slope / (2 * taken)
        switches = (slopes * keep if counts is None else slopes * keep * counts.unsqueeze(1)).sum()
        log_prob = F.log_softmax(bounded.token_logits, dim=-1).gather(1, sampled.token_choice.unsqueeze(1)).squeeze(1)
        return switches + score_function_objective(tokens, log_prob if counts is None else log_prob * counts)

    return QualityEstimate(trained, sampled, extra["policy_states"], objective)


def token_advantage(evaluator: Any, trained: Quality, sampled: Decisions, states: List[Tensor]) -> Tensor:
    """Returns q(sampled tokens) - q(the mode's tokens), all switches alike, float32 [B]."""
    with torch.no_grad():
        mode = evaluator.model.encoder.policy(states).mode()
    same = sampled.token_choice == mode.token_choice
    if bool(same.all()):
        return torch.zeros_like(trained.per_example)
    values: Dict[str, Tensor] = {**vars(sampled), "token_choice": mode.token_choice}
    baseline, _ = evaluator.score(PathRequest(decisions=Decisions(**values)))
    return self_critical_advantage(trained.per_example, baseline.per_example, same)
