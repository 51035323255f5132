"""The demo from end to end, with a small base and a handful of updates: every command of it runs."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from warm import python

pytest.importorskip("fairseq")
pytest.importorskip("matplotlib")
ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    *("--arch", "bart_base", "--criterion", "label_smoothed_cross_entropy", "--optimizer", "adam", "--lr", "3e-3"),
    *("--encoder-layers", "3", "--decoder-layers", "2", "--encoder-embed-dim", "16", "--decoder-embed-dim", "16"),
    *("--encoder-ffn-embed-dim", "32", "--decoder-ffn-embed-dim", "32", "--max-source-positions", "192"),
    *("--encoder-attention-heads", "2", "--decoder-attention-heads", "2", "--max-target-positions", "64"),
    *("--share-all-embeddings", "--max-tokens", "2048", "--max-update", "3", "--cpu", "--num-workers", "0"),
]
PAIRS = 80


def run(*command, **more):
    """Runs a command that must end well; returns what it printed."""
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        list(map(str, command)),
        env={**environment, **more},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        universal_newlines=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder of few pairs, and one of a small base and its vocabulary."""
    folder = tmp_path_factory.mktemp("demo")
    for split in ("train", "valid"):
        shipped = ROOT / "examples" / "data" / "debian" / f"{split}.jsonl.gz"
        with gzip.open(str(shipped), "rt", encoding="utf-8") as lines:
            few = [line for line, _ in zip(lines, range(PAIRS))]
        (folder / "pairs").mkdir(exist_ok=True)
        with gzip.open(str(folder / "pairs" / f"{split}.jsonl.gz"), "wt", encoding="utf-8") as text:
            text.writelines(few)
    run(python(), ROOT / "examples" / "tradeoff" / "split.py", folder / "pairs", folder / "split")
    prepare = ROOT / "examples" / "quickstart" / "prepare.py"
    run(python(), prepare, "--data", folder / "split", "--vocab-size", 400, folder / "data")
    task = ["--user-dir", ROOT / "sd_fairseq", "--task", "switchable_translation", "-s", "source", "-t", "target"]
    data = [folder / "data" / "data-bin", *task, "--truncate-source", "--save-dir", folder / "base"]
    run(python(), "-m", "fairseq_cli.train", *data, *SMALL, "--disable-validation", "--no-epoch-checkpoints")
    (folder / "base" / "checkpoint_last.pt").rename(folder / "base" / "base.pt")
    for name in ("sentencepiece.model", "dict.txt"):
        (folder / "data" / name).rename(folder / "base" / name)
    return folder


def test_the_demo_runs_and_reports_all_four_systems(small):
    out = small / "out"
    environment = {
        "PYTHON": python(),
        "BASE": str(small / "base"),
        "DATA": str(small / "pairs"),
        "UPDATES": "12",
        "POLICY_OPTIONS": "--sd-policy-lr 0.05 --sd-policy-freeze-update 10",  # skips within these
        "PATH": os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]]),
    }
    printed = run("bash", ROOT / "examples" / "quickstart" / "run.sh", out, **environment)
    report = json.loads((out / "report.json").read_text())
    assert "beam:4" in report["signature"]
    for name in ("dense", "dense_control", "switchable", "random"):
        system = report[name]
        assert system["examples"] == PAIRS // 2
        assert all(0 <= system[key] <= 100 for key in ("rouge1", "rouge2", "rougeL"))
        assert system["seconds"] > 0
    assert report["dense"]["flops_generation"] == report["dense_control"]["flops_generation"] == 1.0
    assert report["switchable"]["flops_generation"] < 0.99
    difference = report["random"]["flops_generation"] - report["switchable"]["flops_generation"]
    assert abs(difference) < 0.05  # random decisions at equal FLOPs
    assert {path.name for path in out.glob("*.png")} == {"skip_heatmap.png", "tradeoff.png"}
    assert "policy: " in printed and "switchable - dense_control: R-L" in printed
