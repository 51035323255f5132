"""``--sd-flops-window``: a budget over the corpus is one budget, whatever documents an update happens to hold."""

import math
from argparse import Namespace
from copy import deepcopy

import pytest
import torch
from corpus import all_lengths, corpus_flops, policy_states, train_on
from factories import build_model
from torch import nn
from training import build_samples, build_training

from sd_fairseq.learning.lexicographic import MultiplierRule
from sd_fairseq.learning.policy_learner import PolicyGradientSums, PolicyLearner
from sd_fairseq.learning.recent_documents import RecentDocuments
from sd_fairseq.learning.reinforce import flat_gradient
from sd_fairseq.plugin.criterions import flops_window
from sd_fairseq.plugin.criterions.budgets import Budgets
from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.plugin.guards.presets import FLOPS_WINDOW, Run, criterion_values

BUDGET = dict(sd_mode="budget", sd_flops_budget=0.4, sd_constraint_temperature=1.0, sd_flops_window=64)


def measured(training, update=0):
    """What the policy's update is made of, once its micro-batches have run."""
    criterion, model = training.criterion, training.model
    total = PolicyGradientSums.zeros(model.policy_learner.first_moment.numel(), torch.device("cpu"))
    for one in criterion.pending:
        total = total + one
    criterion.update = update
    criterion.window.recent(model.policy_learner)
    return criterion.window.measure(model, criterion.settings_of_update(model), total)


def frozen_training(samples, **options):
    """A training whose backbone stands still, so that what the policy reads of a document stays the same."""
    training = train_on(samples, **{**BUDGET, **options})
    training.task.optimizer_step = lambda optimizer, model, update: training.criterion.update_policy(model)
    return training


@pytest.mark.parametrize("last", [0, 3, 5])
def test_an_update_of_few_documents_sees_what_all_of_them_cost_under_the_present_policy(last):
    samples = build_samples((1,) * 8)
    training = frozen_training(samples)
    for update, sample in enumerate(samples):
        training.update([sample], update)
    training.criterion.train()
    training.step(samples[last], 8)
    sums = measured(training)
    held = [*samples, samples[last]]
    policy, lengths = training.model.encoder.policy, all_lengths(held)
    parameters = [p.requires_grad_() for p in policy.parameters()]
    expected = corpus_flops(policy(policy_states(training.model, held)), training.model, lengths)
    assert float(sums.violation / sums.measured) == pytest.approx(float(expected.detach()) - 0.4, abs=1e-5)
    gradient = flat_gradient(expected.float(), parameters)
    torch.testing.assert_close(sums.flops / sums.examples, gradient, atol=1e-6, rtol=1e-4)


def test_a_policy_for_a_range_is_measured_at_the_budget_of_the_update_not_of_the_documents():
    samples = build_samples((1,) * 8)
    options = {"sd_budget_range": "0.45,0.9", "sd_space": "encoder,decoder"}
    training = train_on(samples, model_options=options, **BUDGET)
    training.task.optimizer_step = lambda optimizer, model, update: training.criterion.update_policy(model)
    for update, sample in enumerate(samples):  # every update has another budget
        training.update([sample], update)
    model, criterion = training.model, training.criterion
    for update in (8, 9, 10, 11):
        criterion.train()
        training.step(samples[0], update)
        budget = criterion.budgets.of_update(model.encoder.policy, update)
        sums = measured(training, update)
        held = [*samples, *samples[:1] * (update - 7)]
        with torch.no_grad(), model.encoder.policy.serving(budget):
            states = policy_states(model, held)
            expected = corpus_flops(model.encoder.policy(states), model, all_lengths(held))
        assert float(sums.violation / sums.measured) == pytest.approx(float(expected) - budget, abs=1e-5)


def test_the_window_leaves_the_gradient_of_the_quality_alone():
    samples = build_samples((3, 5))
    for training in (with_it := train_on(samples, **BUDGET), without := train_on(samples, sd_mode="budget")):
        training.criterion.train()
        for sample in samples:
            training.step(sample)
    plain = sum(one.quality for one in without.criterion.pending)
    found = measured(with_it)
    torch.testing.assert_close(found.quality, plain)
    assert float(found.examples) == pytest.approx(8.0, rel=1e-5)


