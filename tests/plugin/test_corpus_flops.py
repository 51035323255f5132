"""``--sd-flops-average corpus``: what is minimised is all documents' FLOPs over all their dense paths'."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from corpus import BEAM, all_lengths, corpus_flops, pending, policy_states, train_on
from factories import random_distribution
from training import build_samples, build_training

from sd_fairseq.cost.path_flops import Lengths, ModelShape, expected_relative_flops
from sd_fairseq.learning.reinforce import flat_gradient
from sd_fairseq.plugin.criterions.corpus_flops import mean_dense_flops
from sd_fairseq.plugin.criterions.policy_step import flops_objective, flops_weights
from sd_fairseq.plugin.guards.errors import InputError


@pytest.mark.parametrize("split", [(8,), (4, 4), (1, 7), (3, 1, 4)], ids=str)
def test_the_flops_gradient_is_that_of_the_corpuss_flops_however_it_is_cut_into_batches(split):
    samples = build_samples(split)
    training = train_on(samples)
    sums = pending(training, samples)
    found = sums.flops / sums.examples

    states = policy_states(training.model, samples)
    policy = training.model.encoder.policy
    parameters = [p.requires_grad_() for p in policy.parameters()]
    expected = flat_gradient(corpus_flops(policy(states), training.model, all_lengths(samples)).float(), parameters)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)
    each = expected_relative_flops("generation", training.model.shape, policy(states), all_lengths(samples))
    assert not torch.allclose(found, flat_gradient(each.mean().float(), parameters), atol=1e-6, rtol=1e-2)


def test_over_the_corpus_losses_are_divided_by_the_number_of_documents():
    samples = build_samples((3, 5))
    sums, plain = pending(train_on(samples), samples), pending(build_training(), samples)
    assert float(sums.examples) == pytest.approx(8.0, rel=1e-5) and float(plain.examples) == 8.0
    torch.testing.assert_close(sums.quality, plain.quality)


def test_a_budgets_violation_is_that_of_the_corpus():
    samples = build_samples((2, 6))
    options = dict(sd_mode="budget", sd_flops_budget=0.4, sd_constraint_temperature=1.0)
    training = train_on(samples, **options)
    sums = pending(training, samples)
    states = policy_states(training.model, samples)
    with torch.no_grad():
        expected = corpus_flops(training.model.encoder.policy(states), training.model, all_lengths(samples)) - 0.4
    assert float(sums.violation / sums.measured) == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize("mode", ["constrained", "budget"])
@pytest.mark.parametrize("split", [(1, 7), (2, 2, 2, 2)], ids=str)
def test_micro_batches_update_the_policy_as_one_batch_does(mode, split):
    results = []
    for parts in ((8,), split):
        training = train_on(build_samples(), sd_mode=mode, sd_constraint_interval=1, sd_flops_budget=0.3)
        for update in range(3):
            training.update(build_samples(parts), update)
        results.append((training.policy(), training.model.policy_learner.violation.clone()))
    for one, many in zip(*results):
        torch.testing.assert_close(many, one, atol=1e-5, rtol=1e-4)


def test_the_score_function_is_weighed_alike():
    model = build_training().model
    distribution = random_distribution(model.space, 3)
    lengths = Lengths(torch.tensor([5, 50, 500]), torch.tensor([3, 5, 9]), BEAM)
    settings = build_training(sd_score_function_flops=True).criterion.settings
    sampled, mode = model.space.keep_all(3, torch.device("cpu")), distribution.mode()
    log_prob = torch.zeros(3, requires_grad=True)
    gradients, chosen = [], [torch.ones(3), torch.tensor([0.1, 1.0, 7.0])]
    for weights in chosen:
        objective = flops_objective(distribution, log_prob, sampled, mode, model.shape, lengths, settings, weights)
        gradients.append(torch.autograd.grad(objective, log_prob)[0])
    torch.testing.assert_close(gradients[1], gradients[0] * chosen[1])
    assert gradients[0].abs().min() > 0


def test_weights_are_1_on_average_and_grow_with_what_a_document_costs():
    shape = ModelShape(16, 16, 32, 32, 90)
    space, settings = build_training().model.space, build_training().criterion.settings
    sizes = np.array([3, 30, 300])
    task = SimpleNamespace(
        cfg=SimpleNamespace(train_subset="other"),
        dataset=lambda split: {"other": SimpleNamespace(src_sizes=sizes, tgt_sizes=sizes)}[split],
    )
    mean = mean_dense_flops(task, "generation", shape, space, BEAM)
    lengths = Lengths(torch.tensor(sizes), torch.tensor(sizes), BEAM)
    weights = flops_weights(replace(settings, mean_dense_flops=mean), space, shape, lengths)
    assert float(weights.mean()) == pytest.approx(1.0, rel=1e-6)
    assert torch.equal(weights, weights.sort().values) and float(weights[-1] / weights[0]) > 50
    assert torch.equal(flops_weights(settings, space, shape, lengths), torch.ones(3))


def test_data_without_pairs_are_refused():
    training = build_training(sd_flops_average="corpus")
    training.task.dataset = lambda split: SimpleNamespace(sizes=[1, 2])
    with pytest.raises(InputError, match="--sd-flops-average corpus needs pairs of source and target"):
        training.step(build_samples()[0])
