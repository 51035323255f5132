"""The table of results is the files' figures, and nothing is made of files that are not whole."""

import json
import math

import pytest
from understanding_table import main

RATES = {"encoder_attention": 0.1, "encoder_ffn": 0.2, "decoder_attention": 0.25, "decoder_ffn": 0.5, "token": 0.125}


def result(row, seed, value, flops, **changes):
    made = {
        "task": "SST-2",
        "row": row,
        "seed": seed,
        "metric": "accuracy",
        "value": value,
        "flops_generation": flops,
        "seconds": 2.0,
        "skip_rates": RATES if row == "switchable" else {"token": 0.0},
        "command": "python -m ...",
        "versions": {"torch": "2"},
        "examples": 400,
    }
    return {**made, **changes}


def write(folder, *results):
    for number, one in enumerate(results):
        (folder / f"{number}.json").write_text(one if isinstance(one, str) else json.dumps(one))


def cells_of(output, first):
    """The cells of the row that starts with these."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in output.splitlines() if "|" in line]
    (found,) = [row for row in rows if row[: len(first)] == list(first)]
    return found


def test_each_row_is_the_mean_of_its_seeds_and_the_difference_to_dense(tmp_path, capsys):
    write(tmp_path, result("dense", 1, 80.0, 1), result("dense", 2, 82.0, 1), result("switchable", 1, 80.5, 0.75))
    assert main([str(tmp_path)]) == 0
    output = capsys.readouterr().out
    noise = 100 * math.sqrt(0.81 * 0.19 / 400)
    dense = ["SST-2", "accuracy", "dense", "81.00 (80.00-82.00)", "", f"±{noise:.2f}", "1.000", "2.00", "2"]
    assert cells_of(output, ["SST-2", "accuracy", "dense"]) == dense
    assert cells_of(output, ["SST-2", "accuracy", "switchable"])[3:5] == ["80.50", "-0.50"]
    assert cells_of(output, ["SST-2", "10.0"]) == ["SST-2", "10.0", "20.0", "25.0", "50.0", "12.5"]


@pytest.mark.parametrize(
    "broken, message",
    [
        ("{", "0.json: cannot be read"),
        ("3", "0.json: found a JSON int"),
        ({**result("dense", 1, 80.0, 1), "row": "sparse"}, "row 'sparse' is not one of dense, switchable"),
        ({**result("dense", 1, 80.0, 1), "value": "80"}, "'value' is '80'"),
        ({**result("dense", 1, 80.0, 1), "value": math.nan}, "'value' is nan"),
        ({**result("dense", 1, 80.0, 1), "flops_generation": 0}, "'flops_generation' is 0"),
        ({k: v for k, v in result("dense", 1, 80.0, 1).items() if k != "command"}, "no key 'command'"),
    ],
)
def test_a_broken_file_is_named_and_no_table_is_printed(tmp_path, capsys, broken, message):
    write(tmp_path, broken, result("switchable", 1, 80.0, 0.8))
    assert main([str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1 and not captured.out


def test_the_same_run_twice_is_refused(tmp_path, capsys):
    write(tmp_path, result("dense", 1, 80.0, 1), result("dense", 1, 81.0, 1))
    assert main([str(tmp_path)]) == 1
    assert "is also in" in capsys.readouterr().err


def test_a_recorded_result_is_read_back_with_command_and_versions(tmp_path, capsys):
    (tmp_path / "commands").write_text("train\npredict\n")
    summary = {"accuracy": 79.5, "flops_generation": 0.8, "seconds": 1.5, "skip_rates": RATES, "examples": 10}
    (tmp_path / "summary").write_text(json.dumps(summary))
    folder = tmp_path / "results"
    options = ["--task", "RTE", "--row", "switchable", "--seed", "3", "--commands", str(tmp_path / "commands")]
    assert main([str(folder), "--record", "one", "--summary", str(tmp_path / "summary"), *options]) == 0
    made = json.loads((folder / "one.json").read_text())
    assert made["value"] == 79.5 and made["command"] == "train\npredict" and made["versions"]["torch"]
    assert main([str(folder)]) == 0 and "79.50" in capsys.readouterr().out


def test_a_summary_without_the_metric_writes_nothing(tmp_path, capsys):
    (tmp_path / "commands").write_text("train")
    (tmp_path / "summary").write_text(json.dumps({"flops_generation": 1, "seconds": 1, "skip_rates": {}}))
    options = ["--task", "RTE", "--row", "dense", "--seed", "1", "--commands", str(tmp_path / "commands")]
    folder = tmp_path / "results"
    assert main([str(folder), "--record", "one", "--summary", str(tmp_path / "summary"), *options]) == 1
    assert "no key 'accuracy'" in capsys.readouterr().err and not folder.exists()
