"""``sd-check``: a policy that stands still, measured against a dense path."""

import json

import pytest
import torch

from sd_fairseq.study.path_scorer import Scores, load


def run(*arguments):
    from sd_fairseq.commands.check import main

    return main([str(argument) for argument in arguments])


def check(pipeline, tmp_path, path, *options, tolerance=0.25):
    out = tmp_path / "check.json"
    options = ["--path", path, "--tolerance", tolerance, "--gen-subset", "valid", "--output", out, *options]
    assert run(pipeline.data, *options) == 0
    assert [place.name for place in tmp_path.iterdir()] == ["check.json"]
    return json.loads(out.read_text(encoding="utf-8"))


STATIC = json.dumps({"sd_policy": "static", "sd_static_path": "encoder_ffn==00"})


def test_a_dense_policy_is_below_by_the_whole_tolerance(pipeline, tmp_path, capsys):
    found = check(pipeline, tmp_path, pipeline.base, "--examples", 0)
    assert found["nll_policy"] == found["nll_dense"]
    assert found["violation"] == {"difference": -0.25, "low": -0.25, "high": -0.25}
    assert "-0.2500 [-0.2500, -0.2500]" in capsys.readouterr().out


def test_the_violation_is_the_losses_difference_beyond_the_tolerance(pipeline, tmp_path):
    losses = [check(pipeline, tmp_path, pipeline.switchable, "--model-overrides", STATIC, tolerance=t) for t in (0, 1)]
    cost = losses[0]["nll_policy"] - losses[0]["nll_dense"]
    assert cost != 0 and losses[0]["flops_generation"] < 1
    for tolerance, found in enumerate(losses):
        assert found["violation"]["difference"] == pytest.approx(cost - tolerance, abs=1e-12)
        assert found["violation"]["low"] < found["violation"]["difference"] < found["violation"]["high"]


def test_the_reference_is_the_dense_path_of_other_weights(pipeline, tmp_path):
    found = check(pipeline, tmp_path, pipeline.switchable, "--reference", pipeline.base, "--examples", 0)
    alone = check(pipeline, tmp_path, pipeline.base, "--examples", 0)
    assert found["nll_dense"] == alone["nll_dense"]
    assert found["nll_policy"] == check(pipeline, tmp_path, pipeline.switchable, "--examples", 0)["nll_policy"]


def test_two_deployed_models_are_compared_and_the_other_way_round_is_the_negative(pipeline, tmp_path):
    paths = [pipeline.switchable, pipeline.base]
    there, back = (
        check(pipeline, tmp_path, one, "--reference", other, "--reference-path", "deployed", tolerance=0)
        for one, other in (paths, paths[::-1])
    )
    assert there["nll_policy"] == back["nll_reference"] != there["nll_reference"] == back["nll_policy"]
    assert there["violation"]["difference"] == -back["violation"]["difference"]
    assert there["flops_corpus"] == back["flops_corpus_reference"] != there["flops_generation"]
    assert "nll_dense" not in there


def test_the_reference_may_be_another_path_of_the_same_weights(pipeline, tmp_path):
    options = ["--reference", pipeline.switchable, "--reference-path", "deployed", "--reference-overrides", STATIC]
    found = check(pipeline, tmp_path, pipeline.switchable, *options, tolerance=0)
    alone = check(pipeline, tmp_path, pipeline.switchable, "--model-overrides", STATIC)
    assert found["nll_reference"] == alone["nll_policy"] != found["nll_policy"]
    assert found["flops_corpus_reference"] == alone["flops_corpus"]


@pytest.mark.parametrize("option", [("--reference-path", "deployed"), ("--reference-overrides", STATIC)])
def test_a_reference_that_is_not_named_is_one_line(pipeline, tmp_path, capsys, option):
    assert run(pipeline.data, "--path", pipeline.switchable, "--tolerance", 0, *option) == 1
    assert "need --reference, found none" in capsys.readouterr().err


def test_the_corpuss_flops_are_all_examples_over_all_their_dense_paths(pipeline, tmp_path):
    """Mean shares of the short and of the long half, weighed by what each half costs."""
    from sd_fairseq.study.constraint_check import corpus_share

    class Halves:
        dense_flops = torch.tensor([1.0, 1.0, 6.0])

    scores = Scores(torch.zeros(3), torch.zeros(2, 3), torch.tensor([1.0, 1.0, 0.5]).double())
    assert corpus_share(Halves(), scores) == pytest.approx(5 / 8)
    found = check(pipeline, tmp_path, pipeline.switchable, "--model-overrides", STATIC)
    assert 0 < found["flops_corpus"] < 1


def test_examples_that_differ_are_not_compared(pipeline, tmp_path, capsys, monkeypatch):
    from sd_fairseq.study import path_scorer

    counts = iter((1, 2))
    monkeypatch.setattr(
        path_scorer, "load", lambda args: load(type(args)(**{**vars(args), "every": next(counts)}))
    )
    options = ["--path", pipeline.switchable, "--reference", pipeline.base, "--tolerance", 0, "--gen-subset", "valid"]
    assert run(pipeline.data, *options, "--max-tokens", 100, "--output", tmp_path / "check.json") == 1
    assert "other examples would be compared" in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize("sample", [("--sample", "examples"), ("--sample", "batches"), ("--every", "1")], ids=" ".join)
def test_a_pair_longer_than_a_batch_is_one_line(pipeline, tmp_path, capsys, sample):
    options = ["--path", pipeline.switchable, "--tolerance", 0, "--max-tokens", 3, "--output", tmp_path / "check.json"]
    assert run(pipeline.data, *options, *sample) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith("sd_fairseq: error: --max-tokens 3: the longest of the pairs has ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["--path", "--reference"])
def test_no_file_is_one_line(pipeline, tmp_path, capsys, option):
    options = {"--path": pipeline.switchable, option: tmp_path / "no.pt", "--output": tmp_path / "check.json"}
    words = [word for pair in options.items() for word in pair]
    assert run(pipeline.data, *words, "--tolerance", 0.25, "--gen-subset", "valid") == 1
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith("sd_fairseq: error:") and str(tmp_path / "no.pt") in line
    assert not list(tmp_path.iterdir())
