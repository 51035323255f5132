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


def sources(count, length=6):
    """Different texts, and no padding in them."""
    tokens = torch.arange(count * length).view(count, length) % 90 + 4
    return tokens, torch.zeros_like(tokens, dtype=torch.bool)


def logits(policy, state, budgets, rows=slice(None)):
    tokens, mask = sources(64)
    with torch.no_grad(), policy.serving(budgets):
        return policy.stage_logits(1, policy.with_budget(state, tokens[rows], mask[rows]))


def test_a_budget_between_two_knots_is_shared_out_so_that_the_mean_is_the_budget():
    uniform = torch.rand(20000, generator=torch.Generator().manual_seed(1))
    for budget in (0.5, 0.53, 0.6, 0.68, 0.8):
        served = RANGE.share_out(torch.full((20000,), budget), uniform)
        assert float(served.mean()) == pytest.approx(budget, abs=2e-3)
        assert len(served.unique()) == (1 if budget in (0.5, 0.6, 0.8) else 2)
        assert torch.allclose(served, torch.tensor([RANGE.knot(int(one)) for one in RANGE.indices(served)]))
    assert RANGE.share_out(torch.tensor([0.1, 0.99]), torch.tensor([0.5, 0.5])).tolist() == pytest.approx([0.5, 0.8])


def test_a_knots_own_budget_is_served_to_every_document():
    """It is no mean of two, however it was rounded."""
    for one in (RANGE, BudgetRange(0.3, 0.9)):
        for budget in map(one.knot, range(KNOTS)):
            served = one.share_out(torch.full((2,), budget), torch.tensor([0.0, 1 - 2**-24]))
            assert served.tolist() == pytest.approx([budget, budget])


def test_any_run_of_updates_has_every_knot_as_often():
    for start in (0, 117, 5000):
        drawn = torch.tensor([RANGE.at(update) for update in range(start, start + 40)])
        assert int(torch.bincount(RANGE.indices(drawn), minlength=KNOTS).min()) >= 9
        knots = torch.tensor([RANGE.knot(int(index)) for index in RANGE.indices(drawn)])
        assert torch.allclose(knots, drawn)


@pytest.mark.parametrize("served", [RANGE, BudgetRange(0.3, 0.9)])
def test_documents_draw_knots_evenly_whatever_their_batch(served):
    ids, space = torch.arange(4000), build_tiny_space()
    drawn = served.spread(Noise.for_examples(ids, 5, space))
    assert drawn.unique().tolist() == pytest.approx([served.knot(index) for index in range(KNOTS)])
    assert int(torch.bincount(served.indices(drawn), minlength=KNOTS).min()) > 900
    assert torch.equal(served.spread(Noise.for_examples(ids[7:9], 5, space)), drawn[7:9])
    assert not torch.equal(served.spread(Noise.for_examples(ids, 6, space)), drawn)


def test_a_document_is_decided_by_its_own_budget_beside_any_other():
    policy, state = build_policy(), torch.randn(64, 8)
    budgets = torch.tensor([0.5, 0.8, 0.65, 0.71]).repeat(16)
    together = logits(policy, state, budgets)
    for row in range(8):
        alone = logits(policy, state[row : row + 1], float(budgets[row]), slice(row, row + 1))
        assert torch.allclose(together[row : row + 1], alone, atol=1e-5)


def test_every_document_takes_a_knot_that_was_learned():
    policy, state = build_policy(), torch.randn(64, 8)
    middle, left, right = (logits(policy, state, budget) for budget in (0.65, 0.6, 0.7))
    takes_left, takes_right = ((middle == one).all(dim=1) for one in (left, right))
    assert bool((takes_left ^ takes_right).all()) and 20 < int(takes_left.sum()) < 44


def test_what_is_served_in_a_block_ends_with_it():
    policy, state = build_policy(), torch.randn(64, 8)
    before = logits(policy, state, policy.budget)
    with pytest.raises(KeyError), policy.serving(0.5):
        raise KeyError
    assert torch.equal(policy.stage_logits(1, policy.with_budget(state, *sources(64))), before)
    assert torch.equal(before, logits(policy, state, 0.7))  # the default


@pytest.mark.parametrize(
    "text", ["", "0.5", "0.8,0.5", "0.5,0.5", "0,0.5", "-0.2,0.5", "0.5,1.1", "a,b", "0.5,0.6,0.7", "nan,0.5"]
)
def test_what_is_no_range_is_refused(text):
    with pytest.raises(ValueError, match="LOW,HIGH"):
        BudgetRange.parse(text)


def test_a_budget_outside_the_range_is_refused_by_its_place():
    for inside in (0.5, 0.65, 0.8):
        RANGE.check(inside, "--sd-flops")
    for outside in (0.49, 0.81):
        with pytest.raises(ValueError, match=f"--sd-flops {outside} is not in the range 0.5 to 0.8"):
            RANGE.check(outside, "--sd-flops")


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
