"""Bad input becomes one line under a fairseq command, and only there."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("fairseq")
from sd_fairseq.plugin.guards import errors  # noqa: E402
from sd_fairseq.plugin.guards.errors import InputError, fairseq_command, find_message, install_one_line_errors  # noqa: E402

# errors.py alone, so that the process starts in no time
PROGRAM = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("sd_fairseq.plugin.guards.errors", {path!r})
errors = importlib.util.module_from_spec(spec)
spec.loader.exec_module(errors)
errors.install_one_line_errors()
errors.install_one_line_errors()
try:
    raise {error}
except Exception as cause:
    raise RuntimeError("cannot load") from cause
"""


def run_program(folder, name, error, **variables):
    """Run a program called `name` that fails with `error` behind a RuntimeError."""
    program = folder / name
    program.write_text(PROGRAM.format(path=errors.__file__, error=error), encoding="utf-8")
    environment = {**os.environ, **variables}
    return subprocess.run([sys.executable, str(program)], stderr=subprocess.PIPE, env=environment, encoding="utf-8")


@pytest.mark.parametrize(
    "program, command",
    [
        ("/usr/bin/fairseq-train", "train"),
        ("fairseq-eval-lm", "eval-lm"),
        ("fairseq-hydra-train", "hydra-train"),
        ("/lib/fairseq_cli/generate.py", "generate"),
        (os.path.join("Scripts", "fairseq-train.exe"), "train"),
        (os.path.join("Scripts", "fairseq-train-script.py"), "train"),
        ("/usr/bin/pytest", None),
        ("/home/me/train.py", None),
        ("-c", None),
        ("", None),
    ],
)
def test_recognises_fairseq_commands(program, command):
    assert fairseq_command(program) == command


def test_finds_message_anywhere_behind_an_exception():
    assert find_message(InputError("share is 130,\n  expected 0-100")) == "share is 130, expected 0-100"
    explicit, implicit = RuntimeError("a"), RuntimeError("b")
    explicit.__cause__ = implicit
    implicit.__context__ = InputError("deep")
    assert find_message(explicit) == "deep"
    assert find_message(RuntimeError("a")) is None
    assert find_message(None) is None


def test_finds_message_in_a_cycle_of_exceptions():
    first, second = RuntimeError("a"), RuntimeError("b")
    first.__context__, second.__context__ = second, first
    assert find_message(first) is None


def test_finds_message_that_crossed_a_process_border():
    text = "-- Process 1 terminated\nTraceback:\n  File x\nsd_fairseq.errors.InputError: share is 130\n"
    assert find_message(RuntimeError(text)) == "share is 130"
    assert find_message(InputError("Caught InputError in worker 0.\n" + text)) == "share is 130"


def test_command_prints_one_line(tmp_path):
    outcome = run_program(tmp_path, "fairseq-train", "errors.InputError('share is 130')")
    assert (outcome.returncode, outcome.stderr) == (1, "sd_fairseq: error: share is 130\n")


def test_traceback_on_request(tmp_path):
    outcome = run_program(tmp_path, "fairseq-train", "errors.InputError('share is 130')", SD_FAIRSEQ_TRACEBACK="1")
    assert outcome.returncode == 1 and outcome.stderr.startswith("Traceback")
    assert outcome.stderr.endswith("sd_fairseq: error: share is 130\n")


@pytest.mark.parametrize(
    "name, error", [("fairseq-train", "ValueError('other')"), ("program.py", "errors.InputError('share is 130')")]
)
def test_everything_else_keeps_its_traceback(tmp_path, name, error):
    outcome = run_program(tmp_path, name, error)
    assert outcome.returncode == 1 and outcome.stderr.startswith("Traceback")
    assert "sd_fairseq: error:" not in outcome.stderr


def test_no_hook_outside_fairseq_commands(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pytest"])
    before = sys.excepthook
    install_one_line_errors()
    assert sys.excepthook is before
