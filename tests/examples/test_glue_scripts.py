"""The scripts of examples/glue: every option is one of fairseq's or ours, and the settings are the paper's."""

import argparse
import json
import os
import stat
import subprocess

import pytest
import torch
from dropin import stand_ins
from dropin.workers import ROOT, run

FOLDER = ROOT / "examples" / "glue"
TABLE_15 = {"MNLI": (3, 5e-6, 128, 30968, 1858), "RTE": (2, 1e-5, 32, 1018, 61), "SST-2": (2, 5e-6, 128, 5233, 314)}


@pytest.fixture()
def data(tmp_path):
    """What the preflight and the task look for; nothing is read."""
    pytest.importorskip("fairseq")
    for name in ("input0", "label"):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "dict.txt").write_text("a 1\n")
    return tmp_path / "data"


def write_checkpoint(path):
    """A file that passes for a checkpoint until it is loaded."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": {}, "args": argparse.Namespace()}, str(path))
    return path


@pytest.fixture()
def recorded(tmp_path, monkeypatch):
    """Runs a script with commands in place of fairseq's and Python's that note how they were called."""
    programs, record = tmp_path / "programs", tmp_path / "record"
    programs.mkdir()
    record.mkdir()
    for name in ("fairseq-train", "recorder"):
        script = '#!/bin/sh\nprintf "%s\\n" "$@" >"$RECORD/$(ls "$RECORD" | wc -l)"\n'
        (programs / name).write_text(script)
        (programs / name).chmod(stat.S_IRWXU)

    def call(script, *arguments, check=True, **environment):
        values = {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "RECORD": str(record)}
        values.update({key: str(value) for key, value in environment.items()})
        command = ["bash", str(FOLDER / script), *map(str, arguments)]
        done = subprocess.run(
            command, env=values, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True
        )
        assert not check or done.returncode == 0, done.stderr
        call.failure = done.stderr
        return [(record / str(i)).read_text().split("\n")[:-1] for i in range(len(list(record.iterdir())))]

    call.recorder = programs / "recorder"
    return call


def parse(arguments, folder, name):
    """Reads options with fairseq's own parser; returns its groups."""
    package = str(ROOT / "sd_fairseq")
    arguments = [package if before == "--user-dir" else one for before, one in zip(["", *arguments], arguments)]
    output = run("train", arguments, folder / f"{name}.options", prepare=stand_ins.parser_only)
    return json.loads(next(line[8:] for line in output.splitlines() if line.startswith("options ")))


def options_of(command):
    """{option: what follows it}, an option without a value too."""
    return {one: after for one, after in zip(command, [*command[1:], ""]) if one.startswith("--")}


@pytest.mark.parametrize("task", TABLE_15)
def test_the_recipe_has_table_15s_settings(recorded, tmp_path, data, task):
    classes, rate, sentences, updates, warmup = TABLE_15[task]
    checkpoint = write_checkpoint(tmp_path / "model.pt")
    (arguments,) = recorded("train.sh", task, data, checkpoint, tmp_path / "save", GPUS=8)
    found = parse([*arguments, "--cpu", "--fp16-no-flatten-grads"], tmp_path, task)
    assert found["task"]["num_classes"] == classes and found["optimization"]["lr"] == [rate]
    assert found["dataset"]["batch_size"] * found["optimization"]["update_freq"][0] * 8 == sentences
    assert found["optimization"]["max_update"] == updates
    assert arguments[arguments.index("--total-num-update") + 1] == str(updates)
    assert arguments[arguments.index("--warmup-updates") + 1] == str(warmup)
    assert not [word for word in arguments if word.startswith("--sd-")]  # the preset's values


def test_gpus_that_cannot_share_a_batch_evenly_are_refused(recorded, tmp_path):
    assert recorded("train.sh", "RTE", "data", "model.pt", tmp_path / "save", check=False, GPUS=3) == []
    assert "3 GPUs of MAX_SENTENCES=16 do not divide a batch of 32" in recorded.failure


def test_the_small_recipe_trains_both_rows_alike_and_scores_the_last_checkpoints(recorded, tmp_path, data):
    out = tmp_path / "out"
    commands = recorded("small.sh", "RTE", data, out, tmp_path / "valid.tsv", 2, PYTHON=recorded.recorder)
    write_checkpoint(out / "base" / "checkpoint_last.pt")
    kinds = [command[1] if command[0] == "-m" else os.path.basename(command[0]) for command in commands]
    train, score, note = (
        "fairseq_cli.train",
        "sd_fairseq.commands.classify",
        "understanding_table.py",
    )
    assert kinds == [train, train, score, note, train, score, note, note]
    dense, switchable = options_of(commands[1]), options_of(commands[4])
    assert dense.pop("--sd-policy") == "dense"
    assert all(switchable.pop(name) for name in list(switchable) if name not in dense)
    assert {name for name in dense if dense[name] != switchable[name]} == {"--save-dir"}
    for name, command in (("dense", commands[2]), ("switchable", commands[5])):
        assert command[command.index("--path") + 1] == str(out / name / "checkpoint_last.pt")
        assert f"{name}/checkpoint_last.pt" in (out / f"{name}.commands").read_text()
    assert parse(commands[4][2:], tmp_path, "small")["dataset"]["disable_validation"]