@pytest.mark.parametrize("split", [(1, 7), (2, 2, 2, 2), (1,) * 8], ids=str)
def test_micro_batches_update_the_policy_as_one_batch_does(split):
    results = []
    for parts in ((8,), split):
        training = train_on(build_samples(), **BUDGET)
        for update in range(3):
            training.update(build_samples(parts), update)
        learner = training.model.policy_learner
        results.append((training.policy(), learner.violation.clone(), learner.products.clone()))
    for one, many in zip(*results):
        torch.testing.assert_close(many, one, atol=1e-5, rtol=1e-3)


def spend(one_price: bool, updates: int = 600):
    """Two kinds of documents cost alike and lose unlike when skipped; every update holds one kind. Returns what each
    keeps at a budget of one half."""
    policy = nn.Linear(2, 1)
    nn.init.zeros_(policy.weight), nn.init.zeros_(policy.bias)
    learner, parameters = PolicyLearner(3), list(policy.parameters())
    rule = MultiplierRule(mode="budget", alpha=20.0, ceiling=12.0)
    kinds, worth = torch.eye(2), torch.tensor([0.6, 0.2])
    for update in range(updates):
        kind = update % 2
        keep = torch.sigmoid(policy(kinds)).squeeze(1)
        counted = keep.mean() if one_price else keep[kind]
        quality = flat_gradient(worth[kind] * (1 - keep[kind]), parameters, retain_graph=True)
        flops = flat_gradient(counted, parameters)
        one = torch.ones(())
        sums = PolicyGradientSums(quality, flops, one, counted.detach() - 0.5, one)
        learner.update(parameters, sums, rule, 3e-2, 0.0, one_price)
    return torch.sigmoid(policy(kinds)).squeeze(1).tolist()


def test_flops_go_where_they_are_worth_most_and_the_budget_is_met_by_all_together():
    dear, cheap = spend(one_price=True)
    assert (dear + cheap) / 2 == pytest.approx(0.5, abs=0.02)
    assert dear > 0.9 and cheap < 0.1


def test_a_budget_for_every_update_is_a_budget_for_every_kind():
    """What the window is there for: without it the same learner spends alike on both kinds."""
    dear, cheap = spend(one_price=False)
    assert abs(dear - 0.5) < 0.15 and abs(cheap - 0.5) < 0.15


@pytest.mark.parametrize("sizes", [(3,), (5,), (4, 4), (2, 7), (12, 1)], ids=str)
def test_the_newest_documents_are_held(sizes):
    ring, total = RecentDocuments(5, 2), sum(sizes)
    numbers = torch.arange(total)
    start = 0
    for size in sizes:
        part = numbers[start : start + size]
        ring.add(torch.stack([part, -part], dim=1).float(), part + 10, part + 20)
        start += size
    states, source, target = ring.held()
    newest = numbers[-5:].tolist()
    assert sorted(states[:, 0].tolist()) == newest and torch.equal(states[:, 1], -states[:, 0])
    assert torch.equal(source, states[:, 0].long() + 10) and torch.equal(target, states[:, 0].long() + 20)


def test_a_training_that_continues_finds_its_documents_again():
    samples = build_samples((2, 2, 2, 2))
    whole = frozen_training(samples)
    for update in range(4):
        whole.update([samples[update % 4]], update)
        if update == 1:
            stored = deepcopy(whole.model.state_dict())
    resumed = frozen_training(samples)
    resumed.model.load_state_dict(stored)
    for update in (2, 3):
        resumed.update([samples[update % 4]], update)
    for mine, theirs in zip(resumed.model.state_dict().values(), whole.model.state_dict().values()):
        assert torch.equal(mine, theirs)


def test_another_training_from_the_checkpoint_starts_with_no_documents():
    samples = build_samples()
    training = train_on(samples, **BUDGET)
    training.update(samples)
    model = build_model(sd_fresh_learner=True)
    model.load_state_dict(training.model.state_dict())
    assert model.policy_learner.recent is None


def test_a_window_of_another_size_is_refused_where_a_training_continues():
    samples = build_samples()
    training = train_on(samples, **BUDGET)
    training.update(samples)
    other = train_on(samples, **{**BUDGET, "sd_flops_window": 32})
    other.model.load_state_dict(training.model.state_dict())
    with pytest.raises(InputError, match="--sd-flops-window 32: the checkpoint continues with a window of 64"):
        other.update(samples)


def test_a_batch_that_does_not_count_leaves_no_document_behind():
    samples = build_samples((4, 4))
    training = train_on(samples, **BUDGET)
    training.criterion.train()
    training.step(samples[0])
    training.step(samples[1], ignore_grad=True)
    training.task.optimizer_step(training.optimizer, training.model, 0)
    assert int(training.model.policy_learner.recent.seen) == 4
    training.step(samples[1])
    training.criterion.train()  # a loss scaler has skipped the update
    training.update(samples[:1], 1)
    assert int(training.model.policy_learner.recent.seen) == 8


