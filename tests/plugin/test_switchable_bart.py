"""Checkpoints that the model takes and refuses, and its precision."""

import logging

import pytest
import torch
from factories import build_dictionary, build_model, build_switchable_twin, generate, random_batch, undecide

from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.plugin.models.switchable_layers import FUSED_KERNEL_COPIES

POLICY_KEYS = ("encoder.policy.", "policy_learner.")


def state_of(model):
    """A copy, because loading edits what it is given."""
    return {key: value.clone() for key, value in model.state_dict().items()}


def policy_state(model):
    return {key: value for key, value in state_of(model).items() if key.startswith(POLICY_KEYS)}


def assert_same_states(left, right):
    assert left.keys() == right.keys()
    for key, value in left.items():
        assert torch.equal(value, right[key]), key


@pytest.mark.parametrize("policy", ["network", "layerwise", "random", "dense"])
def test_a_plain_bart_checkpoint_loads_strictly_and_leaves_the_policy_fresh(policy):
    bart, model = build_model("bart_base"), build_model(sd_policy=policy)
    fresh = policy_state(model)
    model.load_state_dict(state_of(bart), strict=True)
    assert_same_states(policy_state(model), fresh)
    backbone = {key: value for key, value in state_of(model).items() if not key.startswith(POLICY_KEYS)}
    assert_same_states(backbone, state_of(bart))
    assert bool(fresh) == (policy in ("network", "layerwise"))


def test_a_plain_bart_checkpoint_is_announced_to_get_a_fresh_policy(caplog):
    bart, model = build_model("bart_base"), build_model()
    with caplog.at_level(logging.INFO):
        model.load_state_dict(state_of(bart))
    assert "fresh" in caplog.text
    caplog.clear()
    model.load_state_dict(state_of(model))
    assert "fresh" not in caplog.text


@pytest.mark.parametrize("policy", ["network", "layerwise"])
def test_a_switchable_checkpoint_brings_its_policy_and_the_learners_state(policy):
    model, other = build_model(sd_policy=policy), build_model(sd_policy=policy)
    undecide(model)
    model.policy_learner.second_moment.uniform_()
    model.policy_learner.steps.fill_(7)
    other.load_state_dict(state_of(model), strict=True)
    assert_same_states(state_of(other), state_of(model))
    batch = random_batch()
    with torch.no_grad():
        decisions = [one(*batch[1:])[1]["decisions"] for one in (model, other)]
    assert decisions[0].same_path(decisions[1]).all()
    assert decisions[0].count_distinct_paths() > 1


KINDS = ["network", "layerwise", "random", "dense"]


@pytest.mark.parametrize("kept", KINDS[:2])
@pytest.mark.parametrize("taken", KINDS)
@pytest.mark.parametrize("learner", [True, False])
def test_another_kind_of_policy_takes_the_place_of_the_checkpoints(caplog, kept, taken, learner):
    """A policy that learns and is not the checkpoint's starts afresh: said once, as a warning that names both."""
    model, other = build_model(sd_policy=kept), build_model(sd_policy=taken)
    before, state = policy_state(other), state_of(model)
    state = state if learner else {key: value for key, value in state.items() if not key.startswith("policy_learner.")}
    with caplog.at_level(logging.WARNING):
        other.load_state_dict(state, strict=True)
    said = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
    if taken != kept:
        assert_same_states(policy_state(other), before)
    assert len(said) == (taken in KINDS[:2] and taken != kept)
    assert all(kept in one and taken in one for one in said)


def test_a_policy_of_another_decision_space_is_refused_with_both_shapes():
    model, other = build_model(), build_model(sd_space="encoder")
    found = tuple(model.encoder.policy.heads.weight.shape)
    expected = tuple(other.encoder.policy.heads.weight.shape)
    with pytest.raises(InputError) as error:
        other.load_state_dict(state_of(model))
    assert str(found[0]) in str(error.value) and str(expected[0]) in str(error.value)
    assert "--sd-space" in str(error.value)


@pytest.mark.parametrize("words", [50, 94, 98, 200])
def test_a_checkpoint_of_another_dictionary_is_refused_with_both_sizes(words):
    bart = build_model("bart_base", dictionary=build_dictionary(words))
    model = build_model(dictionary=build_dictionary(96))
    with pytest.raises(InputError) as error:
        model.load_state_dict(state_of(bart))
    assert f"{words + 4} symbols" in str(error.value) and "has 100" in str(error.value)


def test_a_checkpoint_with_a_mask_symbol_more_loads_as_in_bart():
    bart, model = build_model("bart_base", dictionary=build_dictionary(97)), build_model()
    model.load_state_dict(state_of(bart), strict=True)
    expected = bart.encoder.embed_tokens.weight[:-1]
    assert torch.equal(model.encoder.embed_tokens.weight, expected)


@pytest.mark.parametrize(
    "state",
    [{"decoder.sentence_encoder.embed_tokens.weight": torch.ones(3, 3)}, {}, {"model": torch.ones(1)}],
    ids=["another model", "empty", "wrapped"],
)
def test_a_foreign_checkpoint_is_refused_with_what_was_found(state):
    with pytest.raises(InputError) as error:
        build_model().load_state_dict(state)
    assert "not an encoder-decoder BART" in str(error.value)
    assert all(key in str(error.value) for key in state)


def test_copies_of_the_fused_kernel_in_a_checkpoint_are_left_out():
    bart, model = build_model("bart_base"), build_model()
    state = state_of(bart)
    for layer in range(3):
        for name in FUSED_KERNEL_COPIES:
            state[f"encoder.layers.{layer}.{name}"] = torch.randn(4)
    model.load_state_dict(state, strict=True)
    assert not [key for key in model.state_dict() if key.endswith(FUSED_KERNEL_COPIES) and "layers.0.in_" in key]


def test_the_backbones_optimizer_does_not_see_the_policy():
    for policy in ("network", "layerwise"):
        model = build_model(sd_policy=policy)
        assert not any(parameter.requires_grad for parameter in model.encoder.policy.parameters())
        assert model.policy_learner.first_moment.numel() == sum(p.numel() for p in model.encoder.policy.parameters())
    for policy in ("random", "dense"):
        assert build_model(sd_policy=policy).policy_learner is None


@torch.no_grad()
@pytest.mark.parametrize("cast", ["half", "bfloat16"])
@pytest.mark.parametrize("policy", ["network", "layerwise"])
def test_the_policy_stays_float32_in_a_half_precision_model(policy, cast):
    model = build_model(sd_policy=policy)
    undecide(model)
    before = policy_state(model)
    getattr(model, cast)()
    assert_same_states(policy_state(model), before)
    assert all(value.dtype == torch.float32 for value in policy_state(model).values())
    batch = random_batch()
    logits, extra = model(*batch[1:])
    assert logits.dtype == model.decoder.layers[0].fc1.weight.dtype != torch.float32
    assert torch.isfinite(logits).all()
    assert all(state.dtype == torch.float32 for state in extra["policy_states"])
    hypotheses = generate([model], batch.net_input, 2)
    assert all(group[0]["score"] == group[0]["score"] for group in hypotheses)


@torch.no_grad()
def test_a_half_precision_checkpoint_keeps_the_policy_exact():
    model = build_model()
    undecide(model)
    other = build_model().half()
    other.load_state_dict(state_of(model.half()))
    assert_same_states(policy_state(other), policy_state(model))


def test_position_limits_are_barts():
    bart = build_model("bart_base")
    model = build_switchable_twin(bart)
    assert model.max_positions() == bart.max_positions()
    assert model.max_decoder_positions() == bart.decoder.max_positions()
