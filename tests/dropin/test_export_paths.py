"""Which paths stock BART can compute, the nearest of them, and what an export refuses."""

import itertools
import re

import pytest
import torch
from factories import build_model

pytest.importorskip("fairseq")

from dropin.exporting import check_refused, export, load_plain, save  # noqa: E402
from traces import make_record  # noqa: E402

from sd_fairseq.decision.decisions import SITES, DecisionSpace  # noqa: E402
from sd_fairseq.decision.trace import write_trace  # noqa: E402
from sd_fairseq.plugin.convert.export_layers import Norms, describe_changes, nearest_path, stock_layers  # noqa: E402
from sd_fairseq.plugin.guards.errors import InputError  # noqa: E402
from sd_fairseq.plugin.models.fixed_path import most_frequent_path  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # fairseq's and hydra's own
SPACES = {
    "together": DecisionSpace.build(3, 3),
    "cross-attention apart": DecisionSpace.build(3, 3, cross_attention_apart=True),
    "second attention always runs": DecisionSpace.build(3, 3, always_run_attention=2),
    "encoder only": DecisionSpace.build(4, 2, parts=["encoder"]),
}
POST_NORM = {"encoder": Norms(), "decoder": Norms()}


def kept_in_order(path):
    """The kept sub-layers of each stack as letters."""
    stacks = (("AF", SITES[:2]), ("SCF", SITES[2:]))
    columns = [(letters, list(zip(*(path[site] for site in sites)))) for letters, sites in stacks]
    return ["".join(one for layer in rows for one, c in zip(letters, layer) if c != "0") for letters, rows in columns]


def can_be_stock(path):
    encoder, decoder = kept_in_order(path)
    return bool(re.fullmatch("(AF)*", encoder) and re.fullmatch("(SCF)*", decoder))


def every_path(space):
    """All paths that keep every token, in the trace's notation."""
    switches = list(itertools.product([False, True], repeat=space.num_switches))
    decisions = space.to_decisions(torch.tensor(switches), torch.zeros(len(switches), dtype=torch.long))
    return [space.describe(decisions, row) for row in range(len(switches))]


def count_changes(space, one, other):
    return sum(one[site][layer] != other[site][layer] for site, layer in space.switches)


@pytest.mark.parametrize("name", SPACES)
def test_stock_layers_exist_for_exactly_the_paths_whose_sublayers_alternate(name):
    for path in every_path(SPACES[name]):
        try:
            layers = [stock_layers(path, stack, Norms()) for stack in ("encoder", "decoder")]
        except InputError as error:
            assert re.search(r"of layer \d runs without", str(error))
            assert not can_be_stock(path)
        else:
            assert can_be_stock(path)
            assert [len(stack) for stack in layers] == [letters.count("F") for letters in kept_in_order(path)]


@pytest.mark.parametrize("name", SPACES)
def test_the_nearest_path_changes_the_fewest_decisions_and_skips_the_least_more(name):
    space = SPACES[name]
    paths = every_path(space)
    possible = [path for path in paths if can_be_stock(path)]
    for path in paths[:: max(len(paths) // 100, 1)]:
        found = nearest_path({**path, "token_strategy": "last:30"}, space, POST_NORM)
        assert found in possible  # which also keeps every token
        fewest = min(count_changes(space, path, other) for other in possible)
        near = [other for other in possible if count_changes(space, path, other) == fewest]

        def skips(other, path=path):
            return sum(path[site][layer] > other[site][layer] for site, layer in space.switches)

        assert count_changes(space, path, found) == fewest
        assert skips(found) == min(skips(other) for other in near)
        assert (describe_changes(path, found) == []) == can_be_stock(path)


def test_the_most_frequent_path_of_a_trace_is_the_one_most_examples_took(tmp_path):
    space = DecisionSpace.build(4, 4)
    skipping = {"encoder_ffn": "=101", "token_strategy": "last:10"}
    records = [make_record(number, **(skipping if number in (1, 2, 4) else {})) for number in range(5)]
    records[4] = make_record(4, **skipping, seconds=9.0, target_tokens=3)  # what is no decision does not count
    write_trace(str(tmp_path / "trace.jsonl"), records)
    found = most_frequent_path(str(tmp_path / "trace.jsonl"), space, "switchable_bart")
    assert found == {site: getattr(records[1], site) for site in (*SITES, "token_strategy")}


def test_a_skipped_sublayer_that_keeps_its_layer_norm_before_it_is_refused(tmp_path, capsys):
    options = {"sd_skip_keeps_layer_norm": True, "encoder_normalize_before": True, "decoder_normalize_before": True}
    checkpoint = save(build_model(**options), tmp_path / "model.pt", **options)
    arguments = [checkpoint, tmp_path / "plain.pt", "--path", "encoder_ffn=101"]
    check_refused(arguments, ["pre-norm encoder", "--sd-skip-keeps-layer-norm"], tmp_path, capsys)


REFUSED = {
    "a trace that nothing is read of": (["--path", "dense", "--trace", "t.jsonl"], ["--trace", "--path dense"]),
    "a path in no notation": (["--path", "fastest"], ["fastest", "most-frequent"]),
    "an unknown site": (["--path", "encoder_head=111"], ["encoder_head=111"]),
    "broken JSON": (["--path", '{"encoder_ffn": '], ["not valid JSON"]),
    "JSON without a path": (["--path", '{"id": 3}'], ["found", "encoder_attention"]),
    "another number of layers": (["--path", "encoder_ffn=1101"], ["encoder_ffn", "'1101'", "expected 3"]),
    "a sub-layer that always runs": (["--path", "encoder_ffn=011"], ["encoder_ffn", "layer 1", "always runs"]),
    "a switchable sub-layer said not to be": (["--path", "encoder_ffn=1=1"], ["layer 2", "switchable"]),
    "attentions that are switched together": (
        ["--path", "decoder_attention=101,decoder_cross_attention=111"],
        ["cross-attention", "together"],
    ),
    "an unknown token strategy": (["--path", "token_strategy=first:10"], ["first:10", "last:10"]),
    "a token strategy": (["--path", "token_strategy=last:30"], ["last:30", "cannot drop source tokens"]),
    "half a layer": (["--path", "encoder_ffn=101"], ["encoder_attention of layer 2", "encoder_ffn", "--nearest"]),
    "no trace": (["--path", "most-frequent"], ["--trace"]),
    "a missing trace": (["--path", "most-frequent", "--trace", "no/such.jsonl"], ["no/such.jsonl"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_exported_is_one_line_and_no_file(case, tmp_path, capsys):
    arguments, needles = REFUSED[case]
    checkpoint = save(build_model(), tmp_path / "model.pt")
    check_refused([checkpoint, tmp_path / "plain.pt", *arguments], needles, tmp_path, capsys)


def test_nearest_says_what_it_changes_and_writes(tmp_path, capsys):
    checkpoint = save(build_model(), tmp_path / "model.pt")
    path = '{"encoder_ffn": "101", "token_strategy": "last:30"}'
    assert export(checkpoint, tmp_path / "plain.pt", "--path", path, "--nearest") == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "nearest path: encoder_ffn of layer 2 is kept"
    assert told[1] == "nearest path: all source tokens are kept (the path has last:30)"
    assert len(load_plain(tmp_path / "plain.pt").encoder.layers) == 3