@pytest.mark.parametrize("inputs", ["state", "state+length"])
def test_a_first_layer_told_what_documents_share_reads_what_sets_them_apart(inputs):
    model = build_model(sd_policy_input=inputs)
    policy = model.encoder.policy
    width = policy.hidden.in_features
    states = torch.randn(50, width) * torch.rand(width) + 5 * torch.randn(width)
    mean, deviation = states.mean(0), states.std(0, unbiased=False)
    expected = policy.hidden((states - mean) / deviation)
    before = alikeness(policy, states)
    policy.tell_apart(mean, deviation)
    torch.testing.assert_close(policy.hidden(states), expected, atol=1e-3, rtol=1e-3)
    assert policy.is_fresh() and before > 0.9 > 0.6 > alikeness(policy, states)


def alikeness(policy, states):
    """Mean cosine between the hidden units of two documents."""
    with torch.no_grad():
        hidden = torch.relu(policy.layer_norm(policy.hidden(states)))
    unit = hidden / hidden.norm(dim=1, keepdim=True)
    return float((unit @ unit.t()).mean())


def test_a_fresh_policy_waits_for_documents_and_then_starts_from_what_sets_them_apart(monkeypatch):
    monkeypatch.setattr(flops_window, "START", 16)
    samples = build_samples((3, 5))
    training = build_training(mixed_paths=False, **BUDGET)
    before, seen = training.policy(), []
    for update in range(4):  # 3, 8, 11, 16 documents
        training.update([samples[update % 2]], update)
        seen.append(not torch.equal(training.policy(), before))
        if update == 2:
            states, _, _ = deepcopy(training.model.policy_learner.recent).held()
    assert seen == [False, False, False, True]
    assert len(states) == 11 and float(training.model.policy_learner.steps) == 1
    assert not training.model.encoder.policy.is_fresh()
    again = training.policy()
    training.update(samples, 4)
    step = (training.policy() - again).abs().max()
    assert 0 < float(step) < 1e-3  # it learns on; its first layer is not set anew


def test_a_policy_that_has_learned_is_not_set_anew(monkeypatch):
    monkeypatch.setattr(flops_window, "START", 4)
    training = build_training(mixed_paths=True, **BUDGET)
    before = training.policy()
    training.update(build_samples(), 0)
    assert 0 < float((training.policy() - before).abs().max()) < 1e-3


def test_a_policy_that_reads_nothing_learns_at_once():
    training = build_training({"sd_policy_input": "nothing"}, mixed_paths=False, **BUDGET)
    training.update(build_samples(), 0)
    assert float(training.model.policy_learner.steps) == 1


@pytest.mark.parametrize("warmup", [0, 1, 7])
def test_the_budget_falls_to_its_value_in_a_straight_line(warmup):
    budgets = Budgets(
        build_training(sd_mode="budget", sd_flops_budget=0.6, sd_budget_warmup_updates=warmup).criterion.cfg
    )
    found = [budgets.of_update(Namespace(), update) for update in range(12)]
    steps = [round(a - b, 9) for a, b in zip([1.0, *found], found)]
    assert all(math.isclose(step, 0.4 / max(warmup, 1), abs_tol=1e-9) for step in steps[: max(warmup, 1)])
    assert found[max(warmup, 1) :] == pytest.approx([0.6] * (12 - max(warmup, 1)))


def test_the_preset_measures_a_corpuss_budget_over_many_documents():
    def window(preset="recommended", run=Run(1000, "base.pt"), **given):
        return criterion_values(preset, {"sd_flops_average": "corpus", **given}, run)["sd_flops_window"]

    assert window() == FLOPS_WINDOW
    assert window(sd_flops_average="examples") == window(sd_tolerance=0.05) == window("paper") == 0
    assert window(run=Run(1000, "base.pt", policy="layerwise")) == 0


@pytest.mark.parametrize(
    "options, text",
    [
        ({"sd_flops_window": -1}, "--sd-flops-window -1"),
        ({"sd_budget_warmup_updates": -2}, "--sd-budget-warmup-updates -2"),
    ],
)
def test_what_is_out_of_range_is_refused(options, text):
    with pytest.raises(InputError, match=text):
        build_training(sd_mode="budget", **options)
