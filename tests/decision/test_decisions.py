import dataclasses

import pytest
import torch
from factories import build_tiny_space, enumerate_paths, random_decisions

from sd_fairseq.decision.decisions import SITES, Decisions, DecisionSpace

SPACES = {
    "all": {},
    "encoder": {"parts": ["encoder"]},
    "decoder": {"parts": ["decoder"]},
    "token": {"parts": ["token"]},
    "cross-attention apart": {"cross_attention_apart": True},
    "later first layers": {"first_encoder_layer": 4, "first_decoder_layer": 3},
    "no encoder layer left": {"first_encoder_layer": 6},
    "no decoder layer left": {"first_decoder_layer": 5},
    "another attention always runs": {"always_run_attention": 2},
}


def build_space(name):
    return DecisionSpace.build(5, 4, **SPACES[name])


def fields_of(decisions):
    return [getattr(decisions, item.name) for item in dataclasses.fields(Decisions)]


def assert_same(left, right):
    for mine, theirs in zip(fields_of(left), fields_of(right)):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("name", SPACES)
def test_policy_outputs_and_decisions_convert_both_ways(name):
    space = build_space(name)
    keep = torch.rand(64, space.num_switches) < 0.5
    choice = torch.randint(len(space.token_strategies), (64,))
    decisions = space.to_decisions(keep, choice)
    assert torch.equal(space.to_keep(decisions), keep)
    assert torch.equal(decisions.token_choice, choice)
    assert_same(space.to_decisions(space.to_keep(decisions), decisions.token_choice), decisions)


@pytest.mark.parametrize("name", SPACES)
def test_every_switch_moves_its_own_sublayer_only(name):
    space = build_space(name)
    for index, (site, layer) in enumerate(space.switches):
        keep = torch.ones(1, space.num_switches, dtype=torch.bool)
        keep[0, index] = False
        decisions = space.to_decisions(keep, torch.zeros(1, dtype=torch.long))
        skipped = {(s, int(i)) for s in SITES for i in (~getattr(decisions, s)[0]).nonzero()}
        expected = {(site, layer)}
        if site == "decoder_attention" and not space.cross_attention_apart:
            expected.add(("decoder_cross_attention", layer))
        assert skipped == expected


@pytest.mark.parametrize("name", SPACES)
def test_encoder_layer_1_and_one_decoder_attention_never_switch(name):
    space = build_space(name)
    skip_all = space.to_decisions(torch.zeros(1, space.num_switches, dtype=torch.bool), torch.zeros(1).long())
    assert skip_all.encoder_attention[0, 0] and skip_all.encoder_ffn[0, 0]
    always = SPACES[name].get("always_run_attention", 4) - 1
    assert skip_all.decoder_attention[0, always] and skip_all.decoder_cross_attention[0, always]


def test_the_default_space_holds_everything_else():
    space = build_space("all")
    skip_all = space.to_decisions(torch.zeros(1, space.num_switches, dtype=torch.bool), torch.zeros(1).long())
    kept = {site: int(getattr(skip_all, site).sum()) for site in SITES}
    assert kept == {
        "encoder_attention": 1,
        "encoder_ffn": 1,
        "decoder_attention": 1,
        "decoder_cross_attention": 1,
        "decoder_ffn": 0,
    }
    assert space.num_switches == 4 + 4 + 3 + 4
    assert len(space.token_strategies) == 7


@pytest.mark.parametrize("name", SPACES)
def test_always_running_and_switchable_layers_make_up_the_stack(name):
    space = build_space(name)
    for site in SITES:
        assert space.always_runs(site) + len(space.switch_indices(site)) == space.layers_of(site)


@pytest.mark.parametrize(
    "options,named",
    [
        ({"parts": ["encoder", "embedding"]}, "encoder,embedding"),
        ({"parts": []}, "''"),
        ({"first_encoder_layer": 1}, "1 is not in 2..6"),
        ({"first_encoder_layer": 7}, "7 is not in 2..6"),
        ({"first_decoder_layer": 0}, "0 is not in 1..5"),
        ({"first_decoder_layer": 6}, "6 is not in 1..5"),
        ({"always_run_attention": 0}, "0 is not -1 or 1..4"),
        ({"always_run_attention": 5}, "5 is not -1 or 1..4"),
        ({"always_run_attention": -2}, "-2 is not"),
        ({"parts": ["encoder"], "first_encoder_layer": 6}, "nothing to switch"),
        ({"parts": ["token"], "token_strategies": "keep"}, "nothing to switch"),
        ({"token_strategies": "keep,last:0"}, "last:0"),
    ],
)
def test_a_space_that_cannot_be_is_an_error_naming_the_value(options, named):
    with pytest.raises(ValueError) as error:
        DecisionSpace.build(5, 4, **options)
    assert named in str(error.value)


def test_without_the_token_part_nothing_is_dropped():
    assert [str(one) for one in build_space("encoder").token_strategies] == ["keep"]


def test_index_select_takes_rows_of_every_field():
    space = build_space("cross-attention apart")
    decisions = random_decisions(space, 6)
    order = torch.tensor([5, 0, 0, 3])
    for before, after in zip(fields_of(decisions), fields_of(decisions.index_select(order))):
        assert torch.equal(after, before[order])
    assert len(decisions.index_select(order)) == 4


def test_same_path_is_equality_of_all_fields():
    paths = enumerate_paths(build_tiny_space())
    size = len(paths)
    for shift in range(size):
        rolled = paths.index_select((torch.arange(size) + shift) % size)
        assert paths.same_path(rolled).all() == (shift == 0)
        assert paths.same_path(rolled).any() == (shift == 0)


def test_distinct_paths_are_counted_once_each():
    space = build_tiny_space()
    paths = enumerate_paths(space)
    assert len(paths) == 2**space.num_switches * 3
    assert paths.count_distinct_paths() == len(paths)
    assert paths.index_select(torch.tensor([4, 4, 9, 4])).count_distinct_paths() == 2
    assert space.keep_all(7, torch.device("cpu")).count_distinct_paths() == 1


def test_keep_all_keeps_everything():
    decisions = build_space("all").keep_all(3, torch.device("cpu"))
    assert all(getattr(decisions, site).all() for site in SITES)
    assert decisions.token_choice.tolist() == [0, 0, 0]


def test_decisions_are_values():
    decisions = build_space("all").keep_all(1, torch.device("cpu"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        decisions.token_choice = torch.ones(1)
    assert_same(decisions.to(torch.device("cpu")), decisions)


def test_a_described_path_reads_layer_by_layer():
    space = build_tiny_space(cross_attention_apart=True)
    keep = torch.tensor([[True, False, False, True, True, False], [False, True, True, False, False, True]])
    assert [site for site, _ in space.switches] == [
        "encoder_attention",
        "encoder_ffn",
        "decoder_attention",
        "decoder_cross_attention",
        "decoder_ffn",
        "decoder_ffn",
    ]
    decisions = space.to_decisions(keep, torch.tensor([2, 0]))
    assert space.describe(decisions, 0) == {
        "encoder_attention": "=1",
        "encoder_ffn": "=0",
        "decoder_attention": "0=",
        "decoder_cross_attention": "1=",
        "decoder_ffn": "10",
        "token_strategy": "uniform:50",
    }
    assert space.describe(decisions, 1)["token_strategy"] == "keep"
