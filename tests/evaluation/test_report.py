"""Skip report, comparison of systems and the sd-report command."""

import json
import math
import random
import subprocess
import sys

import pytest
from traces import make_record, make_texts, spoil, write_output

from sd_fairseq.decision.trace import SITE_FIELDS, write_trace
from sd_fairseq.evaluation.report import compare_with_dense, main, read_system
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
    assert report.gflops_per_example == pytest.approx((3 * 900 + 500) / 4 / 1e9)
    assert report.gflops_per_example_dense == pytest.approx(1000 / 1e9)
    assert report.flops_corpus == pytest.approx((3 * 900 + 500) / 4000)
    assert report.seconds == 2.0
    assert "decoder_cross_attention" not in report.skip_rates


def test_cross_attention_is_reported_where_it_is_apart():
    report = summarise_trace([make_record(0, decoder_cross_attention="011=")])
    assert report.skip_rates["decoder_cross_attention"] == pytest.approx(1 / 3)
    assert report.skip_rates["decoder_attention"] == 0.0


def test_rates_of_random_decisions_equal_a_count_over_all_records():
    generator = random.Random(4)
    columns = ["=" + "".join(generator.choices("01", k=3)) for _ in range(200)]
    report = summarise_trace([make_record(index, encoder_attention=column) for index, column in enumerate(columns)])
    assert report.skip_rates["encoder_attention"] == pytest.approx("".join(columns).count("0") / 600)
    assert report.distinct_paths == len(set(columns))
    assert 0 < report.path_entropy <= 3 and report.top_path_share >= 1 / 8


def test_a_dense_trace_has_no_rates_but_the_tokens():
    report = summarise_trace(
        [make_record(0, **{site: "====" for site in SITE_FIELDS}), make_record(1, **{s: "====" for s in SITE_FIELDS})]
    )
    assert report.skip_rates == {"token": 0.0} and report.skip_rates_by_layer["encoder_ffn"] == [None] * 4
    assert (report.distinct_paths, report.top_path_share, report.path_entropy) == (1, 1.0, 0.0)


def test_records_of_different_models_are_refused():
    with pytest.raises(ValueError, match="examples 0 and 1 come from different models: 4 and 6 layers"):
        summarise_trace([make_record(0), make_record(1, encoder_attention="=11111", encoder_ffn="=11111")])


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
        assert report[name]["path_entropy"] == 0.0 and report[name]["top_path_share"] == 1.0
    assert report["signature"] in finished.stdout and "top path" in finished.stdout and "entropy" in finished.stdout


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


def pair(files, name):
    return [str(files / f"{name}.gen"), str(files / f"{name}.trace")]


def refuse(capsys, words, *given):
    """Runs the command in this process; it must fail with one line that holds the words."""
    assert main(list(given)) == 1
    shown = capsys.readouterr()
    assert shown.out == "" and len(shown.err.strip().splitlines()) == 1 and words in shown.err


@pytest.mark.parametrize("name, words", [("signature", "key of report.json"), ("data", "key"), ("dense", "differ")])
def test_a_name_that_stands_for_something_else_is_refused(files, capsys, name, words):
    added = ["--add", name, *pair(files, "switchable")]
    refuse(capsys, words, "--dense", *pair(files, "dense"), *added, "--output-dir", str(files / "out"))
    assert not (files / "out").exists()


@pytest.mark.parametrize("blocked", ["out", "out/tradeoff.png"])
def test_a_place_that_cannot_be_written_gets_no_file_at_all(files, capsys, blocked):
    if blocked == "out":
        (files / "out").write_text("mine")
    else:
        (files / "out" / "tradeoff.png").mkdir(parents=True)
    before = sorted(files.rglob("*"))
    systems = ["--dense", *pair(files, "dense"), "--switchable", *pair(files, "switchable")]
    refuse(capsys, str(files / blocked), *systems, "--output-dir", str(files / "out"))
    assert sorted(files.rglob("*")) == before


