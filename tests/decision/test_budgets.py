"""A policy for a range of budgets: each is served, alone or beside others, between two knots by both."""

import pytest
import torch
from factories import build_tiny_space

from sd_fairseq.decision.budgets import KNOTS, BudgetRange
from sd_fairseq.decision.noise import Noise
from sd_fairseq.decision.policy import PolicyNetwork

RANGE = BudgetRange(0.5, 0.8)


def build_policy():
    torch.manual_seed(3)
    policy = PolicyNetwork(8, build_tiny_space(), budgets=RANGE)
    torch.nn.init.normal_(policy.heads.weight)
    torch.nn.init.normal_(policy.heads.bias)
    return policy


def logits(policy, state, budgets):
    with torch.no_grad(), policy.serving(budgets):
        return policy.stage_logits(1, policy.with_budget(state))


def test_weights_are_shares_of_two_neighbouring_knots_whose_budget_is_the_one_served():
    budgets = torch.linspace(0.5, 0.8, 31)
    weights = RANGE.weights(budgets)
    assert torch.allclose(weights.sum(dim=1), torch.ones(31)) and bool((weights >= 0).all())
    assert int((weights > 1e-5).sum(dim=1).max()) == 2
    assert torch.allclose(weights @ torch.linspace(0.5, 0.8, KNOTS), budgets, atol=1e-6)
    assert torch.equal(RANGE.weights(torch.tensor([0.1, 0.99])), torch.eye(KNOTS)[[0, -1]])


def test_any_run_of_updates_covers_the_range_evenly():
    for start in (0, 117, 5000):
        drawn = torch.tensor([RANGE.at(update) for update in range(start, start + 40)])
        counts = torch.histc(drawn, bins=4, min=0.5, max=0.8)
        assert int(counts.min()) >= 9 and all(RANGE.holds(float(one)) for one in drawn)


def test_documents_draw_budgets_evenly_whatever_their_batch():
    ids, space = torch.arange(4000), build_tiny_space()
    drawn = RANGE.spread(Noise.for_examples(ids, 5, space))
    counts = torch.histc(drawn, bins=4, min=0.5, max=0.8)
    assert int(counts.min()) > 900 and all(RANGE.holds(float(one)) for one in drawn[:50])
    assert torch.equal(RANGE.spread(Noise.for_examples(ids[7:9], 5, space)), drawn[7:9])
    assert not torch.equal(RANGE.spread(Noise.for_examples(ids, 6, space)), drawn)


def test_a_document_is_decided_by_its_own_budget_beside_any_other():
    policy, state = build_policy(), torch.randn(5, 8)
    budgets = torch.tensor([0.5, 0.8, 0.65, 0.71, 0.5])
    together = logits(policy, state, budgets)
    for row, budget in enumerate(budgets):
        assert torch.allclose(together[row : row + 1], logits(policy, state[row : row + 1], float(budget)), atol=1e-5)


def test_between_two_knots_logits_are_a_straight_line():
    policy, state = build_policy(), torch.randn(3, 8)
    left, middle, right = (logits(policy, state, budget) for budget in (0.6, 0.65, 0.7))
    assert torch.allclose((left + right) / 2, middle, atol=1e-4) and not torch.allclose(left, right, atol=0.1)


def test_what_is_served_in_a_block_ends_with_it():
    policy, state = build_policy(), torch.randn(2, 8)
    before = policy.stage_logits(1, policy.with_budget(state))
    with pytest.raises(KeyError), policy.serving(0.5):
        raise KeyError
    assert torch.equal(policy.stage_logits(1, policy.with_budget(state)), before)
    assert torch.equal(before, logits(policy, state, 0.7))  # the default


@pytest.mark.parametrize("text", ["", "0.5", "0.8,0.5", "0.5,0.5", "0,0.5", "0.5,1.1", "a,b", "0.5,0.6,0.7", "nan,0.5"])
def test_what_is_no_range_is_refused(text):
    with pytest.raises(ValueError, match="LOW,HIGH"):
        BudgetRange.parse(text)


def test_a_larger_shift_keeps_more():
    space = build_tiny_space()
    torch.manual_seed(0)
    policy = PolicyNetwork(8, space)
    torch.nn.init.normal_(policy.heads.weight)
    kept, states = [], [torch.randn(64, 8)]
    for shift in (-3.0, 0.0, 3.0):
        policy.shift.fill_(shift)
        mode = policy(states).mode()
        kept.append(int(space.to_keep(mode).sum()) + int((mode.token_choice == 0).sum()))
    assert kept[0] < kept[1] < kept[2]
