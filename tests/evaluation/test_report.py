"""Skip report, comparison of systems and the sd-report command."""

import json
import math
import subprocess
import sys

import pytest
from traces import make_record, make_texts, spoil, write_output

from sd_fairseq.decision.trace import write_trace
from sd_fairseq.evaluation.report import compare_with_dense, read_system
from sd_fairseq.evaluation.skip_report import summarise_trace

COUNT = 60


@pytest.fixture
def files(tmp_path):
    """Outputs and traces of a dense system, one that is a little worse and one that is much worse."""
    references = make_texts(COUNT)
    systems = {"dense": 0.3, "switchable": 0.32, "random": 0.8}
    for name, share in systems.items():
        write_output(tmp_path / f"{name}.gen", spoil(references, share), references)
        changes = {"dense": {"flops_generation": 1000, "flops_paper": 1000}}.get(name, {"encoder_ffn": "=010"})
        write_trace(str(tmp_path / f"{name}.trace"), [make_record(index, **changes) for index in range(COUNT)])
    return tmp_path


def load(files, name):
    return read_system(name, str(files / f"{name}.gen"), str(files / f"{name}.trace"))


def run_report(files, *names, options=()):
    command = [sys.executable, "-W", "ignore", "-m", "sd_fairseq.evaluation.report", "--output-dir", str(files / "out")]
    for name in names:
        command += [f"--{name}", str(files / f"{name}.gen"), str(files / f"{name}.trace")]
    return subprocess.run(
        [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, timeout=120
    )


def test_skip_rates_of_a_known_set_equal_the_hand_count():
    records = [
        make_record(0, encoder_ffn="=011", kept_source_tokens=30, token_strategy="uniform:50"),
        make_record(1, encoder_ffn="=010", decoder_attention="011=", decoder_cross_attention="011="),
        make_record(2, encoder_ffn="=011", kept_source_tokens=30, token_strategy="uniform:50"),
        make_record(3, flops_generation=500),
    ]
    report = summarise_trace(records)
    assert report.skip_rates_by_layer["encoder_ffn"] == [None, 0.75, 0.0, 0.25]
    assert report.skip_rates["encoder_ffn"] == pytest.approx(1 / 3)
    assert report.skip_rates["decoder_attention"] == pytest.approx(1 / 12)
    assert report.skip_rates["token"] == pytest.approx(0.25)
    assert report.token_strategies == {"uniform:50": 2, "keep": 2}
    assert report.distinct_paths == 3 and report.top_path_share == 0.5
    assert report.path_entropy == pytest.approx(0.5 + 2 * 0.25 * 2)
    assert report.flops_generation == pytest.approx((3 * 0.9 + 0.5) / 4)
    assert report.seconds == 2.0
    assert "decoder_cross_attention" not in report.skip_rates


def test_cross_attention_is_reported_where_it_is_apart():
    report = summarise_trace([make_record(0, decoder_cross_attention="011=")])
    assert report.skip_rates["decoder_cross_attention"] == pytest.approx(1 / 3)
    assert report.skip_rates["decoder_attention"] == 0.0


def test_a_system_against_itself_differs_by_nothing(files):
    comparison = compare_with_dense(load(files, "dense"), load(files, "dense"))
    assert comparison["difference"] == comparison["low"] == comparison["high"] == 0.0
    assert comparison["p"] == 1.0


def test_a_much_worse_system_is_significantly_worse(files):
    comparison = compare_with_dense(load(files, "random"), load(files, "dense"))
    assert comparison["high"] < 0 and comparison["p"] < 0.01


def test_the_command_prints_a_table_and_writes_report_and_pictures(files):
    finished = run_report(files, "dense", "switchable", "random", options=["--data-name", "words"])
    assert finished.returncode == 0, finished.stderr
    assert sorted(path.name for path in (files / "out").iterdir()) == [
        "report.json", "skip_heatmap.png", "tradeoff.png",
    ]  # fmt: skip
    report = json.loads((files / "out" / "report.json").read_text())
    assert report["dense"]["flops_generation"] == 1.0
    assert report["switchable"]["flops_generation"] == pytest.approx(0.9)
    assert f"n:{COUNT}" in report["signature"] and "data:words" in report["signature"]
    for name in ("dense", "switchable", "random"):
        assert report[name]["rougeL_interval"][0] <= report[name]["rougeL"] <= report[name]["rougeL_interval"][1]
        assert name in finished.stdout and math.isfinite(report[name]["rouge2"])
    assert report["signature"] in finished.stdout


@pytest.mark.parametrize("fault", ["ids", "references", "trace", "missing"])
def test_files_that_do_not_belong_together_are_refused(files, fault):
    references = make_texts(COUNT)
    if fault == "ids":
        part = {index: text for index, text in references.items() if index}
        write_output(files / "switchable.gen", part, references)
        write_trace(str(files / "switchable.trace"), [make_record(index) for index in part])
    elif fault == "references":
        write_output(files / "switchable.gen", references, {**references, 7: "another one"})
    elif fault == "trace":
        write_trace(str(files / "switchable.trace"), [make_record(index) for index in range(COUNT - 1)])
    else:
        (files / "switchable.gen").unlink()
    finished = run_report(files, "dense", "switchable")
    assert finished.returncode == 1
    assert len(finished.stderr.strip().splitlines()) == 1 and "Traceback" not in finished.stderr
    assert {"ids": "example", "references": "example 7", "trace": "59", "missing": "switchable.gen"}[
        fault
    ] in finished.stderr
    assert not (files / "out").exists()
