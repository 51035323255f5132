"""``python -m sd_fairseq.plugin.policy_fit``: a policy from a table of searched paths."""

import argparse
import functools
import json

import pytest
import torch
from training import build_samples, build_training

from sd_fairseq.learning.path_table import FitSettings
from sd_fairseq.plugin import policy_fit
from sd_fairseq.plugin.errors import InputError
from sd_fairseq.plugin.path_scorer import Scorer, load


@pytest.fixture(autouse=True)
def short_fits(monkeypatch):
    """Fits of a few epochs, prices halved a few times: enough for these laws."""
    monkeypatch.setattr(policy_fit, "PRICES", 4)
    monkeypatch.setattr(policy_fit, "FitSettings", functools.partial(FitSettings, epochs=10))


FEW = ("--gen-subset", "train", "--examples", 40, "--search-examples", 10, "--paths", 5)


def run(*arguments):
    return policy_fit.main([str(argument) for argument in arguments])


def fit(pipeline, tmp_path, *options):
    out, report = tmp_path / "fitted.pt", tmp_path / "fit.json"
    assert run(pipeline.data, "--path", pipeline.base, *FEW, "--output", out, "--report", report, *options) == 0
    return out, json.loads(report.read_text(encoding="utf-8"))


def score(pipeline, path):
    options = {"data": pipeline.data, "path": str(path), "model_overrides": "{}", "gen_subset": "train", "cuda": False}
    more = {"examples": 40, "sample": "examples", "every": 0, "max_tokens": 4096, "beam": 4}
    return load(argparse.Namespace(**options, **more))


def test_the_checkpoint_deploys_what_the_report_says_and_keeps_the_backbone(pipeline, tmp_path, capsys):
    out, found = fit(pipeline, tmp_path, "--flops", 0.8)
    fitted = score(pipeline, out)
    scores, _ = fitted.score_policy()
    assert float(scores.loss.mean()) == pytest.approx(found["nll_deployed"], abs=1e-9)
    assert float(scores.flops.mean()) == pytest.approx(found["flops_deployed"], abs=1e-9)
    base = score(pipeline, pipeline.base).model.state_dict()
    for name, value in fitted.model.state_dict().items():
        if not name.startswith(("encoder.policy.", "policy_learner.")):
            assert torch.equal(value, base[name]), name
    assert "gain_over_static" in capsys.readouterr().out


def test_the_report_holds_what_it_compares(pipeline, tmp_path):
    _, found = fit(pipeline, tmp_path, "--flops", 0.8)
    assert found["examples"] == 40 and found["search_examples"] == 10 and 2 <= found["paths"] <= 5
    gain = found["gain_over_static"]
    assert gain["difference"] == pytest.approx(found["nll_static"] - found["nll_policy"])
    assert found["oracle_gap"] == pytest.approx(found["nll_static"] - found["nll_oracle"])
    assert found["nll_oracle"] <= found["nll_policy"]


def test_the_same_command_makes_the_same_policy(pipeline, tmp_path):
    weights = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        out, _ = fit(pipeline, tmp_path / name, "--flops", 0.8)
        weights.append(score(pipeline, out).model.state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


@pytest.mark.parametrize(
    "options,message",
    [
        (("--flops", 1.5), "--flops 1.5 is not between 0 and 1"),
        (("--flops", 0.8, "--paths", 1), "--paths 1 is not 2 or more"),
        (("--flops", 0.8, "--examples", 5), "--examples 5 is not 0 (all) or 20 and more"),
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


def test_candidates_are_near_the_flops_and_the_cheapest_first():
    scorer = Scorer(build_training().model.eval(), build_samples(), padding=1, beam=2)
    policy_fit.greedy_search(scorer, 0.6)
    keys = policy_fit.candidate_paths(scorer, 0.75, 4)
    costs = [float(scorer.score(key).flops.mean()) for key in keys]
    assert 1 <= len(keys) <= 4 and all(abs(cost - 0.75) <= policy_fit.BAND for cost in costs)
    with pytest.raises(InputError, match="no searched path costs 0.01"):
        policy_fit.candidate_paths(scorer, 0.01, 4)


@pytest.mark.parametrize("flops", [0.4, 0.6, 0.8])
def test_at_the_price_the_best_path_costs_what_is_aimed_at_or_less(flops):
    losses, costs = torch.tensor([1.0, 1.2, 1.5, 2.0]), torch.tensor([1.0, 0.75, 0.55, 0.35])
    price = policy_fit.static_price(losses, costs, flops)
    assert float(costs[(losses + price * costs).argmin()]) <= flops
    assert float(costs[(losses + 0.999 * price * costs).argmin()]) > flops
