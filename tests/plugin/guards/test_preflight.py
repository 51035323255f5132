"""Checkpoints that cannot be loaded and runs that would do nothing are refused before fairseq starts."""

import argparse
import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("fairseq")
from sd_fairseq.plugin.guards import preflight  # noqa: E402
from sd_fairseq.plugin.guards.compatibility import loads_weights_only, prepare_environment  # noqa: E402
from sd_fairseq.plugin.guards.errors import InputError  # noqa: E402
from sd_fairseq.plugin.guards.preflight import check_checkpoint, check_command_line  # noqa: E402

ROOT = Path(__file__).resolve().parents[3]
both_formats = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
protected = pytest.mark.skipif(not loads_weights_only(), reason="this torch loads every type by default")


class Stranger:
    """A type that torch does not load by default."""


def save(path, content=None, zipped=True):
    """Write what fairseq writes, as far as it matters."""
    if content is None:
        model = {"encoder.weight": torch.zeros(50, 20), "shared": torch.ones(3, dtype=torch.float16)}
        content = {"args": argparse.Namespace(arch="bart_base"), "model": model, "extra_state": {"epoch": 1}}
    torch.save(content, str(path), _use_new_zipfile_serialization=zipped)
    return str(path)


def message(arguments):
    """Return the refusal of a command line, which must be one line."""
    with pytest.raises(InputError) as caught:
        check_command_line(arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    prepare_environment()
    for name in (*preflight._LAUNCHER_VARIABLES, *preflight._SLURM_VARIABLES, preflight.OPT_IN_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@both_formats
def test_good_checkpoint_passes(tmp_path, zipped):
    path = save(tmp_path / "good.pt", zipped=zipped)
    check_command_line(["fairseq-generate", "data", "--path", path])
    check_command_line(["fairseq-train", "data", "--restore-file", path])
    save(tmp_path / "new.pt", {"args": None, "cfg": {"model": {}}, "model": {}}, zipped)
    check_checkpoint(str(tmp_path / "new.pt"), "--path")


@both_formats
@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.9, -1])
def test_truncated_checkpoint_is_refused(tmp_path, zipped, kept):
    path = Path(save(tmp_path / "cut.pt", zipped=zipped))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept) if kept >= 0 else -1])
    assert "cut.pt: truncated or not a checkpoint (" in message(["fairseq-generate", "--path", str(path)])


@pytest.mark.parametrize("content", [b"hello", b"PK\x03\x04 not really", b"\x80\x02N.", b"\x00" * 64])
def test_file_of_another_kind_is_refused(tmp_path, content):
    (tmp_path / "other.pt").write_bytes(content)
    assert "truncated or not a checkpoint" in message(["fairseq-generate", "--path", "other.pt"])


