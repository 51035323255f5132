"""One update of Algorithm 1 through task and criterion: what trains the backbone, moves the policy, is refused."""

import math

import pytest
import torch
import torch.nn.functional as F
from factories import build_model
from training import Training, build_criterion, build_samples, build_task, build_training

from sd_fairseq.cost.path_flops import relative_flops
from sd_fairseq.learning.lexicographic import MODES
from sd_fairseq.plugin.criterions import sd_policy_criterion
from sd_fairseq.plugin.criterions.policy_step import Evaluator, flops_weights
from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.plugin.models.switchable_encoder import PathRequest

SPLITS = [(4, 4), (2, 2, 2, 2), (1, 7), (1,) * 8]


def sampled_decisions(training: Training, sample, update=0):
    """The path that the criterion trains the backbone on: its only forward pass with gradients."""
    seen = []
    hook = training.model.register_forward_hook(
        lambda module, args, output: seen.append(output[1]["decisions"]) if torch.is_grad_enabled() else None
    )
    training.step(sample, update)
    hook.remove()
    assert len(seen) == 1
    return seen[0]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_backbone_gradient_is_plain_cross_entropy_of_the_sampled_path(smoothing):
    training, (sample,) = build_training(label_smoothing=smoothing), build_samples()
    decisions = sampled_decisions(training, sample)
    assert decisions.count_distinct_paths() > 4
    found = {name: p.grad.clone() for name, p in training.model.named_parameters() if p.grad is not None}
    training.model.zero_grad(set_to_none=True)

    logits, _ = training.model(**sample["net_input"], path=PathRequest(decisions=decisions))
    target, pad = sample["target"], training.criterion.padding_idx
    nll = F.cross_entropy(logits.view(-1, logits.size(-1)), target.view(-1), ignore_index=pad, reduction="sum")
    uniform = -logits.log_softmax(-1)[target.ne(pad)].sum()
    rate = smoothing / (logits.size(-1) - 1)  # fairseq spreads the smoothing over the other words
    ((1 - smoothing - rate) * nll + rate * uniform).backward()
    expected = {name: p.grad for name, p in training.model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("policy", ["network", "layerwise"])
def test_the_policy_gets_no_gradient_and_moves_all_the_same(policy):
    training = build_training({"sd_policy": policy})
    before = training.policy()
    for sample in build_samples():
        training.step(sample)
    assert all(p.grad is None and not p.requires_grad for p in training.model.encoder.policy.parameters())
    assert torch.equal(training.policy(), before)
    training.task.optimizer_step(training.optimizer, training.model, 0)
    assert (training.policy() != before).float().mean() > 0.5
    assert all(p.grad is None and not p.requires_grad for p in training.model.encoder.policy.parameters())
    assert training.criterion.pending == []


def test_a_settled_policy_measures_its_budget_on_the_deployed_path():
    """Sampled FLOPs may be on target while the deployed path is not; half-way through the settling they are one."""
    settings = dict(sd_mode="budget", sd_flops_budget=0.6, sd_policy_freeze_update=100, sd_violation_smoothing=0.0)
    for update, alike in ((10, False), (80, True)):
        training, (sample,) = build_training(**settings), build_samples()
        (logged,) = training.update([sample], update)
        deployed = float(logged["sd_flops_generation"]) / float(logged["sd_examples"])
        assert (abs(float(training.model.policy_learner.violation) - (deployed - 0.6)) < 1e-2) == alike


@pytest.mark.parametrize("mode,expected", [("budget", 0.0), ("constrained", 0.9), ("as-printed", 0.9)])
def test_only_a_budget_is_measured_without_a_look_back(mode, expected):
    """E[FLOPs] is a closed form; a loss is as noisy as its batch."""
    found = []
    for options in ({}, {"sd_violation_smoothing": expected}, {"sd_violation_smoothing": 0.5}):
        training = build_training(sd_mode=mode, sd_flops_budget=0.3, sd_constraint_interval=1, **options)
        for update in range(3):
            training.update(build_samples(), update)
        found.append(float(training.model.policy_learner.violation))
    assert found[0] == found[1] != found[2]


def test_a_settling_policy_takes_smaller_steps_and_stops():
    steps = []
    for update in (10, 75, 99):
        training = build_training(sd_policy_freeze_update=100)
        before = training.policy()
        training.update(build_samples(), update)
        steps.append(float((training.policy() - before).abs().max()))
    assert steps[1] == pytest.approx(steps[0] / 2, rel=0.01)
    assert 0 < steps[2] == pytest.approx(steps[0] / 50, rel=0.05)


def test_paths_are_sampled_at_the_temperature_times_the_factor_of_the_settling(monkeypatch):
    training, seen = build_training(sd_constraint_temperature=0.4), []

    class Stopped(Exception):
        pass

    def note(evaluator, settings, update, measure):
        seen.append(settings.temperature)
        raise Stopped

    monkeypatch.setattr(sd_policy_criterion, "policy_step", note)
    for factor in (1.0, 0.5, 0.1):
        monkeypatch.setattr(type(training.criterion.settling), "temperature_factor", lambda self, _, one=factor: one)
        with pytest.raises(Stopped):
            training.step(build_samples()[0])
    assert seen == pytest.approx([0.4, 0.2, 0.04])


def test_a_criterion_trains_unless_told_otherwise():
    criterion = build_training().criterion
    assert not criterion.train(False).training and criterion.train().training


def test_a_norm_that_stays_naive_is_said_once(caplog):
    """All pairs of odd numbers: the halves that an unbiased norm needs are never both there."""
    training, (sample,) = build_training(sd_multiplier_norm="unbiased"), build_samples()
    sample["id"] = 2 * sample["id"] + 1
    said = []
    for before in (9, 48, 49, 50, 99):
        caplog.clear()
        training.model.policy_learner.steps.fill_(before)
        training.update([sample], 0)
        said += [before] * ("stays naive" in caplog.text)
    assert said == [49]  # at the fiftieth update


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("split", [(4, 4), (2, 2, 2, 2)], ids=str)
def test_micro_batches_update_the_policy_as_one_batch_does(mode, split):
    results = []
    for parts in ((8,), split):
        training = build_training(sd_mode=mode, sd_constraint_interval=1, sd_flops_budget=0.3, sd_alpha=200.0)
        for update in range(3):
            training.update(build_samples(parts), update)
        learner = training.model.policy_learner
        results.append((training.policy(), learner.multiplier.clone(), learner.violation.clone(), learner.first_moment))
    for one, many in zip(*results):
        torch.testing.assert_close(many, one, atol=1e-5, rtol=1e-4)
    assert float(results[0][1]) > 0


@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_any_split_sums_to_the_same_gradients(split):
    sums = []
    for parts in ((8,), split):
        training = build_training()
        for sample in build_samples(parts):
            training.step(sample)
        total = training.criterion.pending[0]
        for more in training.criterion.pending[1:]:
            total = total + more
        sums.append(total.flatten())
    torch.testing.assert_close(sums[1], sums[0], atol=1e-5, rtol=1e-4)


def test_a_batch_that_fills_up_a_workers_share_counts_for_nothing():
    training, (sample,) = build_training(), build_samples()
    training.step(sample)
    kept = training.criterion.pending[0].flatten()
    training.step(sample, ignore_grad=True)
    assert len(training.criterion.pending) == 1
    assert torch.equal(training.criterion.pending[0].flatten(), kept)


def test_an_update_without_any_gradient_leaves_the_policy():
    training = build_training()
    before = training.policy()
    training.criterion.update_policy(training.model)
    assert torch.equal(training.policy(), before)


def test_an_update_that_a_loss_scaler_skipped_leaves_nothing_behind():
    results = []
    for skipped in (False, True):
        training, (sample,) = build_training(), build_samples()
        if skipped:  # fairseq's trainer starts over without having asked for an optimizer step
            training.criterion.train()
            training.step(sample)
            training.model.zero_grad(set_to_none=True)
        training.update(build_samples((3,)))
        results.append(training.policy())
    assert torch.equal(results[0], results[1])


def test_warm_up_leaves_the_backbone_and_moves_the_policy():
    training = build_training(sd_policy_warmup_updates=2)
    for update in range(3):
        backbone, policy = training.backbone(), training.policy()
        training.update(build_samples(), update)
        assert torch.equal(training.backbone(), backbone) == (update < 2)
        assert not torch.equal(training.policy(), policy)


def test_the_policy_may_learn_first_and_the_backbone_on_its_paths_after_it():
    training = build_training(sd_policy_warmup_updates=1, sd_policy_freeze_update=1)
    for update in range(2):
        backbone, policy = training.backbone(), training.policy()
        training.update(build_samples(), update)
        assert torch.equal(training.backbone(), backbone) == (update < 1)
        assert torch.equal(training.policy(), policy) == (update >= 1)


@pytest.mark.parametrize("estimator", ["score-function", "reinmax"])
def test_warm_up_moves_the_policy_as_joint_training_would_without_the_backbones_gradient(estimator):
    alone, joint = (build_training(sd_policy_warmup_updates=n, sd_estimator=estimator) for n in (1, 0))
    (sample,) = build_samples()
    for training, wanted in ((alone, False), (joint, True)):
        training.criterion.train()
        training.step(sample)
        assert any(p.grad is not None and bool(p.grad.any()) for p in training.model.parameters()) == wanted
        training.task.optimizer_step(training.optimizer, training.model, 0)
    assert torch.equal(alone.policy(), joint.policy())


def test_a_frozen_policy_stays_and_the_backbone_trains_on_the_deployed_path():
    training, (sample,) = build_training(sd_policy_freeze_update=1), build_samples()
    training.update([sample], 0)
    policy, backbone = training.policy(), training.backbone()
    decisions = sampled_decisions(training, sample, update=1)
    with torch.no_grad():
        mode = training.model.eval()(**sample["net_input"])[1]["decisions"]
    assert decisions.same_path(mode).all()
    training.task.optimizer_step(training.optimizer, training.model, 1)
    assert torch.equal(training.policy(), policy)
    assert not torch.equal(training.backbone(), backbone)


def test_the_sampled_path_changes_with_the_update_and_the_seed_only():
    (sample,) = build_samples()
    first = sampled_decisions(build_training(), sample)
    assert sampled_decisions(build_training(), sample).same_path(first).all()
    for other in (build_training(sd_sampling_seed=2), build_training()):
        update = 1 if other.criterion.cfg.sd_sampling_seed == 1 else 0
        assert not sampled_decisions(other, sample, update).same_path(first).all()


@pytest.mark.parametrize("policy", ["random", "dense"])
def test_a_model_whose_policy_does_not_learn_trains_as_usual(policy):
    training = build_training({"sd_policy": policy}, mixed_paths=False)
    backbone = training.backbone()
    logged = training.update(build_samples())[0]
    assert not torch.equal(training.backbone(), backbone)
    assert training.criterion.pending == [] and "sd_multiplier" not in logged


def damage(training, name):
    parameter = dict(training.model.named_parameters())[name]
    with torch.no_grad():
        parameter.view(-1)[0] = math.nan
    return training.policy(), training.backbone()


def assert_refused(training, sample, before):
    with pytest.raises(InputError, match="nan.*refused|refused.*nan|not finite"):
        training.update([sample])
    torch.testing.assert_close(training.policy(), before[0], rtol=0, atol=0)
    torch.testing.assert_close(training.backbone(), before[1], rtol=0, atol=0, equal_nan=True)
    assert training.model.policy_learner.steps == 0


def test_a_loss_that_is_not_finite_is_refused_before_anything_moves():
    training, (sample,) = build_training(), build_samples()
    assert_refused(training, sample, damage(training, "encoder.layers.0.fc1.weight"))


@pytest.mark.parametrize("policy_is_fresh", [True, False], ids=["deployed path", "dense path"])
def test_another_path_that_is_not_finite_is_refused_before_anything_moves(policy_is_fresh):
    """The sampled path may skip the damaged sub-layer that the deployed or at least the dense path runs."""
    (sample,) = build_samples()
    options = {"mixed_paths": not policy_is_fresh, "sd_bound": 0.55, "sd_constraint_interval": 1}
    skips = ~sampled_decisions(build_training(**options), sample).encoder_ffn[:, 2]
    assert 0 < skips.sum() < 8
    training = build_training(**options)
    before = damage(training, "encoder.layers.2.fc1.weight")
    assert_refused(training, select(sample, skips.nonzero().squeeze(1)), before)


def select(sample, rows):
    """Some examples of a batch, with its padding."""
    net_input = {key: value[rows] for key, value in sample["net_input"].items()}
    target = sample["target"][rows]
    tokens = int(target.ne(1).sum())
    return {"id": sample["id"][rows], "net_input": net_input, "target": target, "ntokens": tokens}


@pytest.mark.parametrize(
    "options,named",
    [
        ({"sd_tolerance": -0.1}, "--sd-tolerance -0.1"),
        ({"sd_tolerance": math.inf}, "--sd-tolerance inf"),
        ({"sd_flops_budget": 0.0}, "--sd-flops-budget 0.0"),
        ({"sd_flops_budget": 1.5}, "--sd-flops-budget 1.5"),
        ({"sd_bound": 0.5}, "--sd-bound 0.5"),
        ({"sd_bound": 1.1}, "--sd-bound 1.1"),
        ({"sd_constraint_temperature": -1.0}, "--sd-constraint-temperature -1.0"),
        ({"sd_constraint_interval": 0}, "--sd-constraint-interval 0"),
        ({"sd_violation_smoothing": 1.0}, "--sd-violation-smoothing 1.0"),
        ({"sd_policy_lr": 0.0}, "--sd-policy-lr 0.0"),
        ({"sd_policy_lr": math.nan}, "--sd-policy-lr nan"),
        ({"sd_cost_beam": 0}, "--sd-cost-beam 0"),
        ({"sd_policy_warmup_updates": -1}, "--sd-policy-warmup-updates -1"),
        ({"sd_policy_freeze_update": -1}, "--sd-policy-freeze-update -1"),
        ({"sd_settle_share": 1.5}, "--sd-settle-share 1.5"),
        ({"sd_policy_freeze_update": 5, "sd_policy_warmup_updates": 6}, "--sd-policy-freeze-update 5"),
        ({"sd_mode": "budget", "sd_track_budget": "yes"}, "--sd-track-budget yes needs --sd-policy-freeze-update"),
        ({"sd_multiplier_floor": 3.0, "sd_multiplier_ceiling": 1.0}, "3.0..1.0"),
        ({"sd_alpha": -1.0}, "-1.0"),
        ({"sd_fixed_weight": 0.0}, "0.0"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value,
)
def test_an_option_out_of_its_range_is_refused_by_name_and_value(options, named):
    with pytest.raises(InputError) as error:
        build_criterion(build_task(), **options)
    assert named in str(error.value)


def test_a_model_without_decisions_is_refused():
    task = build_task()
    with pytest.raises(InputError, match="needs --arch switchable_bart.*BARTModel"):
        build_criterion(task)(build_model("bart_base"), build_samples()[0])


def test_a_task_that_never_updates_the_policy_is_refused():
    from fairseq.tasks.translation import TranslationConfig, TranslationTask

    task = build_task()
    plain = TranslationTask(TranslationConfig(), task.src_dict, task.tgt_dict)
    with pytest.raises(InputError, match="needs --task switchable_translation or .*, found TranslationTask"):
        build_criterion(plain)


TRACKED = {"sd_mode": "budget", "sd_policy_freeze_update": 1, "sd_violation_smoothing": 0.0}


@pytest.mark.parametrize("budget", [0.5, 0.7])
@pytest.mark.parametrize("average", ["examples", "corpus"])
def test_a_fixed_policy_keeps_its_budget_by_a_shift_alone(budget, average, monkeypatch):
    monkeypatch.setattr("sd_fairseq.plugin.criterions.sd_policy_criterion.mean_dense_flops", lambda *_: 4e5)
    found = []
    for tracks, updates in (("no", 3), ("yes", 60)):  # the former moves nothing, the latter settles within ten
        training, samples = build_training(**TRACKED, sd_flops_budget=budget, sd_track_budget=tracks), build_samples()
        training.criterion.cfg.sd_flops_average = average
        training.optimizer.inner.param_groups[0]["lr"] = 0.0
        policy = training.policy()
        for update in range(1, 1 + updates):
            (logged,) = training.update(samples, update)
        assert torch.equal(training.policy(), policy)
        evaluator = Evaluator(training.model, samples[0], 1, 0.0)
        about = training.model.space, evaluator.shape, evaluator.lengths(4)
        weights = flops_weights(training.criterion.settings, *about)
        with torch.no_grad():
            decisions = training.model.eval()(**samples[0]["net_input"])[1]["decisions"]
        flops = relative_flops("generation", evaluator.shape, training.model.space, decisions, evaluator.lengths(4))
        found.append(abs(float((flops * weights).sum() / weights.sum()) - budget))
    assert found[1] < 0.02 < found[0]


def test_the_shift_is_the_same_however_a_batch_is_cut_and_nothing_of_a_skipped_update_stays():
    shifts = []
    for split, spoiled in (((8,), False), ((4, 4), False), ((2, 3, 3), True)):
        training = build_training(**TRACKED, sd_track_budget="yes")
        training.optimizer.inner.param_groups[0]["lr"] = 0.0
        for update in (1, 2):
            if spoiled:  # an update that a loss scaler took back
                training.criterion.train()
                training.step(build_samples((8,))[0], update)
            training.update(build_samples(split), update)
        shifts.append(training.model.encoder.policy.shift.clone())
    assert float(shifts[0].abs()) > 0
    assert torch.allclose(shifts[0], shifts[1], rtol=1e-4) and torch.allclose(shifts[0], shifts[2], rtol=1e-4)


def test_a_batch_that_only_fills_up_a_workers_share_moves_no_shift():
    training = build_training(**TRACKED, sd_track_budget="yes")
    first, filler = build_samples((3, 5))
    training.criterion.train()
    training.step(first, 1)
    noted = [one.clone() for one in training.criterion.budgets.residuals]
    training.step(filler, 1, ignore_grad=True)
    assert len(training.criterion.budgets.residuals) == 1
    assert torch.equal(training.criterion.budgets.residuals[0], noted[0])


def test_a_layerwise_policy_shifts_all_its_networks_alike():
    training = build_training({"sd_policy": "layerwise"}, **TRACKED, sd_track_budget="yes")
    training.update(build_samples(), 1)
    shifts = torch.cat(training.model.encoder.policy.shifts())
    assert float(shifts[0]) != 0 and torch.equal(shifts, shifts[:1].expand_as(shifts))
