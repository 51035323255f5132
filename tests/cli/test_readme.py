"""README's commands run as they stand there, on a small model and the embedded data."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from warm import python

ROOT = Path(__file__).resolve().parents[2]
# what makes two updates of a recipe
SMALL = ["--cpu", "--max-update", "2", "--no-epoch-checkpoints", "--num-workers", "0"]


def typed(block, sign):
    """The command after (+) or before (-) a diff block, as a shell reads it."""
    lines = [line[1:] for line in block.splitlines() if line.startswith((sign, " "))]
    return shlex.split(" ".join(line.rstrip("\\") for line in lines))


@pytest.fixture(scope="module")
def blocks():
    """README's -/+ blocks, by the command in them."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.findall(r"```diff\n(.*?)```", text, re.DOTALL)
    return {block[1:].split()[0]: block for block in found}


@pytest.fixture(scope="module")
def folder(pipeline, tmp_path_factory):
    """A folder in which everything has the name that README gives it."""
    place = tmp_path_factory.mktemp("readme")
    for name, target in (("data-bin", pipeline.data), ("bart.pt", pipeline.base), ("sd_fairseq", ROOT / "sd_fairseq")):
        (place / name).symlink_to(target)
    return place


def execute(words, folder):
    """Runs a command of fairseq's as README shows it; returns what it printed and its summary."""
    command = [python(), "-m", "fairseq_cli." + words[0][len("fairseq-") :], *words[1:]]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "universal_newlines": True}
    done = subprocess.run(command, cwd=str(folder), env=environment, timeout=300, **pipes)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout, done.stderr


def hypotheses(text):
    return sorted(line.split("\t")[0] + line.split("\t")[2] for line in text.splitlines() if line.startswith("H-"))


def test_faster_today_runs_as_shown_and_changes_no_hypothesis(blocks, folder):
    shown = typed(blocks["fairseq-generate"], "+")
    fast, summary = execute([*shown, "--cpu", "--max-len-b", "10"], folder)
    # what the line before does, which current torch refuses to load without the plugin
    slow, other = execute([*shown, "--cpu", "--max-len-b", "10", "--sd-generator", "fairseq"], folder)
    assert hypotheses(fast) == hypotheses(slow) and len(hypotheses(fast)) == 17
    assert "by the fast generator" in summary and "by fairseq's generator" in other


def test_learning_runs_as_shown_and_says_what_came_out(blocks, folder):
    printed, _ = execute([*typed(blocks["fairseq-train"], "+"), *SMALL], folder)
    assert "preset recommended: " in printed and "policy: training ended after 2 updates" in printed
    _, summary = execute([*typed(blocks["fairseq-generate"], "+"), "--cpu", "--max-len-b", "9"], folder)
    assert "sd_fairseq: 17 documents" in summary


def test_the_python_is_the_guides_which_is_run():
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/guide.md")]
    readme, guide = (re.findall(r"```python\n(.*?)```", text, re.DOTALL) for text in texts)
    assert len(readme) == 1 and readme == guide


def test_readme_is_short():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 180 and len(text.encode("utf-8")) <= 14 * 1024


def test_every_option_in_the_readme_is_explained_by_sd_options():
    command = [python(), "-W", "ignore", "-m", "sd_fairseq.commands.options"]
    shown = subprocess.run(command, cwd=str(ROOT), stdout=subprocess.PIPE, universal_newlines=True, check=True).stdout
    named = set(re.findall(r"--sd-[a-z-]+", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert len(named) > 2
    assert not {flag for flag in named if flag not in shown}


def test_the_plain_name_works_from_any_folder_once_installed(pipeline, tmp_path):
    where = "import sd_fairseq, sys; sys.stdout.write(sd_fairseq.__file__)"
    installed = subprocess.run([sys.executable, "-c", where], cwd=str(tmp_path), stdout=subprocess.PIPE, check=False)
    if installed.returncode or "site-packages" not in installed.stdout.decode():
        pytest.skip("sd_fairseq is not installed in this environment")
    command = [sys.executable, "-m", "fairseq_cli.generate", str(pipeline.data), "--user-dir", "sd_fairseq"]
    command += ["--task", "switchable_translation", "--path", str(pipeline.switchable), "--cpu", "--max-len-b", "5"]
    finished = subprocess.run(
        command, cwd=str(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert len(re.findall(r"^H-", finished.stdout, re.MULTILINE)) == 17


BENCHMARKS = {
    "saving.py": ["--source-length", "20", "--mixed-source-length", "20", "--batches", "2"],
    "training_step.py": ["--source-length", "20", "--target-length", "6", "--batch-size", "2"],
}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmarks_write_both_times_of_every_ratio(name, tmp_path):
    options = ["--size", "tiny", "--rounds", "1", "--threads", "1", "--output", str(tmp_path / "rows.json")]
    command = [python(), str(ROOT / "benchmarks" / name), *options, *BENCHMARKS[name]]
    finished = subprocess.run(
        command,
        cwd=str(ROOT),
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        universal_newlines=True,
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    for row in json.loads((tmp_path / "rows.json").read_text(encoding="utf-8")):
        assert row["ratio"] == pytest.approx(row["peer_s"] / row["ours_s"], rel=0.05)
        assert row["spread"][0] <= row["spread"][1] and row["versions"]["torch"]
