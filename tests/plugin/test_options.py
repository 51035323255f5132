import argparse

import pytest
import torch
from factories import build_model, random_batch, undecide

from sd_fairseq.decision.given_policies import RandomPolicy
from sd_fairseq.decision.layerwise_policy import LayerwisePolicyNetwork
from sd_fairseq.decision.policy import PolicyNetwork
from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.plugin.guards.presets import MODEL_VALUES
from sd_fairseq.plugin.models.options import DEFAULTS, POLICIES, add_model_options, fill_defaults
from sd_fairseq.plugin.models.switchable_bart import SwitchableBARTModel


@pytest.mark.parametrize(
    "option,value",
    [
        ("encoder_layerdrop", 0.1),
        ("decoder_layerdrop", 0.1),
        ("cross_self_attention", True),
        ("no_cross_attention", True),
        ("scale_attn", True),
        ("scale_heads", True),
        ("scale_fc", True),
        ("scale_resids", True),
        ("base_layers", 2),
        ("adaptive_softmax_cutoff", "50,80"),
    ],
)
def test_a_transformer_option_that_skipping_does_not_support_is_refused_by_name(option, value):
    with pytest.raises(InputError) as error:
        build_model(**{option: value})
    assert "--" + option.replace("_", "-") in str(error.value)
    assert f"{option}={value!r}" in str(error.value)


def test_sharding_of_sublayers_is_refused():
    with pytest.raises(InputError, match="fully_sharded"):
        build_model(ddp_backend="fully_sharded")


@pytest.mark.parametrize(
    "options,named",
    [
        ({"sd_space": "encoder,heads"}, "encoder,heads"),
        ({"sd_space": ""}, "''"),
        ({"sd_space": "token", "sd_token_strategies": "keep"}, "nothing to switch"),
        ({"sd_token_strategies": "keep,last:200"}, "last:200"),
        ({"sd_token_strategies": "keep,first:10"}, "first:10"),
        ({"sd_first_encoder_layer": 1}, "1 is not in 2..4"),
        ({"sd_first_decoder_layer": 5}, "5 is not in 1..4"),
        ({"sd_always_run_attention": 4}, "4 is not -1 or 1..3"),
        ({"sd_policy": "best"}, "'best'"),
        ({"sd_policy_hidden_size": -3}, "-3"),
        ({"sd_policy_input": "words"}, "'words' is not one of state, length, state+length, nothing"),
        ({"sd_initial_keep": 0.5}, "0.5"),
        ({"sd_initial_keep": 1.0}, "1.0"),
        ({"sd_initial_path": "encoder_ffn=011"}, "in layer 1 of this model it always runs"),
        ({"sd_initial_path": "token_strategy=first:1"}, "first:1"),
        ({"sd_policy": "random", "sd_random_keep": 1.5}, "1.5"),
    ],
    ids=str,
)
def test_an_option_that_cannot_be_is_refused_with_its_value(options, named):
    with pytest.raises(InputError) as error:
        build_model(**options)
    assert named in str(error.value)


@pytest.mark.parametrize(
    "policy,kind", [("network", PolicyNetwork), ("layerwise", LayerwisePolicyNetwork), ("random", RandomPolicy)]
)
def test_the_policy_is_the_named_one(policy, kind):
    assert isinstance(build_model(sd_policy=policy).encoder.policy, kind)
    assert build_model(sd_policy="dense").encoder.policy is None


def test_options_reach_the_space_and_the_policy():
    model = build_model(
        sd_space="encoder, token",
        sd_first_encoder_layer=3,
        sd_token_strategies="keep,last:40",
        sd_policy_hidden_size=7,
        sd_initial_keep=0.9,
    )
    assert model.space.switches == (("encoder_attention", 2), ("encoder_ffn", 2))
    assert [str(one) for one in model.space.token_strategies] == ["keep", "last:40"]
    assert model.encoder.policy.hidden.out_features == 7
    bias = model.encoder.policy.heads.bias
    torch.testing.assert_close(torch.sigmoid(bias[:2]), torch.full((2,), 0.9))
    assert model.shape.policy_hidden == 7


