"""Whatever its input, a command ends with 0 and whole files, or with 1, one line and none; inputs stay as they were."""

import argparse
import contextlib
import io
import json

import pytest
from broken_files import broken, damaged
from hypothesis import given, settings

from sd_fairseq.evaluation import report, rouge, squad_score

pytest.importorskip("nltk")
FEW = settings(max_examples=max(15, settings.default.max_examples // 4))


def run(main, folder, inputs, arguments):
    """Runs a command on files of these contents; returns its code and what it printed."""
    for name, content in inputs.items():
        (folder / name).write_bytes(content)
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        code = main(arguments)
    assert code in (0, 1)
    lines = [line for line in error.getvalue().splitlines() if ": error: " in line]
    assert len(lines) == code and "Traceback" not in error.getvalue(), error.getvalue()
    assert all((folder / name).read_bytes() == content for name, content in inputs.items())
    assert not list(folder.rglob("*.part"))
    return code, out.getvalue()


def test_sd_rouge(tmp_path, given_files):
    saved = tmp_path / "saved"

    @FEW
    @given(broken("texts"), broken("texts"))
    def check(left, right):
        for pair in ((left, right), (left, left)):
            given_files["sd-rouge"] += 1
            saved.unlink() if saved.exists() else None
            inputs = dict(zip(("a", "b"), pair))
            options = ["--backend", "port", "-ir", "-is", "-s", str(saved)]
            code, printed = run(rouge.main, tmp_path, inputs, [str(tmp_path / "a"), str(tmp_path / "b"), *options])
            assert saved.exists() == (code == 0)
            assert code or saved.read_text().strip() in printed

    check()


def test_sd_squad_score(tmp_path, given_files):
    @FEW
    @given(broken("squad"), broken("predictions"))
    def check(data, predictions):
        given_files["sd-squad-score"] += 1
        inputs = {"data.json": data, "predictions.json": predictions}
        code, printed = run(squad_score.main, tmp_path, inputs, [str(tmp_path / name) for name in inputs])
        assert code or 0 <= json.loads(printed)["f1"] <= 100

    check()


def test_sd_report(tmp_path, given_files, monkeypatch):
    monkeypatch.setattr(report, "can_draw", lambda: False)
    monkeypatch.setattr(report, "RESAMPLES", 100)
    made = tmp_path / "made"

    @FEW
    @given(broken("generation"), broken("trace"))
    def check(generation, trace):
        given_files["sd-report"] += 1
        (made / "report.json").unlink() if (made / "report.json").exists() else None
        inputs = {"out": generation, "trace": trace}
        arguments = ["--add", "x", str(tmp_path / "out"), str(tmp_path / "trace"), "--output-dir", str(made)]
        code, _ = run(report.main, tmp_path, inputs, arguments)
        assert (made / "report.json").exists() == (code == 0)
        assert code or json.loads((made / "report.json").read_text())["x"]

    check()


def test_sd_export(tmp_path, given_files):
    """A checkpoint of a real, tiny model with something wrong: a plain checkpoint that can be read, or one line."""
    pytest.importorskip("fairseq")
    import torch
    from factories import TINY_OPTIONS, build_model

    from sd_fairseq.commands import export
    from sd_fairseq.plugin.guards.preflight import check_checkpoint

    model = build_model(sd_policy="network")
    options = argparse.Namespace(arch="switchable_bart_base", task="translation", **TINY_OPTIONS)
    history = [{"optimizer_name": "", "lr_scheduler_state": {}, "num_updates": 0, "criterion_name": ""}]
    state = {"args": options, "cfg": None, "model": model.state_dict(), "optimizer_history": history}
    state.update(extra_state={"train_iterator": {"epoch": 1, "iterations_in_epoch": 0}}, last_optimizer_state=None)
    torch.save(state, str(tmp_path / "right"))
    right, made = (tmp_path / "right").read_bytes(), tmp_path / "made"
    arguments = [str(tmp_path / "c.pt"), str(made), "--path", "dense"]
    assert run(export.main, tmp_path, {"c.pt": right}, arguments)[0] == 0

    @settings(max_examples=max(5, settings.default.max_examples // 20))
    @given(damaged(right))
    def check(content):
        given_files["sd-export"] += 1
        made.unlink() if made.exists() else None
        code, _ = run(export.main, tmp_path, {"c.pt": content}, arguments)
        assert made.exists() == (code == 0)
        if code == 0:
            check_checkpoint(str(made), "made")

    check()