def test_without_matplotlib_there_are_table_and_figures_and_one_line(files, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["--switchable", *pair(files, "switchable"), "--output-dir", str(files / "out")]) == 0
    shown = capsys.readouterr()
    assert len(shown.err.strip().splitlines()) == 1 and "sd_fairseq[plots]" in shown.err and "R-L" in shown.out
    assert [path.name for path in (files / "out").iterdir()] == ["report.json"]


def test_a_report_without_dense_has_no_differences_and_none_without_any_system(files, capsys):
    systems = ["--switchable", *pair(files, "switchable"), "--random", *pair(files, "random")]
    assert main([*systems, "--output-dir", str(files / "out")]) == 0
    report = json.loads((files / "out" / "report.json").read_text())
    assert set(report) == {"signature", "data", "switchable", "random"}
    assert not any(key.startswith("rougeL_minus") for name in ("switchable", "random") for key in report[name])
    capsys.readouterr()
    refuse(capsys, "no system is given", "--output-dir", str(files / "other"))


def test_switchable_is_compared_with_dense_and_with_the_dense_control(files, capsys):
    systems = ["--dense", *pair(files, "dense"), "--dense-control", *pair(files, "random")]
    assert main([*systems, "--switchable", *pair(files, "switchable"), "--output-dir", str(files / "out")]) == 0
    report = json.loads((files / "out" / "report.json").read_text())
    assert set(report) == {"signature", "data", "dense", "dense_control", "switchable"}
    better = report["switchable"]["rougeL_minus_dense_control"]
    assert 0 < better["low"] <= better["difference"] <= better["high"]
    assert better["difference"] == pytest.approx(
        report["switchable"]["rougeL_minus_dense"]["difference"]
        - report["dense_control"]["rougeL_minus_dense"]["difference"]
    )
    assert "switchable - dense_control" in capsys.readouterr().out


@pytest.mark.parametrize("count", [1, 4, 9])
def test_the_table_has_a_row_a_figure_and_no_line_above_100_characters(files, capsys, count):
    systems = []
    for index in range(count):
        systems += ["--add", f"a name that is long, number {index}", *pair(files, "switchable")]
    assert main(["--dense", *pair(files, "dense"), *systems, "--output-dir", str(files / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines[:-1])) <= 100  # the last is the signature, which is one word to copy
    rows = [line for line in lines if line.startswith("R-L")]
    assert sum(len(row.split()) - 1 for row in rows) == count + 1


def test_a_trace_of_another_run_is_refused(files, capsys):
    write_trace(str(files / "switchable.trace"), [make_record(i, target_tokens=8 + (i < 7)) for i in range(COUNT)])
    systems = ["--switchable", *pair(files, "switchable")]
    refuse(capsys, "example 7 has 9 tokens in", *systems, "--output-dir", str(files / "out"))
    assert not (files / "out").exists()


def test_shards_of_one_system_make_the_same_report_as_the_whole(files, capsys):
    references = make_texts(COUNT)
    hypotheses = spoil(references, 0.32)
    for shard in (0, 1):
        part = {index: text for index, text in hypotheses.items() if index % 2 == shard}
        write_output(files / f"{shard}.gen", part, references)
        write_trace(str(files / f"{shard}.trace"), [make_record(index, encoder_ffn="=010") for index in part])
    shards = [",".join(str(files / f"{shard}.{kind}") for shard in (0, 1)) for kind in ("gen", "trace")]
    systems = ["--dense", *pair(files, "dense"), "--switchable", *pair(files, "switchable"), "--add", "merged", *shards]
    assert main([*systems, "--output-dir", str(files / "out")]) == 0
    report = json.loads((files / "out" / "report.json").read_text())
    assert report["merged"] == report["switchable"]


def test_a_stack_of_fewer_layers_and_a_long_title_can_be_drawn(files):
    deep = {"encoder_attention": "=" + "1" * 11, "encoder_ffn": "=" + "0" * 11}
    write_trace(str(files / "switchable.trace"), [make_record(index, **deep) for index in range(COUNT)])
    systems = ["--dense", *pair(files, "dense"), "--switchable", *pair(files, "switchable")]
    assert main([*systems, "--title", "long " * 40, "--output-dir", str(files / "out")]) == 0
    assert (files / "out" / "skip_heatmap.png").read_bytes()[:4] == b"\x89PNG"