@pytest.mark.parametrize("inputs,width", [("state", 32), ("length", 1), ("state+length", 33), ("nothing", 1)])
def test_the_policy_reads_what_it_is_told_to(inputs, width):
    model = build_model(sd_policy_input=inputs)
    assert model.encoder.policy.hidden.in_features == model.shape.policy_input == width
    assert model.encoder.policy.hidden.out_features == 32
    batch = random_batch([5, 12, 12])
    (states,) = model.encoder(batch.src_tokens, batch.src_lengths)["policy_states"]
    assert states.shape == (3, width)
    if "length" in inputs:
        assert states[0, -1] < states[1, -1] == states[2, -1]
    if "state" in inputs:
        assert states[1, 0] != states[2, 0]


def test_a_policy_of_the_length_decides_alike_for_all_texts_of_a_length():
    model = build_model(sd_policy_input="length")
    undecide(model)
    batch = random_batch([9] * 6 + [60] * 2)
    (decisions,) = model.encoder(batch.src_tokens, batch.src_lengths)["decisions"]
    assert decisions.index_select(torch.arange(6)).count_distinct_paths() == 1
    assert decisions.count_distinct_paths() == 2


def test_a_policy_that_reads_nothing_decides_alike_for_everyone():
    model = build_model(sd_policy_input="nothing")
    undecide(model)
    batch = random_batch([3, 9, 9, 40, 60])
    (decisions,) = model.encoder(batch.src_tokens, batch.src_lengths)["decisions"]
    assert decisions.count_distinct_paths() == 1


def test_a_policy_of_another_input_is_refused_by_name():
    with pytest.raises(InputError, match="--sd-policy-input"):
        build_model(sd_policy_input="state+length").load_state_dict(build_model().state_dict())


def test_an_initial_path_is_where_the_policy_starts():
    model = build_model(sd_initial_path="encoder_ffn==01,decoder_attention=10=", sd_initial_keep=0.9)
    bias = model.encoder.policy.heads.bias[: model.space.num_switches]
    skipped = {model.space.switches[index] for index in (bias < 0).nonzero().view(-1).tolist()}
    assert skipped == {("encoder_ffn", 1), ("decoder_attention", 1)}
    torch.testing.assert_close(torch.sigmoid(bias.abs()), torch.full_like(bias, 0.9))


def test_the_tasks_token_strategies_hold_unless_the_model_has_its_own():
    named = {"sd_token_strategies": "keep,uniform:25"}
    assert str(build_model(task_options=named).space.token_strategies[1]) == "uniform:25"
    own = build_model(task_options=named, sd_token_strategies="keep,last:5")
    assert str(own.space.token_strategies[1]) == "last:5"


def test_the_policy_is_fresh_although_barts_initialisation_went_over_it():
    model = build_model()
    odds = model.encoder.policy.heads.bias[: model.space.num_switches]
    torch.testing.assert_close(torch.sigmoid(odds), torch.full_like(odds, 0.95))
    assert (model.encoder.policy.layer_norm.weight == 1).all()


def test_every_option_has_a_default_and_help_and_a_flag():
    parser = argparse.ArgumentParser()
    add_model_options(parser)
    actions = {action.dest: action for action in parser._actions if action.dest.startswith("sd_")}
    assert set(actions) == set(DEFAULTS) | set(MODEL_VALUES["paper"])
    for name, action in actions.items():
        assert action.help and action.option_strings == ["--" + name.replace("_", "-")]
    assert tuple(actions["sd_policy"].choices) == POLICIES


def test_a_plain_bart_configuration_gets_every_default_and_keeps_what_it_has():
    args = argparse.Namespace(sd_space="token", sd_random_seed=None)
    fill_defaults(args)
    assert args.sd_space == "token"
    expected = {**DEFAULTS, **MODEL_VALUES["paper"], "sd_space": "token"}
    assert {name: getattr(args, name) for name in expected} == expected


def test_the_models_own_parser_takes_barts_and_our_options():
    parser = argparse.ArgumentParser(argument_default=None, conflict_handler="resolve")
    SwitchableBARTModel.add_args(parser)
    args = parser.parse_args(["--sd-space", "token", "--sd-cross-attention-apart", "--pooler-dropout", "0.3"])
    assert args.sd_space == "token" and args.sd_cross_attention_apart and args.pooler_dropout == 0.3
