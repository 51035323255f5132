"""One checkpoint for a range of budgets, from training to generation."""

import pytest
import torch
from factories import build_model, random_batch, undecide
from training import build_samples, build_training

from sd_fairseq.learning.budget_tracking import move_shift
from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.plugin.models.switchable_encoder import PathRequest

RANGE = {"sd_budget_range": "0.45,0.9", "sd_space": "encoder,decoder"}
BUDGET = {"sd_mode": "budget", "sd_violation_smoothing": 0.0, "sd_flops_budget": 0.6}


def share(training, sample, budget):
    """FLOPs of the deployed paths of a sample at a budget, averaged over its documents."""
    training.model.eval()
    with torch.no_grad(), training.model.encoder.policy.serving(budget):
        _, _, figures = training.criterion(training.model, sample)
    return float(figures["sd_flops_generation"]) / float(figures["sd_examples"])


def test_training_meets_every_budget_of_the_range():
    """A policy that overheard its budget would end at the average, 0.65."""
    learning = {"sd_policy_lr": 0.02, "sd_estimator": "reinmax", "sd_constraint_temperature": 0.05}
    learning.update(sd_policy_warmup_updates=300, sd_policy_freeze_update=300, sd_multiplier_ceiling=12.0)
    training = build_training(RANGE, **BUDGET, **learning)
    samples = build_samples()
    for update in range(300):
        training.model.train()
        training.update(samples, update)
    knots = [training.model.encoder.policy.budgets.knot(index) for index in range(4)]
    found = [share(training, samples[0], budget) for budget in knots]
    assert found == pytest.approx(knots, abs=0.06)


def test_a_fixed_policy_trains_the_backbone_at_budgets_drawn_for_each_document():
    training = build_training(RANGE, **BUDGET, sd_policy_freeze_update=1)
    seen = []
    policy = training.model.encoder.policy
    stage_logits = policy.stage_logits
    policy.stage_logits = lambda stage, state: seen.append(state[:, -1].clone()) or stage_logits(stage, state)
    for update in (1, 2):
        (logged,) = training.update(build_samples(), update)
        assert float(logged["sd_budget"]) == pytest.approx(float(seen[-1].sum()), rel=1e-5)
    assert len(set(seen[0].tolist())) > 2 and not torch.equal(seen[0], seen[1])


def test_the_policys_updates_have_the_updates_own_budget():
    training = build_training(RANGE, **BUDGET)
    drawn = []
    for update in range(4):
        (logged,) = training.update(build_samples(), update)
        drawn.append(float(logged["sd_budget"]) / float(logged["sd_sampled"]))
    budgets = training.model.encoder.policy.budgets
    assert drawn == pytest.approx([budgets.at(update) for update in range(4)], rel=1e-5)


def test_a_model_serves_what_is_asked_else_what_its_checkpoint_says_else_what_it_was_trained_for():
    trained = build_model(**RANGE, sd_flops_budget=0.6)
    assert float(trained.encoder.policy.budget) == pytest.approx(0.6)
    trained.encoder.policy.budget.fill_(0.8)  # as a calibration does
    state = trained.state_dict()
    for asked, expected in ((None, 0.8), (0.5, 0.5)):
        model = build_model(**RANGE, sd_flops_budget=0.6, sd_served_budget=asked)
        model.load_state_dict(dict(state))
        assert float(model.encoder.policy.budget) == pytest.approx(expected)


@torch.no_grad()
def test_less_is_run_at_a_smaller_budget_where_the_policy_says_so():
    model, batch = build_model(**RANGE), random_batch()
    undecide(model)
    policy = model.encoder.policy
    policy.heads.bias.copy_(torch.linspace(-40, 40, 4).repeat_interleave(policy.outputs))
    kept = []
    for budget in (0.45, 0.9):
        with policy.serving(budget):
            decisions = model.encoder(**batch.net_input)["decisions"][0]
        kept.append(int(model.space.to_keep(decisions).sum()))
    assert kept == [0, 6 * model.space.num_switches]
    assert bool(model.encoder(**batch.net_input, path=PathRequest("dense"))["decisions"][0].decoder_ffn.all())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({**RANGE, "sd_served_budget": 0.3}, "--sd-flops-budget 0.3 is not in the range 0.45 to 0.9"),
        ({**RANGE, "sd_flops_budget": 0.95}, "--sd-flops-budget 0.95 is not in the range"),
        ({"sd_served_budget": 0.5}, "needs a policy that was trained with --sd-budget-range"),
        ({**RANGE, "sd_policy": "layerwise"}, "needs --sd-policy network, found layerwise"),
        ({"sd_budget_range": "0.9,0.4"}, "'0.9,0.4' is not LOW,HIGH"),
    ],
)
def test_a_budget_that_cannot_be_served_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        build_model(**options)


def test_a_range_without_a_budgets_mode_is_refused():
    training = build_training(RANGE, sd_mode="constrained")
    with pytest.raises(InputError, match="needs --sd-mode budget, found constrained"):
        training.update(build_samples(), 0)


def test_every_knot_of_a_range_has_a_shift_that_its_own_documents_move():
    options = {**BUDGET, "sd_policy_freeze_update": 1, "sd_track_budget": "yes"}
    training = build_training(RANGE, **options)
    policy = training.model.encoder.policy
    with torch.no_grad():  # the two small knots skip everything, the two large ones nothing
        policy.heads.weight.zero_()
        policy.heads.bias.copy_(torch.tensor([-2.0, -2.0, 2.0, 2.0]).repeat_interleave(policy.outputs))
    training.optimizer.inner.param_groups[0]["lr"] = 0.0
    for update in range(1, 40):
        training.update(build_samples(), update)
    shifts = policy.shift.tolist()
    assert shifts[0] > 0 and shifts[1] > 0 and shifts[2] < 0
    moved = policy.shift.clone()
    move_shift(policy.shift, torch.tensor([0.0, 1.0, 0.0, 0.0]), torch.tensor([0.0, 2.0, 0.0, 0.0]), 50)
    assert (policy.shift - moved).tolist() == pytest.approx([0.0, 0.5, 0.0, 0.0], abs=1e-5)
