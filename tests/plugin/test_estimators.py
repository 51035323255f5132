"""Estimates of the quality's gradient: unbiased where they claim to be, and what each of them costs."""

from types import SimpleNamespace

import pytest
import torch
from factories import build_tiny_space, enumerate_paths, random_distribution, repeat_distribution
from training import build_samples, build_training

from sd_fairseq.decision.policy import PolicyDistribution
from sd_fairseq.learning.reinforce import leave_one_out_advantages, score_function_objective
from sd_fairseq.plugin.criterions.estimators import ESTIMATORS, GATED, estimate_quality, salt, through_gates
from sd_fairseq.plugin.criterions.policy_step import Evaluator
from sd_fairseq.plugin.criterions.quality import Quality
from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.plugin.models.switchable_encoder import PathRequest

SPACE = build_tiny_space()


def test_each_sample_is_compared_with_the_mean_of_the_others():
    qualities = torch.randn(3, 4)
    expected = torch.stack([qualities[k] - qualities[[j for j in range(3) if j != k]].mean(dim=0) for k in range(3)])
    torch.testing.assert_close(leave_one_out_advantages(qualities), expected)


def test_leave_one_out_is_the_exact_gradient_in_expectation():
    """All pairs of paths, each weighted by its probability."""
    paths = enumerate_paths(SPACE)
    count = len(paths)
    losses = torch.randn(count, dtype=torch.double)
    one = random_distribution(SPACE)
    leaves = [one.keep_logits.requires_grad_(), one.token_logits.requires_grad_()]
    log_prob = repeat_distribution(one, count).log_prob(paths)
    weight = log_prob.exp().detach()
    expected = torch.autograd.grad((log_prob.exp() * losses).sum(), leaves, retain_graph=True)
    first, second = torch.cartesian_prod(torch.arange(count), torch.arange(count)).unbind(1)
    advantages = leave_one_out_advantages(torch.stack([losses[first], losses[second]]))
    both = weight[first] * weight[second]
    terms = [score_function_objective(a * both, log_prob[chosen]) for a, chosen in zip(advantages, (first, second))]
    found = torch.autograd.grad(torch.stack(terms).mean(), leaves)
    for mine, exact in zip(found, expected):
        torch.testing.assert_close(mine.double(), exact, atol=1e-5, rtol=1e-4)


class LinearEvaluator:
    """Quality is linear in the switches, and tokens do not matter."""

    def __init__(self, distribution, slopes):
        self.distribution, self.slopes, self.requests = distribution, slopes, []
        policy = SimpleNamespace(stages=(1,))
        self.model = SimpleNamespace(encoder=SimpleNamespace(policy=lambda _: distribution), space=SPACE)
        self.model.encoder.policy.stages = policy.stages

    def run(self, request):
        self.requests.append(request)
        sampled = self.distribution.sample(request.noise)
        gates = SPACE.to_keep(sampled).float().requires_grad_()
        per_example = (gates * self.slopes).sum(dim=1)
        tokens = torch.full((gates.size(0),), 7)
        extra = {"switch_gates": [gates], "decisions": sampled, "policy_states": []}
        return Quality(7 * per_example.sum(), 7 * per_example.sum(), per_example.detach(), tokens), extra

    def score(self, request):
        self.requests.append(request)
        keep = SPACE.to_keep(request.decisions).float()
        per_example = (keep * self.slopes).sum(dim=1)
        return Quality(per_example.sum(), per_example.sum(), per_example, torch.ones(1)), request.decisions


def test_straight_through_is_exact_where_quality_is_linear_in_the_switches():
    distribution = random_distribution(SPACE, 5, torch.float32)
    distribution.keep_logits.requires_grad_()
    slopes = torch.randn(5, SPACE.num_switches)
    evaluator = LinearEvaluator(distribution, slopes)
    estimate = through_gates(evaluator, PathRequest("sample", bound=0.9), second_order=False)
    (found,) = torch.autograd.grad(estimate.objective(distribution), [distribution.keep_logits])
    exact = (slopes * distribution.bounded(0.9).keep_probability).sum()
    (expected,) = torch.autograd.grad(exact, [distribution.keep_logits])
    torch.testing.assert_close(found, expected)


class QuadraticEvaluator(LinearEvaluator):
    """Runs given paths; quality is quadratic in every switch, its slope at 1 is 0, as of a trained backbone."""

    def __init__(self, distribution, slopes, paths):
        super().__init__(distribution, slopes)
        self.paths = paths

    def run(self, request):
        gates = SPACE.to_keep(self.paths).float().requires_grad_()
        per_example = (self.slopes * (1 - gates) ** 2).sum(dim=1)
        total, tokens = 7 * per_example.sum(), torch.full((len(self.paths),), 7)
        extra = {"switch_gates": [gates], "decisions": self.paths, "policy_states": []}
        return Quality(total, total, per_example.detach(), tokens), extra


