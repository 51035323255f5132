"""``sd-fit``: a policy from a table of searched paths."""

import argparse
import functools
import json
import shutil

import numpy as np
import pytest
import torch
from training import build_samples, build_training

from sd_fairseq.commands.fit import main
from sd_fairseq.cost.path_flops import path_flops
from sd_fairseq.learning.path_table import FitSettings
from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.study import policy_fit
from sd_fairseq.study.fit_report import flops_at
from sd_fairseq.study.path_scorer import Scorer, load
from sd_fairseq.study.path_search import greedy_search
from sd_fairseq.study.path_tables import BAND, candidate_paths, example_weights, static_price


@pytest.fixture(scope="module", autouse=True)
def short_fits():
    """Fits of a few epochs, prices halved a few times: enough for these laws."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policy_fit, "PRICES", 4)
        patch.setattr(policy_fit, "FitSettings", functools.partial(FitSettings, epochs=10))
        yield


FEW = ("--gen-subset", "train", "--examples", 40, "--search-examples", 10, "--paths", 5)


def run(*arguments):
    return main([str(argument) for argument in arguments])


def fit(pipeline, tmp_path, *options):
    out, report = tmp_path / "fitted.pt", tmp_path / "fit.json"
    assert run(pipeline.data, "--path", pipeline.base, *FEW, "--output", out, "--report", report, *options) == 0
    return out, json.loads(report.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def fitted(pipeline, short_fits, tmp_path_factory):
    """A fit that many tests look at: its checkpoint, report and table."""
    table = tmp_path_factory.mktemp("fitted") / "table.npz"
    return (*fit(pipeline, table.parent, "--flops", 0.8, "--table", table), table)


def score(pipeline, path, **changes):
    options = {"data": pipeline.data, "path": str(path), "model_overrides": "{}", "gen_subset": "train", "cuda": False}
    more = {"examples": 40, "sample": "examples", "every": 0, "max_tokens": 4096, "beam": 4}
    return load(argparse.Namespace(**{**options, **more, **changes}))


def test_the_checkpoint_deploys_what_the_report_says_and_keeps_the_backbone(pipeline, fitted):
    out, found, _ = fitted
    deployed = score(pipeline, out)
    scores, _ = deployed.score_policy()
    assert float(scores.loss.mean()) == pytest.approx(found["nll_deployed"], abs=1e-9)
    assert float(scores.flops.mean()) == pytest.approx(found["flops_deployed"], abs=1e-9)
    base = score(pipeline, pipeline.base).model.state_dict()
    for name, value in deployed.model.state_dict().items():
        if not name.startswith(("encoder.policy.", "policy_learner.")):
            assert torch.equal(value, base[name]), name


@pytest.mark.parametrize("inputs", ["length", "state+length"])
def test_a_policy_that_is_told_the_length_is_fitted_to_a_table_made_without(pipeline, fitted, tmp_path, inputs):
    table = "--table", fitted[2]
    content = table[1].read_bytes()
    out, found = fit(
        pipeline, tmp_path, "--flops", 0.8, *table, "--model-overrides", json.dumps({"sd_policy_input": inputs})
    )
    assert table[1].read_bytes() == content
    deployed = score(pipeline, out)
    assert deployed.model.encoder.policy.inputs == inputs
    assert float(deployed.score_policy()[0].loss.mean()) == pytest.approx(found["nll_deployed"], abs=1e-9)


def test_stock_commands_generate_and_go_on_from_the_checkpoint(pipeline, fitted, tmp_path):
    out = fitted[0]
    trace = tmp_path / "trace.jsonl"
    pipeline.generate(out, "--sd-trace", trace)
    deployed = json.loads(trace.read_text(encoding="utf-8").splitlines()[0])
    decisions = score(pipeline, out, gen_subset="test", examples=0).score_policy()[1]
    space = score(pipeline, out).model.space
    paths = [space.describe(one, row) for one in decisions for row in range(len(one))]
    assert {key: deployed[key] for key in paths[0]} in paths  # what the trace says is what the policy decides
    policy = ["--sd-policy-freeze-update", 1, "--sd-policy-lr", 1e-9, "--criterion", "sd_policy_criterion"]
    arch = ["--arch", "switchable_bart_base", "--finetune-from-model", out, "--save-dir", tmp_path / "more"]
    pipeline.train("more", *arch, *policy, "--max-update", 2)
    before, after = (score(pipeline, path).model for path in (out, tmp_path / "more" / "checkpoint_last.pt"))
    weights = [model.encoder.policy.heads.weight for model in (before, after)]
    torch.testing.assert_close(*weights, atol=1e-6, rtol=0)
    assert not torch.equal(before.encoder.layers[0].fc1.weight, after.encoder.layers[0].fc1.weight)


def test_the_report_holds_what_it_compares(fitted):
    _, found, _ = fitted
    assert found["examples"] == 40 and found["search_examples"] == 10 and found["paths"] >= 2
    gain = found["gain_over_static"]
    assert gain["difference"] == pytest.approx(found["nll_static"] - found["nll_policy"])
    assert found["oracle_gap"] == pytest.approx(found["nll_static"] - found["nll_oracle"])
    assert found["nll_oracle"] <= found["nll_policy"]
    assert {"difference", "low", "high", "flops_ranges"} <= set(found["gain_of_length_ranges"])


def test_the_same_command_makes_the_same_policy_and_prints_what_is_gained(pipeline, fitted, tmp_path, capsys):
    out, found = fit(pipeline, tmp_path, "--flops", 0.8)
    assert found == fitted[1] and "gain_over_static" in capsys.readouterr().out
    one, two = (score(pipeline, path).model.state_dict() for path in (fitted[0], out))
    assert all(torch.equal(value, two[name]) for name, value in one.items())


def test_a_split_that_was_not_fitted_is_compared_with_the_static_path_of_the_table(pipeline, tmp_path, capsys):
    out, found = fit(pipeline, tmp_path, "--flops", 0.8, "--held-out", "valid")
    held_out = found["held_out"]
    unseen = score(pipeline, out, gen_subset="valid", examples=0)
    scores, _ = unseen.score_policy()
    assert held_out["examples"] == len(scores.loss)
    assert held_out["nll_policy"] == pytest.approx(float(scores.loss.mean()), abs=1e-9)
    assert held_out["flops_policy"] == pytest.approx(float(scores.flops.mean()), abs=1e-9)
    gain = held_out["gain_over_static"]["difference"]
    assert gain == pytest.approx(held_out["nll_static"] - held_out["nll_policy"], abs=1e-9)
    assert "held out: gain_over_static" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options,message",
    [
        (("--flops", 1.5), "--flops 1.5 is not between 0 and 1"),
        (("--flops", 0.8, "--paths", 1), "--paths 1 is not 2 or more"),
        (("--flops", 0.8, "--examples", 5), "--examples 5 is not 0 (all) or 20 and more"),
        (("--flops", 0.8, "--report", "nowhere/fit.json"), "nowhere/fit.json: cannot be written"),
        (("--flops", 0.8, "--held-out", "nosplit"), "nosplit"),
        (
            ("--flops", 0.8, "--model-overrides", '{"sd_policy": "random"}'),
            "only a policy network of one stage can be fitted",
        ),
    ],
)
def test_what_cannot_be_fitted_is_one_line_and_no_file(pipeline, tmp_path, capsys, options, message):
    out = tmp_path / "fitted.pt"
    assert run(pipeline.data, "--path", pipeline.base, *FEW, "--output", out, *options) == 1
    told = capsys.readouterr().err.strip().splitlines()
    assert message in told[-1] and not list(tmp_path.iterdir())


def test_candidates_are_near_the_flops_and_the_chain_is_among_them():
    scorer = build_scorer()
    weights = example_weights(scorer.dense_flops, "corpus")
    chain = greedy_search(scorer, 0.6, weights)

    def cost(key):
        return float((scorer.score(key).flops * weights).mean())

    assert cost(chain[-1]) <= 0.6 < cost(chain[-2])  # the search counts as it is told
    keys = candidate_paths(scorer, chain, 0.75, 2, weights)
    assert len(set(keys)) == len(keys) and all(abs(cost(key) - 0.75) <= BAND for key in keys)
    assert {key for key in chain if abs(cost(key) - 0.75) <= BAND} <= set(keys)
    with pytest.raises(InputError, match="no searched path costs 0.01"):
        candidate_paths(scorer, chain, 0.01, 4, weights)


def build_scorer():
    return Scorer(build_training().model.eval(), build_samples(), padding=1, beam=2)


@pytest.mark.parametrize("flops", [0.4, 0.6, 0.8])
def test_at_the_price_the_best_path_costs_what_is_aimed_at_or_less(flops):
    losses, costs = torch.tensor([1.0, 1.2, 1.5, 2.0]), torch.tensor([1.0, 0.75, 0.55, 0.35])
    price = static_price(losses, costs, flops)
    assert float(costs[(losses + price * costs).argmin()]) <= flops
    assert float(costs[(losses + 0.999 * price * costs).argmin()]) > flops


def test_the_flops_of_a_corpus_are_those_of_all_its_examples_together():
    scorer = build_scorer()
    key = ((False, True) * 9)[: scorer.model.space.num_switches], 1
    weights = example_weights(scorer.dense_flops, "corpus")
    keep, choice = torch.tensor([key[0]]).expand(8, -1), torch.tensor([key[1]]).expand(8)
    decisions = scorer.model.space.to_decisions(keep, choice)
    lengths = scorer._lengths(scorer.batches[0])
    paths = path_flops("generation", scorer.model.shape, scorer.model.space, decisions, lengths)
    share = float(paths.sum() / scorer.dense_flops.sum())
    assert float((scorer.score(key).flops * weights).mean()) == pytest.approx(share, rel=1e-9)
    assert torch.equal(example_weights(scorer.dense_flops, "examples"), torch.ones(8, dtype=torch.float64))
    assert float(weights.max()) > 1.05  # the examples are not equally long


def test_a_static_path_of_the_same_loss_costs_what_the_frontier_says():
    losses, flops = torch.tensor([1.0, 2.0, 1.4]).double(), torch.tensor([1.0, 0.5, 0.8]).double()
    assert flops_at(losses, flops, 1.4) == pytest.approx(0.8, abs=1e-6)
    assert flops_at(losses, flops, 1.7) == pytest.approx(0.65, abs=1e-6)  # a mixture of two
    assert flops_at(losses, flops, 0.5) == pytest.approx(1.0, abs=1e-6)


def test_a_table_is_made_once(pipeline, fitted, tmp_path, monkeypatch):
    _, first, table = fitted
    monkeypatch.setattr(policy_fit, "score_paths", None)  # another table would fail
    _, again = fit(pipeline, tmp_path, "--flops", 0.8, "--table", table)
    assert first == again
    _, other = fit(pipeline, tmp_path, "--flops", 0.8, "--table", table, "--flops-average", "corpus")
    assert other["flops_average"] == "corpus" and other["flops_generation"] != first["flops_generation"]


def rewrite(path, content):
    with open(path, "wb") as stream:
        np.savez(stream, **content)


@pytest.mark.parametrize(
    "spoil,message",
    [
        (lambda path, content: path.write_bytes(b"nothing"), "not a table of paths, expected keep"),
        (lambda path, content: path.write_bytes(path.read_bytes()[:1000]), "not a table of paths, expected keep"),
        (lambda path, content: rewrite(path, {"loss": content["loss"]}), "not a table of paths, expected keep"),
        (
            lambda path, content: rewrite(path, {**content, "dense_flops": content["dense_flops"][:30]}),
            "made of 30 examples that are not the 40 of this data",
        ),
        (lambda path, content: rewrite(path, {**content, "keep": content["keep"][:, 1:]}), "switches, the model has"),
    ],
)
def test_a_table_of_something_else_is_refused(pipeline, fitted, tmp_path, capsys, spoil, message):
    table = tmp_path / "table.npz"
    shutil.copy(str(fitted[2]), str(table))
    with np.load(table) as content:
        spoil(table, dict(content))
    assert run(pipeline.data, "--path", pipeline.base, *FEW, "--flops", 0.8, "--table", table) == 1
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
