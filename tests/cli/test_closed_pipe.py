"""A reader that goes (``| head``) ends a command in silence, as other tools end."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sd_fairseq.errors import CLOSED_PIPE

ROOT = Path(__file__).resolve().parents[2]


def run_without_reader(*arguments, **variables):
    """Runs Python with a standard output that nobody reads any more; returns exit code and standard error."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=writing,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", **variables},
        universal_newlines=True,
    )
    os.close(writing)
    return done.returncode, done.stderr


@pytest.fixture
def inputs(tmp_path):
    """Input of the commands that need no model."""
    (tmp_path / "texts").write_text("a few words .\n" * 20)
    context = {"context": "The sea is blue.", "qas": [{"id": "7", "question": "What?", "answers": []}]}
    context["qas"][0]["answers"] = [{"text": "The sea", "answer_start": 0}]
    (tmp_path / "squad.json").write_text(json.dumps({"data": [{"paragraphs": [context]}]}))
    (tmp_path / "answers.json").write_text(json.dumps({"7": "The sea"}))
    return tmp_path


@pytest.mark.parametrize(
    "command, names",
    [("rouge", ["texts", "texts"]), ("squad_score", ["squad.json", "answers.json"]), ("options", [])],
)
def test_a_command_whose_reader_has_gone_is_quiet(inputs, command, names):
    code, error = run_without_reader("-m", "sd_fairseq.commands." + command, *(inputs / name for name in names))
    assert (code, error) == (CLOSED_PIPE, "")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", ["rouge", "report", "squad_score", "export"])
def test_help_is_quiet_too(command, unbuffered):
    """It is printed when the process ends, or at once."""
    _, error = run_without_reader("-m", "sd_fairseq.commands." + command, "--help", PYTHONUNBUFFERED=unbuffered)
    assert error == ""


def test_every_command_ends_through_the_same_function():
    """What the tests above show of three holds for all: ``run`` does their work."""
    for path in sorted((ROOT / "sd_fairseq" / "commands").glob("*.py")):
        name, text = path.stem, path.read_text(encoding="utf-8")
        if name in ("__init__", "shared"):
            continue
        elsewhere = {"report": "report", "rouge": "rouge", "squad_score": "squad_score"}.get(name)
        if elsewhere:
            text = (ROOT / "sd_fairseq" / "evaluation" / f"{elsewhere}.py").read_text(encoding="utf-8")
        assert "return run(" in text, name


def test_fairseqs_commands_are_quiet_too(pipeline):
    options = ["--path", pipeline.switchable, "--beam", 2, "--max-len-b", 10, "--max-tokens", 700, "--cpu"]
    arguments = [pipeline.data, *pipeline.task, *options]
    _, error = run_without_reader("-m", "fairseq_cli.generate", *arguments)
    assert "Traceback" not in error and "BrokenPipe" not in error and "Exception ignored" not in error, error[-2000:]
