import io
import math

import pytest
import torch
from torch import nn

from sd_fairseq.learning.lexicographic import MODES, MultiplierRule, find_multiplier, update_direction
from sd_fairseq.learning.policy_learner import PolicyGradientSums, PolicyLearner, trainable_parameters

RATE, SMOOTHING = 3e-3, 0.8
RULE = MultiplierRule(alpha=10.0, floor=0.1)


def build_policy():
    policy = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))
    return policy, PolicyLearner(sum(p.numel() for p in policy.parameters()))


def copy_of(policy, learner):
    other, other_learner = build_policy()
    other.load_state_dict(policy.state_dict())
    other_learner.load_state_dict(learner.state_dict())
    return other, other_learner


def random_sums(learner, examples=8, measured=None):
    size = learner.first_moment.numel()
    covered = examples if measured is None else measured
    return PolicyGradientSums(
        torch.randn(size),
        torch.randn(size) * 0.1 + 0.02,
        torch.tensor(float(examples)),
        torch.randn(()) * covered,
        torch.tensor(float(covered)),
    )


def update(policy, learner, sums, rule=RULE):
    return learner.update(trainable_parameters(policy), sums, rule, RATE, SMOOTHING)


def everything(policy, learner):
    return [v.clone() for v in list(policy.state_dict().values()) + list(learner.state_dict().values())]


def all_equal(left, right):
    return all(torch.equal(mine, theirs) for mine, theirs in zip(left, right))


@pytest.mark.parametrize("split", [[8], [2, 2, 2, 2], [1] * 8, [5, 3], [1, 7]], ids=str)
def test_any_split_into_micro_batches_gives_the_same_update(split):
    policy, learner = build_policy()
    size = learner.first_moment.numel()
    quality, flops, violation = torch.randn(8, size), torch.randn(8, size), torch.randn(8)
    results = []
    for parts in ([8], split):
        mine, my_learner = copy_of(policy, learner)
        sums, start = PolicyGradientSums.zeros(size, torch.device("cpu")), 0
        for part in parts:
            rows = slice(start, start + part)
            count = torch.tensor(float(part))
            sums = sums + PolicyGradientSums(
                quality[rows].sum(0), flops[rows].sum(0), count, violation[rows].sum(), count
            )
            start += part
        figures = update(mine, my_learner, sums)
        results.append((torch.cat([p.detach().reshape(-1) for p in mine.parameters()]), figures))
    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-6, rtol=0)
    assert results[0][1] == pytest.approx(results[1][1], abs=1e-5)


def test_averages_are_over_examples_and_not_over_micro_batches():
    policy, learner = build_policy()
    one = random_sums(learner, examples=3)
    twice = PolicyGradientSums(2 * one.quality, 2 * one.flops, 2 * one.examples, 2 * one.violation, 2 * one.measured)
    other, other_learner = copy_of(policy, learner)
    update(policy, learner, one)
    update(other, other_learner, twice)
    assert all_equal(everything(policy, learner), everything(other, other_learner))


def test_sums_survive_being_packed_for_an_all_reduce():
    _, learner = build_policy()
    sums = random_sums(learner)
    back = PolicyGradientSums.unflatten(sums.flatten())
    assert sums.flatten().shape == (4 * learner.first_moment.numel() + 4,)
    for name in ("quality", "flops", "examples", "violation", "measured"):
        assert torch.equal(getattr(back, name), getattr(sums, name)), name


@pytest.mark.parametrize("mode", MODES)
def test_an_update_is_torchs_adam_on_the_same_direction(mode):
    rule = MultiplierRule(mode, alpha=2.0, floor=0.05)
    policy, learner = build_policy()
    reference, _ = build_policy()
    reference.load_state_dict(policy.state_dict())
    optimizer = torch.optim.Adam(reference.parameters(), lr=RATE)
    smoothed = None
    for number in range(12):
        sums = random_sums(learner, measured=8 if number % 2 == 0 else 0)
        if float(sums.measured):
            fresh = sums.violation / sums.measured
            smoothed = fresh if smoothed is None else SMOOTHING * smoothed + (1 - SMOOTHING) * fresh
        quality, flops = sums.quality / 8, sums.flops / 8
        multiplier = find_multiplier(rule, quality, flops, smoothed)
        direction = update_direction(rule, multiplier, quality, flops)
        for parameter, piece in zip(
            reference.parameters(), direction.split([p.numel() for p in reference.parameters()])
        ):
            parameter.grad = piece.view_as(parameter).clone()
        optimizer.step()
        figures = update(policy, learner, sums, rule)
        assert figures["sd_multiplier"] == pytest.approx(float(multiplier), rel=1e-5)
        assert figures["sd_violation"] == pytest.approx(float(smoothed), rel=1e-5)
        for mine, theirs in zip(policy.parameters(), reference.parameters()):
            torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5)


