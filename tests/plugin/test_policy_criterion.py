"""One update of Algorithm 1 through task and criterion: what trains the backbone, moves the policy, is refused."""

import math

import pytest
import torch
import torch.nn.functional as F
from factories import build_model
from training import Training, build_criterion, build_samples, build_task, build_training

from sd_fairseq.learning.lexicographic import MODES
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
        assert (abs(float(training.model.policy_learner.violation) - (deployed - 0.6)) < 2e-3) == alike


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


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("split", [(4, 4), (2, 2, 2, 2)], ids=str)
def test_micro_batches_update_the_policy_as_one_batch_does(mode, split):
    results = []
    for parts in ((8,), split):
        training = build_training(sd_mode=mode, sd_constraint_interval=1, sd_flops_budget=0.3)
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


@pytest.mark.parametrize("holds", ["yes", "no"])
def test_decisions_of_a_fixed_policy_drift_only_where_what_it_reads_trains_on(holds):
    """Without a gradient of its own an embedding would still move: by momentum, decay or a flattened master copy."""
    training, (sample,) = build_training(sd_policy_freeze_update=1, sd_hold_policy_input=holds), build_samples()
    training.optimizer.inner = torch.optim.SGD(training.model.parameters(), lr=0.5, momentum=0.9, weight_decay=0.1)
    training.update([sample], 0)
    encoder, logits = training.model.encoder, []
    before = {name: value.clone() for name, value in training.model.named_parameters()}
    for update in (1, 2, 3):
        training.update([sample], update)
        training.model.eval()
        with torch.no_grad():
            logits.append(encoder.policy.stage_logits(1, encoder(**sample_source(sample))["policy_states"][0]))
    assert torch.equal(logits[0], logits[-1]) == (holds == "yes")
    moved = {name for name, value in training.model.named_parameters() if not torch.equal(value, before[name])}
    assert any(name.startswith("encoder.layers.1.") for name in moved)
    read = ("encoder.embed", "encoder.layernorm_embedding", "encoder.layers.0.")
    assert any(name.startswith(read) for name in moved) == (holds == "no")


def sample_source(sample):
    return {"src_tokens": sample["net_input"]["src_tokens"]}