def test_reinmax_is_exact_in_expectation_where_quality_is_quadratic_and_straight_through_is_not():
    """Over all paths, each weighted by its probability; a switch is worth q(1) - q(0) = -slope."""
    paths = enumerate_paths(SPACE)
    one = random_distribution(SPACE, 1, torch.float32)
    every = repeat_distribution(one, len(paths))
    weight = every.log_prob(paths).exp().unsqueeze(1)
    every.keep_logits.requires_grad_()
    slopes = torch.randn(1, SPACE.num_switches)
    found = []
    for second_order in (False, True):
        evaluator = QuadraticEvaluator(every, slopes, paths)
        estimate = through_gates(evaluator, PathRequest("sample", bound=1.0), second_order)
        (gradient,) = torch.autograd.grad(estimate.objective(every), [every.keep_logits])
        found.append((weight * gradient).sum(dim=0))
    probability = one.keep_probability[0]
    exact = -slopes[0] * probability * (1 - probability)
    torch.testing.assert_close(found[1], exact, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(found[0], exact, atol=1e-2, rtol=1e-1)


def test_each_gated_estimator_is_the_one_of_its_name():
    paths = enumerate_paths(SPACE)
    every = random_distribution(SPACE, len(paths), torch.float32)
    every.keep_logits.requires_grad_()
    evaluator = QuadraticEvaluator(every, torch.randn(1, SPACE.num_switches), paths)
    evaluator.sample = {"id": torch.arange(len(paths))}
    for name in GATED:
        estimate = estimate_quality(evaluator, name, 1.0, 1, seed=1, update=0)
        wanted = through_gates(evaluator, PathRequest("sample", bound=1.0), second_order=name == "reinmax")
        found = [torch.autograd.grad(one.objective(every), [every.keep_logits])[0] for one in (estimate, wanted)]
        assert torch.equal(*found) and float(found[0].abs().max()) > 0


@pytest.mark.parametrize("name", ESTIMATORS)
def test_an_example_that_counts_twice_adds_its_estimate_twice(name):
    training, (sample,) = build_training(), build_samples()
    estimate = estimate_quality(Evaluator(training.model, sample, 1, 0.0), name, 0.95, 3, seed=1, update=0)
    distribution = training.model.encoder.policy(estimate.states)
    leaves = [one.detach().requires_grad_() for one in (distribution.keep_logits, distribution.token_logits)]
    distribution = PolicyDistribution(distribution.space, *leaves)
    counts = torch.randint(4, (leaves[0].size(0),)).float()
    plain = torch.autograd.grad(estimate.objective(distribution), leaves)
    weighted = torch.autograd.grad(estimate.objective(distribution, counts), leaves)
    for one, other in zip(plain, weighted):
        torch.testing.assert_close(other, one * counts.unsqueeze(1))
        assert float(one.abs().max()) > 0


@pytest.mark.parametrize("stages", [(1, 2), (1, 2, 3)])
def test_decisions_made_layer_by_layer_have_no_gates(stages):
    evaluator = LinearEvaluator(random_distribution(SPACE, 2, torch.float32), torch.ones(2, SPACE.num_switches))
    evaluator.model.encoder.policy.stages = stages
    with pytest.raises(InputError, match="needs --sd-policy network"):
        through_gates(evaluator, PathRequest("sample"), second_order=False)


def test_the_token_strategys_baseline_differs_in_nothing_else():
    distribution = random_distribution(SPACE, 40, torch.float32)
    evaluator = LinearEvaluator(distribution, torch.randn(40, SPACE.num_switches))
    estimate = through_gates(evaluator, PathRequest("sample", bound=0.9), second_order=False)
    sample, baseline = evaluator.requests
    assert sample.gated and not baseline.gated
    assert torch.equal(SPACE.to_keep(baseline.decisions), SPACE.to_keep(estimate.sampled))
    assert torch.equal(baseline.decisions.token_choice, distribution.mode().token_choice)


def test_no_baseline_is_run_where_every_token_strategy_is_the_modes():
    distribution = random_distribution(SPACE, 6, torch.float32)
    distribution.token_logits[:, 0] = 60.0
    evaluator = LinearEvaluator(distribution, torch.randn(6, SPACE.num_switches))
    through_gates(evaluator, PathRequest("sample"), second_order=False)
    assert len(evaluator.requests) == 1


@pytest.mark.parametrize(
    "name,passes",
    [("score-function", (2,)), ("leave-one-out", (3,)), ("straight-through", (1, 2)), ("reinmax", (1, 2))],
)
def test_forward_passes_of_each_estimator(name, passes):
    training, (sample,) = build_training(), build_samples()
    calls = []
    training.model.encoder.register_forward_hook(lambda *_: calls.append(1))
    estimate_quality(Evaluator(training.model, sample, 1, 0.0), name, 0.95, 3, seed=1, update=0)
    assert len(calls) in passes


def test_sampling_noise_is_never_the_constraints_or_another_samples():
    salts = [salt(1, update, sample) for update in range(3000) for sample in range(4)]
    assert len(set(salts)) == len(salts)
    assert not {one + 1 for one in salts} & set(salts)  # the constraint's


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("split", [(5, 3), (1, 1, 6)])
def test_micro_batches_sum_to_the_gradients_of_one_batch(name, split):
    found = []
    for sizes in ((8,), split):
        training = build_training(sd_estimator=name, sd_samples=3, sd_constraint_interval=1)
        training.criterion.train()
        for sample in build_samples(sizes):
            training.step(sample)
        found.append(sum((sums.flatten() for sums in training.criterion.pending), torch.zeros(())))
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=1e-3)
    assert float(found[0].abs().sum()) > 0


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_moves_the_policy_and_logs_the_mode_only_where_it_was_scored(name):
    training, (sample,) = build_training(sd_estimator=name), build_samples()
    before = training.policy()
    (logged,) = training.update([sample])
    assert not torch.equal(before, training.policy())
    assert ("sd_quality_mode" in logged) == (name == "score-function")


@pytest.mark.parametrize("name", GATED)
def test_a_layer_wise_policy_has_no_gates_and_is_refused_in_one_line(name):
    training, (sample,) = build_training({"sd_policy": "layerwise"}, sd_estimator=name), build_samples()
    with pytest.raises(InputError, match="through gates needs --sd-policy network") as caught:
        training.update([sample])
    assert "\n" not in str(caught.value)