def test_resuming_in_the_middle_equals_never_stopping_bit_for_bit():
    policy, learner = build_policy()
    batches = [random_sums(learner, measured=(8, 0)[number % 2]) for number in range(20)]
    stopped, stopped_learner = copy_of(policy, learner)
    for number, sums in enumerate(batches):
        update(policy, learner, sums)
        update(stopped, stopped_learner, sums)
        if number == 9:
            checkpoint = io.BytesIO()
            torch.save({"policy": stopped.state_dict(), "learner": stopped_learner.state_dict()}, checkpoint)
            checkpoint.seek(0)
            state = torch.load(checkpoint)
            stopped, stopped_learner = build_policy()
            stopped.load_state_dict(state["policy"])
            stopped_learner.load_state_dict(state["learner"])
    assert all_equal(everything(policy, learner), everything(stopped, stopped_learner))


def test_an_update_moves_every_parameter_and_leaves_no_gradient_behind():
    policy, learner = build_policy()
    before = [p.detach().clone() for p in policy.parameters()]
    update(policy, learner, random_sums(learner))
    for parameter, old in zip(policy.parameters(), before):
        assert (parameter != old).all()
        assert parameter.grad is None
    assert learner.steps == 1


def test_a_policy_that_the_backbones_optimizer_must_not_see_is_moved_all_the_same():
    policy, learner = build_policy()
    policy.requires_grad_(False)
    before = policy[0].weight.clone()
    update(policy, learner, random_sums(learner))
    assert (policy[0].weight != before).all()
    assert not policy[0].weight.requires_grad


@pytest.mark.parametrize("field", ["quality", "flops", "violation"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_refused_and_changes_nothing(field, bad):
    policy, learner = build_policy()
    update(policy, learner, random_sums(learner))
    before = everything(policy, learner)
    sums = random_sums(learner)
    getattr(sums, field).view(-1)[0] = bad
    with pytest.raises(FloatingPointError, match="not finite"):
        update(policy, learner, sums)
    assert all_equal(everything(policy, learner), before)
    assert all(parameter.grad is None for parameter in policy.parameters())


def test_without_a_measurement_the_violation_stays():
    policy, learner = build_policy()
    update(policy, learner, random_sums(learner))
    before = learner.violation.clone()
    update(policy, learner, random_sums(learner, measured=0))
    assert torch.equal(learner.violation, before)


def test_the_first_measurement_is_taken_whole():
    policy, learner = build_policy()
    sums = random_sums(learner)
    update(policy, learner, sums)
    torch.testing.assert_close(learner.violation, sums.violation / sums.measured)


def test_the_logged_cosine_is_that_of_the_two_gradients():
    policy, learner = build_policy()
    sums = random_sums(learner)
    figures = update(policy, learner, sums)
    expected = torch.cosine_similarity(sums.quality, sums.flops, dim=0)
    assert figures["sd_grad_cosine"] == pytest.approx(float(expected), abs=1e-6)
    assert figures["sd_grad_quality"] == pytest.approx(float(sums.quality.norm()) / 8, rel=1e-5)
    still = PolicyGradientSums.zeros(learner.first_moment.numel(), torch.device("cpu"))
    assert update(policy, learner, still)["sd_grad_cosine"] == 0.0


def test_the_state_stays_float32_when_the_model_is_cast():
    _, learner = build_policy()
    learner.violation.fill_(1 / 3)
    nn.Sequential(learner).half()
    assert all(value.dtype == torch.float32 for value in learner.state_dict().values())
    assert float(learner.violation) == pytest.approx(1 / 3, rel=1e-7)
