import pytest
import torch
from factories import build_tiny_space, enumerate_paths, random_distribution, repeat_distribution

from sd_fairseq.decision.policy import PolicyDistribution
from sd_fairseq.learning.reinforce import flat_gradient, score_function_objective, self_critical_advantage

SPACE = build_tiny_space()
PATHS = enumerate_paths(SPACE)


def random_problem():
    """A policy, and a quality for every path: multiples of 1/64, so that float32 differences are exact."""
    one = random_distribution(SPACE)
    one.keep_logits.requires_grad_()
    one.token_logits.requires_grad_()
    return one, torch.randint(0, 256, (len(PATHS),)).double() / 64


def advantages(one, quality):
    """Advantage of every path against the mode path."""
    same = PATHS.same_path(one.mode().index_select(torch.zeros(len(PATHS), dtype=torch.long)))
    return self_critical_advantage(quality, quality[same].expand(len(PATHS)), same), same


def exact_gradient(one, quality):
    probability = repeat_distribution(one, len(PATHS)).log_prob(PATHS).exp()
    return flat_gradient((probability * quality).sum(), [one.keep_logits, one.token_logits])


def summed_score_function(one, quality):
    """The estimate of every path, weighted with the path's probability."""
    advantage, _ = advantages(one, quality)
    log_prob = repeat_distribution(one, len(PATHS)).log_prob(PATHS)
    weighted = advantage.double() * log_prob.detach().exp()
    return flat_gradient(score_function_objective(weighted, log_prob), [one.keep_logits, one.token_logits])


@pytest.mark.parametrize("trial", range(5))
def test_expected_score_function_gradient_is_the_exact_gradient(trial):
    torch.manual_seed(trial)
    one, quality = random_problem()
    torch.testing.assert_close(summed_score_function(one, quality), exact_gradient(one, quality), atol=1e-6, rtol=1e-5)


def test_the_baseline_changes_no_expectation():
    one, quality = random_problem()
    log_prob = repeat_distribution(one, len(PATHS)).log_prob(PATHS)
    weights = log_prob.detach().exp()
    parameters = [one.keep_logits, one.token_logits]
    without = flat_gradient(score_function_objective(quality * weights, log_prob), parameters, retain_graph=True)
    shifted = flat_gradient(score_function_objective((quality - 3.0) * weights, log_prob), parameters)
    torch.testing.assert_close(without, shifted, atol=1e-6, rtol=1e-5)


def test_the_gradient_of_a_bounded_policy_is_exact_too():
    one, quality = random_problem()
    bounded = repeat_distribution(one.bounded(0.8), len(PATHS))
    parameters = [one.keep_logits, one.token_logits]
    log_prob = bounded.log_prob(PATHS)
    exact = flat_gradient((log_prob.exp() * quality).sum(), parameters, retain_graph=True)
    advantage, _ = advantages(one, quality)
    weighted = advantage.double() * log_prob.detach().exp()
    estimated = flat_gradient(score_function_objective(weighted, log_prob), parameters)
    torch.testing.assert_close(estimated, exact, atol=1e-6, rtol=1e-5)


def test_the_mean_over_samples_approaches_the_exact_gradient():
    one, quality = random_problem()
    draws = 20000
    keep = one.keep_logits.detach().expand(draws, -1).clone().requires_grad_()
    tokens = one.token_logits.detach().expand(draws, -1).clone().requires_grad_()
    distribution = PolicyDistribution(SPACE, keep, tokens)
    sampled = distribution.sample()
    weights = 2 ** torch.arange(SPACE.num_switches)
    numbers = (SPACE.to_keep(PATHS) * weights).sum(1) * 3 + PATHS.token_choice
    row = torch.empty(len(PATHS), dtype=torch.long)
    row[numbers] = torch.arange(len(PATHS))
    chosen = row[(SPACE.to_keep(sampled) * weights).sum(1) * 3 + sampled.token_choice]
    advantage, _ = advantages(one, quality)
    objective = score_function_objective(advantage[chosen].double(), distribution.log_prob(sampled))
    estimates = torch.cat(torch.autograd.grad(objective, [keep, tokens]), dim=1)  # one a sample
    error = (estimates.mean(dim=0) - exact_gradient(one, quality)).abs()
    assert (error < 5 * estimates.std(dim=0) / draws**0.5).all()


def test_advantage_is_0_where_the_sample_is_the_mode_whatever_dropout_did():
    sampled, baseline = torch.randn(6), torch.randn(6)
    same = torch.tensor([True, False, True, False, False, True])
    advantage = self_critical_advantage(sampled, baseline, same)
    assert (advantage[same] == 0).all()
    assert torch.equal(advantage[~same], (sampled - baseline)[~same])
    assert advantage.dtype == torch.float32


def test_advantage_of_half_precision_qualities_is_taken_in_float32():
    sampled, baseline = torch.tensor([2.001, 1.0]).half(), torch.tensor([2.0, 1.5]).half()
    same = torch.zeros(2, dtype=torch.bool)
    expected = sampled.float() - baseline.float()
    assert torch.equal(self_critical_advantage(sampled, baseline, same), expected)


def test_no_gradient_flows_through_the_advantage():
    quality = torch.randn(4, requires_grad=True)
    log_prob = torch.randn(4, requires_grad=True)
    advantage = self_critical_advantage(quality, torch.zeros(4), torch.zeros(4, dtype=torch.bool))
    score_function_objective(advantage, log_prob).backward()
    assert quality.grad is None
    assert torch.equal(log_prob.grad, quality.detach())


def test_flat_gradient_is_in_the_order_of_parameters_with_zeros_for_absent_ones():
    first, absent, last = (torch.randn(*size, requires_grad=True) for size in ((2, 3), (4,), (5,)))
    gradient = flat_gradient(first.square().sum() + (3 * last).sum(), [first, absent, last])
    expected = torch.cat([2 * first.detach().reshape(-1), torch.zeros(4), torch.full((5,), 3.0)])
    assert torch.equal(gradient, expected)
    assert first.grad is None
