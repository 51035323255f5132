"""``python -m sd_fairseq.plugin.path_search`` on a real checkpoint."""

import json

import pytest


def run(*arguments):
    from sd_fairseq.plugin.path_search import main

    return main([str(argument) for argument in arguments])


def test_the_command_writes_what_it_found(pipeline, tmp_path, capsys):
    out = tmp_path / "search.json"
    options = ["--path", pipeline.switchable, "--lowest", 0.9, "--examples", 5, "--beam", 2, "--output", out]
    assert run(pipeline.data, *options) == 0
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["examples"] >= 5 and found["static_frontier"][-1]["flops_generation"] <= 0.9
    assert f"{found['nll_oracle']:.4f}" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["search.json"]


@pytest.mark.parametrize("which", ["base", "missing"])
def test_a_checkpoint_without_decisions_or_without_a_file_is_one_line(pipeline, tmp_path, capsys, which):
    path = pipeline.base if which == "base" else tmp_path / "no.pt"
    assert run(pipeline.data, "--path", path, "--output", tmp_path / "search.json") == 1
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith("sd_fairseq: error:") and str(path) in line
    assert not list(tmp_path.iterdir())
