"""``sd-search-paths`` on a real checkpoint."""

import argparse
import json

import pytest

from sd_fairseq.study.path_scorer import sample_evenly


def run(*arguments):
    from sd_fairseq.commands.search_paths import main

    return main([str(argument) for argument in arguments])


def test_the_command_writes_what_it_found(pipeline, tmp_path, capsys):
    out = tmp_path / "search.json"
    options = ["--path", pipeline.switchable, "--lowest", 0.9, "--examples", 5, "--beam", 2, "--output", out]
    assert run(pipeline.data, *options) == 0
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["examples"] == 5 and found["static_frontier"][-1]["flops_generation"] <= 0.9
    assert f"{found['nll_oracle']:.4f}" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["search.json"]


def test_examples_come_from_all_lengths_and_batches_change_nothing(pipeline):
    from sd_fairseq.study.path_scorer import load

    def lengths(sample, max_tokens, examples=0):
        options = {"path": str(pipeline.switchable), "model_overrides": "{}", "data": str(pipeline.data), "every": 0}
        options.update(gen_subset="train", cuda=False, beam=4, sample=sample, max_tokens=max_tokens, examples=examples)
        scorer = load(argparse.Namespace(**options))
        return sorted(scorer.source_lengths.tolist())

    everything = lengths("batches", 4000)
    assert lengths("examples", 4000) == lengths("examples", 200) == everything
    few = lengths("examples", 4000, 8)
    assert len(few) == 8 and few == lengths("examples", 200, 8)
    assert few == [everything[place] for place in sample_evenly(len(everything), 8)]


def test_a_plain_bart_is_searched_in_the_space_asked_for(pipeline, tmp_path):
    out = tmp_path / "search.json"
    options = ["--model-overrides", '{"sd_space": "encoder"}', "--lowest", 0.9, "--examples", 5, "--output", out]
    assert run(pipeline.data, "--path", pipeline.base, *options) == 0
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["nll_policy"] == found["nll_dense"] and abs(found["flops_generation"] - 1) < 0.01  # the policy costs
    skipped = {site for point in found["static_frontier"] for site, kept in point["path"].items() if "0" in kept}
    assert skipped and all(site.startswith("encoder_") for site in skipped)


def test_the_search_goes_on_to_the_policys_flops(pipeline, tmp_path):
    out = tmp_path / "search.json"
    static = {"sd_policy": "static", "sd_static_path": "encoder_ffn==00"}
    options = ["--model-overrides", json.dumps(static), "--lowest", 1.0, "--examples", 5, "--output", out]
    assert run(pipeline.data, "--path", pipeline.switchable, *options) == 0
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["static_frontier"][-1]["flops_generation"] <= found["flops_generation"] < 1
    assert found["nll_oracle"] <= found["nll_static"] < float("inf")


def test_pairs_longer_than_the_model_takes_are_left_out(pipeline, tmp_path, monkeypatch, capsys):
    from sd_fairseq.plugin.models.switchable_bart import SwitchableBARTModel

    counts = []
    for limit in (64, 5):
        out = tmp_path / f"{limit}.json"
        monkeypatch.setattr(SwitchableBARTModel, "max_positions", lambda self, limit=limit: (64, limit))
        options = ["--lowest", 1.0, "--examples", 0, "--output", out]
        assert run(pipeline.data, "--path", pipeline.switchable, *options) == 0
        counts.append(json.loads(out.read_text(encoding="utf-8"))["examples"])
    assert counts[0] > counts[1] > 0
    monkeypatch.setattr(SwitchableBARTModel, "max_positions", lambda self: (64, 1))
    assert run(pipeline.data, "--path", pipeline.switchable) == 1
    assert "no pair of 'valid' is short enough for the model: (64, 1) tokens" in capsys.readouterr().err


@pytest.mark.parametrize("options", [[], ["--model-overrides", "[1]"]], ids=" ".join)
def test_no_file_or_no_overrides_is_one_line(pipeline, tmp_path, capsys, options):
    path = pipeline.base if options else tmp_path / "no.pt"
    assert run(pipeline.data, "--path", path, *options, "--output", tmp_path / "search.json") == 1
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith("sd_fairseq: error:") and (options[1] if options else str(path)) in line
    assert not list(tmp_path.iterdir())
