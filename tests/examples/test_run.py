"""The quick start from end to end, with a handful of updates: every command of the demo runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("fairseq")
pytest.importorskip("matplotlib")
ROOT = Path(__file__).resolve().parents[2]


def test_the_demo_runs_and_reports_all_three_systems(tmp_path):
    environment = {
        **os.environ,
        "PYTHON": sys.executable,
        "WARM_UPDATES": "2",
        "BASE_UPDATES": "3",
        "MORE_UPDATES": "6",
        "POLICY_OPTIONS": "--sd-mode fixed --sd-fixed-weight 50 --sd-policy-lr 0.05",  # skips within two updates
        "TEST_SUBSET": "valid",
        "PYTHONWARNINGS": "ignore",
    }
    finished = subprocess.run(
        ["bash", str(ROOT / "examples" / "quickstart" / "run.sh"), str(tmp_path / "demo")],
        cwd=str(tmp_path),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        universal_newlines=True,
        timeout=600,
    )
    assert finished.returncode == 0, finished.stdout[-1500:] + finished.stderr[-3000:]
    report = json.loads((tmp_path / "demo" / "report.json").read_text())
    assert "beam:4" in report["signature"]
    for name in ("dense", "switchable", "random"):
        system = report[name]
        assert system["examples"] == 300
        assert all(0 <= system[key] <= 100 for key in ("rouge1", "rouge2", "rougeL"))
        assert system["seconds"] > 0
    assert report["dense"]["flops_generation"] == report["dense"]["flops_paper"] == 1.0
    assert set(report["switchable"]["skip_rates"]) == {
        "encoder_attention", "encoder_ffn", "decoder_attention", "decoder_ffn", "token",
    }  # fmt: skip
    assert report["switchable"]["flops_generation"] < 0.99
    assert report["random"]["distinct_paths"] > 1
    assert {path.name for path in (tmp_path / "demo").glob("*.png")} == {"skip_heatmap.png", "tradeoff.png"}
    assert "ROUGE-L" in finished.stdout