@both_formats
@pytest.mark.parametrize(
    "content, found",
    [
        ({"weight": torch.zeros(2), "bias": torch.zeros(2)}, "found the keys weight, bias"),
        (torch.nn.Linear(2, 3).state_dict(), "found the keys weight, bias"),
        ({"model": {}}, "found the keys model"),
        ({"model": {}, "args": None, "cfg": None}, "found the keys model, args, cfg"),
        ({"args": argparse.Namespace()}, "found the keys args"),
        ({}, "found the keys (none)"),
        ({str(i): i for i in range(9)}, "found the keys 0, 1, 2, 3, 4, 5, ...;"),
        ([1, 2], "kind list"),
        (torch.nn.Linear(2, 3), "kind Linear"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_foreign_checkpoint_is_refused(tmp_path, content, found, zipped):
    text = message(["fairseq-generate", "--path", save(tmp_path / "foreign.pt", content, zipped)])
    assert found in text and "expected a fairseq checkpoint with 'model' and one of 'args' and 'cfg'" in text


@protected
@both_formats
def test_type_that_torch_refuses_is_named(tmp_path, zipped, monkeypatch):
    path = save(tmp_path / "strange.pt", {"args": Stranger(), "model": {}}, zipped)
    text = message(["fairseq-generate", "--path", path])
    assert "{}.Stranger".format(__name__) in text and "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1" in text
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    check_command_line(["fairseq-generate", "--path", path])


def test_reading_a_checkpoint_runs_nothing_in_it(tmp_path):
    class Writer:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    path = save(tmp_path / "harmful.pt", {"args": Writer(), "model": {}})
    with pytest.raises(InputError) if loads_weights_only() else contextlib.nullcontext():
        check_checkpoint(path, "--path")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("command", ["generate", "interactive", "validate", "eval-lm"])
def test_missing_path_is_refused(command):
    assert message(["fairseq-" + command, "data", "--path", "no.pt"]) == "--path no.pt: no such file"
    assert message(["fairseq_cli/" + command.replace("-", "_") + ".py", "--path=no.pt"]).endswith("no such file")


def test_every_member_of_an_ensemble_is_checked(tmp_path):
    good = save(tmp_path / "good.pt")
    assert "no.pt" in message(["fairseq-generate", "--path", os.pathsep.join([good, "no.pt"])])
    assert "--lm-path lm.pt" in message(["fairseq-generate", "--path", good, "--lm-path", "lm.pt"])


@pytest.mark.parametrize(
    "arguments",
    [
        ["fairseq-generate", "data"],
        ["fairseq-generate", "data", "--path", "s3://bucket/model.pt"],
        ["fairseq-generate", "data", "--path", "no.pt", "--checkpoint-shard-count", "2"],
        ["fairseq-generate", "data", "--path"],
        ["fairseq-train", "data"],
        ["fairseq-train", "data", "--restore-file", "checkpoint_last.pt"],
        ["fairseq-train", "data", "--restore-file", "https://host/model.pt"],
        ["fairseq-preprocess", "--path", "no.pt"],
        ["python", "--path", "no.pt"],
        [],
    ],
)
def test_nothing_to_check(arguments):
    check_command_line(arguments)


def test_missing_restore_file_is_refused():
    text = message(["fairseq-train", "data", "--restore-file", "checkpoint_best.pt"])
    assert text == "--restore-file checkpoint_best.pt: no such file; fairseq-train would silently start from scratch"
    assert "a folder" in message(["fairseq-train", "data", "--restore-file", "."])


def test_last_checkpoint_goes_before_the_model_to_finetune(tmp_path):
    arguments = ["fairseq-train", "data", "--save-dir", "run", "--finetune-from-model", "no.pt"]
    assert message(arguments) == "--finetune-from-model no.pt: no such file"
    (tmp_path / "run").mkdir()
    save(tmp_path / "run" / "checkpoint_last.pt")
    check_command_line(arguments)
    (tmp_path / "run" / "checkpoint_last.pt").write_bytes(b"cut")
    assert "checkpoint_last.pt: truncated" in message(arguments)


def test_suffix_is_part_of_the_name(tmp_path):
    save(tmp_path / "model-a.pt")
    check_command_line(["fairseq-generate", "--path", "model.pt", "--checkpoint-suffix=-a"])
    assert "model-b.pt" in message(["fairseq-generate", "--path", "model.pt", "--checkpoint-suffix=-b"])


def test_run_without_workers_is_refused(monkeypatch):
    arguments = ["fairseq-train", "data", "--cpu", "--distributed-world-size", "2"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert "starts no worker" in message(arguments)
    check_command_line(arguments + ["--distributed-no-spawn"])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_command_line(arguments)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for name in preflight._LAUNCHER_VARIABLES:
        monkeypatch.setenv(name, "1")
    check_command_line(arguments)


def test_fairseq_train_ends_with_one_line(tmp_path):
    command = [sys.executable, "-m", "fairseq_cli.train", str(tmp_path), "--user-dir", str(ROOT / "sd_fairseq")]
    command += ["--arch", "bart_base", "--restore-file", "no.pt"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    outcome = subprocess.run(command, stderr=subprocess.PIPE, env=environment, encoding="utf-8")
    prefix = "sd_fairseq: error: "
    told = [line[len(prefix) :] for line in outcome.stderr.splitlines() if line.startswith(prefix)]
    assert outcome.returncode == 1 and "Traceback" not in outcome.stderr
    assert told == ["--restore-file no.pt: no such file; fairseq-train would silently start from scratch"]
