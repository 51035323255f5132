"""Fitting a policy to a table of paths: its distribution over them, what it finds and what it must not find."""

import pytest
import torch
from factories import build_tiny_space, enumerate_paths, random_distribution

from sd_fairseq.decision.policy import PolicyNetwork
from sd_fairseq.learning.path_table import (
    FitSettings,
    PathTable,
    choose,
    chosen_scores,
    cross_fit,
    fit_policy,
    folds,
    path_log_probs,
)

STATES = 8


def all_paths(space):
    paths = enumerate_paths(space)
    return space.to_keep(paths), paths.token_choice


def build_table(space, examples, gain, seed=0):
    """Three paths of equal FLOPs: the first is better by ``gain`` where the state's first entry is positive, the second
    where it is negative, the third never; noise of 0.2 nats."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(examples, STATES, generator=generator)
    keep, token_choice = all_paths(space)
    loss = 3 + 0.2 * torch.randn(3, examples, generator=generator, dtype=torch.float64)
    loss[0] -= gain * (states[:, 0] > 0)
    loss[1] -= gain * (states[:, 0] <= 0)
    return PathTable(keep[1:4], token_choice[1:4], loss, torch.full_like(loss, 0.7), states)


def builder(space, table):
    def build(path):
        torch.manual_seed(3)
        chosen = space.to_decisions(table.keep[path : path + 1], table.token_choice[path : path + 1])
        return PolicyNetwork(STATES, space, 16, 0.6, chosen)

    return build


def test_the_paths_probabilities_are_those_of_the_policy_and_sum_to_1():
    space = build_tiny_space()
    keep, token_choice = all_paths(space)
    distribution = random_distribution(space, 5)
    found = path_log_probs(distribution, keep, token_choice)
    torch.testing.assert_close(found.logsumexp(dim=1), torch.zeros_like(found[:, 0]), atol=1e-6, rtol=0)
    for path in range(len(keep)):
        decisions = space.to_decisions(keep[path : path + 1].expand(5, -1), token_choice[path : path + 1].expand(5))
        torch.testing.assert_close(found[:, path], distribution.log_prob(decisions))


@pytest.mark.parametrize("count,number", [(10, 10), (23, 10), (7, 3)])
def test_the_folds_are_all_examples_once(count, number):
    parts = folds(count, number, 1)
    assert sorted(torch.cat(parts).tolist()) == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_policy_that_learned_nothing_is_left_as_it_came():
    space = build_tiny_space()
    table = build_table(space, 40, 0.0)
    network = builder(space, table)(2)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert fit_policy(network, table, table, 1.0, FitSettings(epochs=0)) == 0
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert choose(network, table).tolist() == [2] * 40  # what it starts as


def test_what_the_state_tells_is_found_on_examples_that_were_not_fitted():
    space = build_tiny_space()
    table = build_table(space, 600, 0.5)
    chosen = cross_fit(builder(space, table), table, 1.0, FitSettings(), 5)
    right = (chosen == 1) == (table.states[:, 0] <= 0)
    assert float(right.double().mean()) > 0.9
    static = float(table.loss.mean(dim=1).min())
    assert float(chosen_scores(table, chosen)[0].mean()) < static - 0.15  # of 0.25 that there are


def test_where_the_state_tells_nothing_no_gain_is_reported():
    space = build_tiny_space()
    gains = []
    for seed in range(8):
        table = build_table(space, 300, 0.0, seed)
        chosen = cross_fit(builder(space, table), table, 1.0, FitSettings(epochs=20, seed=seed), 5)
        gains.append(float(table.loss.mean() - chosen_scores(table, chosen)[0].mean()))
    assert abs(sum(gains) / len(gains)) < 0.012  # the oracle would claim 0.17


def test_a_fitted_policy_deploys_a_path_of_the_table():
    space = build_tiny_space()
    table = build_table(space, 300, 0.5)
    network = builder(space, table)(0)
    assert fit_policy(network, table, table, 1.0, FitSettings()) > 0
    with torch.no_grad():
        deployed = network([table.states]).mode()
    wanted = choose(network, table)
    assert torch.equal(space.to_keep(deployed), table.keep[wanted])
    assert torch.equal(deployed.token_choice, table.token_choice[wanted])


def test_a_higher_price_buys_fewer_flops():
    space = build_tiny_space()
    table = build_table(space, 200, 0.5)
    flops = table.flops.clone()
    flops[0], flops[1], flops[2] = 0.9, 0.7, 0.5
    table = PathTable(table.keep, table.token_choice, table.loss, flops, table.states)
    means = []
    for price in (0.0, 1.5, 20.0):
        network = builder(space, table)(table.cheapest(price))
        fit_policy(network, table, table, price, FitSettings(batch=16))
        means.append(float(chosen_scores(table, choose(network, table))[1].mean()))
    assert means[0] > means[1] > means[2] == pytest.approx(0.5)
