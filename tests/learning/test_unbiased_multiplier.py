"""The multiplier's products are those of the expected gradients, and the constraint binds under noise."""

import dataclasses

import pytest
import torch
from torch import nn

from sd_fairseq.learning.lexicographic import MultiplierRule, averaged_products, cross_products, find_multiplier
from sd_fairseq.learning.policy_learner import PolicyGradientSums, PolicyLearner

QUALITY, FLOPS = torch.tensor([0.3, -0.2, 0.1]), torch.tensor([-0.1, 0.25, 0.05])


def draw(noise, count):
    """``count`` pairs of halves whose mean gradients are the exact ones plus noise."""
    for _ in range(count):
        yield [one + noise * torch.randn(3) for one in (QUALITY, FLOPS, QUALITY, FLOPS)]


def test_products_of_two_halves_have_the_exact_mean_and_squares_do_not():
    torch.manual_seed(0)
    drawn = torch.stack([cross_products(*halves) for halves in draw(2.0, 20000)])
    exact = torch.stack([QUALITY @ FLOPS, QUALITY @ QUALITY, FLOPS @ FLOPS])
    error = drawn[:, :3].std(dim=0) / len(drawn) ** 0.5
    assert bool(((drawn[:, :3].mean(dim=0) - exact).abs() < 4 * error).all())
    assert bool((drawn[:, 3:].mean(dim=0) > 20 * exact[1:]).all())


def test_the_multiplier_of_long_averages_is_the_exact_one():
    torch.manual_seed(1)
    rule = MultiplierRule(alpha=1.0, ceiling=1e6)
    exact = find_multiplier(rule, QUALITY, FLOPS, torch.tensor(0.4))
    means = torch.stack([cross_products(*halves) for halves in draw(0.5, 40000)]).mean(dim=0)
    found = find_multiplier(rule, QUALITY, FLOPS, torch.tensor(0.4), averaged_products(means))
    assert float(found) == pytest.approx(float(exact), rel=0.1)
    naive = find_multiplier(rule, QUALITY + torch.tensor([0.9, -1.0, 0.8]), FLOPS, torch.tensor(0.4))
    assert float(naive) < 0.5 * float(exact)


def test_products_that_are_all_noise_do_not_let_the_multiplier_explode():
    averages = torch.tensor([0.0, -1.0, -1.0, 4.0, 2.0])
    products = averaged_products(averages)
    assert float(products.quality) == pytest.approx(0.04) and float(products.flops) == pytest.approx(0.02)


def learn(start, halves, noise, steps=4000, examples=8):
    """Minimises f = |x - b|^2 / 2 subject to q = |x|^2 / 2 <= 0.5 from noisy gradients of q; returns the last q's mean.

    The optimum is the point of the unit circle next to b = (2, 0).
    """
    point = nn.Parameter(torch.tensor(start))
    learner = PolicyLearner(2)
    rule = MultiplierRule(alpha=2.0, ceiling=20.0)
    target = torch.tensor([2.0, 0.0])
    seen = []
    for step in range(steps):
        x = point.detach().clone()
        quality = x + noise * torch.randn(examples, 2)
        flops = (x - target).expand(examples, 2)
        violation = x @ x / 2 - 0.5
        odd = slice(1, None, 2)
        parts = (quality[odd].sum(0), flops[odd].sum(0), torch.tensor(examples / 2)) if halves else ()
        count = torch.tensor(float(examples))
        sums = PolicyGradientSums(quality.sum(0), flops.sum(0), count, violation * examples, count, *parts)
        learner.update([point], sums, rule, 0.01 * (1 - step / steps), 0.0)
        seen.append(float(violation))
    return sum(seen[-300:]) / 300, point.detach()


@pytest.mark.parametrize("start", [[0.1, 0.1], [2.0, 0.5], [-1.0, 1.0]], ids=str)
def test_under_noise_of_thirty_times_the_signal_the_constraint_binds_at_the_optimum(start):
    torch.manual_seed(3)
    noise = (30 * 8 / 2) ** 0.5  # of an example: E|mean noise|^2 = 30 |x|^2 on the circle
    violation, point = learn(start, True, noise)
    assert violation < 0.1
    assert float(point[0]) == pytest.approx(1.0, abs=0.35) and abs(float(point[1])) < 0.5
    broken, _ = learn(start, False, noise)
    assert broken > 0.2


def update_once(quality, violation, mode="constrained"):
    policy = nn.Linear(2, 1, bias=False)
    learner = PolicyLearner(2)
    learner.first_moment.fill_(1.0)  # momentum of earlier steps, that would go on
    learner.second_moment.fill_(1.0)
    learner.steps.fill_(5)
    before = policy.weight.detach().clone()
    one = torch.tensor(1.0)
    sums = PolicyGradientSums(quality, torch.tensor([1.0, 1.0]), one, torch.tensor(violation), one)
    learner.update(list(policy.parameters()), sums, MultiplierRule(mode=mode), 0.1, 0.0)
    return bool(torch.equal(policy.weight.detach(), before))


def test_where_the_constraint_is_broken_and_nothing_is_known_of_quality_flops_do_not_fall():
    nothing = torch.zeros(2)
    assert update_once(nothing, 0.5)
    assert not update_once(nothing, -0.5)  # inside its tolerance the policy may save
    assert not update_once(torch.tensor([0.1, 0.0]), 0.5)
    assert not update_once(nothing, 0.5, mode="budget")


@pytest.mark.parametrize("split", [[8], [2, 2, 2, 2], [3, 5], [1] * 8], ids=str)
def test_products_do_not_depend_on_how_a_batch_is_cut(split):
    torch.manual_seed(4)
    quality, flops, half = torch.randn(8, 3), torch.randn(8, 3), torch.arange(8) % 2
    whole = None
    for parts in ([8], split):
        sums, start = PolicyGradientSums.zeros(3, torch.device("cpu")), 0
        for part in parts:
            rows, odd = slice(start, start + part), half[start : start + part].float().unsqueeze(1)
            count = torch.tensor(float(part))
            halves = ((quality[rows] * odd).sum(0), (flops[rows] * odd).sum(0), odd.sum())
            sums = sums + PolicyGradientSums(quality[rows].sum(0), flops[rows].sum(0), count, count, count, *halves)
            start += part
        found = PolicyGradientSums.unflatten(sums.flatten()).cross_products()
        whole = found if whole is None else whole
        torch.testing.assert_close(found, whole)


def test_products_come_from_halves_that_both_have_examples_and_the_first_are_taken_whole():
    torch.manual_seed(5)
    policy = nn.Linear(3, 1, bias=False)
    learner = PolicyLearner(3)
    one, two = torch.tensor(1.0), torch.tensor(2.0)
    even, odd = torch.randn(2, 3), torch.randn(2, 3)
    sums = PolicyGradientSums(even[0] + odd[0], even[1] + odd[1], two, one, one, odd[0], odd[1], one)
    expected = cross_products(even[0], even[1], odd[0], odd[1])
    torch.testing.assert_close(sums.cross_products(), expected)
    for empty in (torch.tensor(0.0), two):
        assert dataclasses.replace(sums, odd_examples=empty).cross_products() is None
    learner.update(list(policy.parameters()), sums, MultiplierRule(), 0.1, 0.0)
    torch.testing.assert_close(learner.products, expected)
