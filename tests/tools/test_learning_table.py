"""The grid's results: what is measured, what the tables say of it, and what is refused."""

import json
import math
import random
import re
from pathlib import Path

import numpy as np
import pytest
from learning_plots import choose_look
from learning_results import (
    ResultError,
    measure,
    read_results,
    read_training_log,
    updates_to_converge,
    violation_last,
    write_result,
)
from learning_table import fill, main
from row_names import FAMILIES, row_order
from traces import make_record, make_texts, spoil

from sd_fairseq.evaluation.generation_output import GenerationOutput
from sd_fairseq.evaluation.report import System, texts
from sd_fairseq.evaluation.rouge import document_scores

ROOT = Path(__file__).resolve().parents[2]
RATES = {"encoder_attention": 0.1, "encoder_ffn": 0.2, "decoder_attention": 0.25, "decoder_ffn": 0.5, "token": 0.125}
SETTINGS = {"subset": "test", "updates": 600, "max_tokens": 3072, "data": "d", "base": "b"}


def result(row, seed, rouge=30.0, flops=0.8, **changes):
    made = {
        "row": row,
        "seed": seed,
        **{metric: rouge for metric in ("rouge1", "rouge2", "rougeL")},
        **{metric + "_interval": [rouge - 1, rouge + 1] for metric in ("rouge1", "rouge2", "rougeL")},
        "dense_rougeL": 31.0,
        "rougeL_minus_dense": {"difference": rouge - 31.0, "low": rouge - 32, "high": rouge - 30, "p": 0.5},
        "significant_loss": rouge < 30,
        "flops_generation": flops,
        "flops_paper": flops - 0.1,
        "seconds": 2.0,
        "distinct_paths": 7,
        "top_path_share": 0.5,
        "path_entropy": 1.0,
        "skip_rates": {"token": 0.0} if row == "dense" else RATES,
        "updates": 600,
        "updates_to_converge": 100,
        "violation_last": -0.01,
        "examples": 1000,
        "signature": "s",
        "command": ["python -m ..."],
        "versions": {"torch": "2"},
        "settings": SETTINGS,
    }
    return {**made, **changes}


def failure(row, seed, why="exit code 1: out of memory"):
    return {"row": row, "seed": seed, "failed": why, "settings": SETTINGS, "command": [], "versions": {}}


def write(folder, *results):
    for number, one in enumerate(results):
        (folder / f"{number}.json").write_text(one if isinstance(one, str) else json.dumps(one))


def tables(output):
    """row -> {column: cell} of every table of the output, one after the other."""
    found, header = [], None
    for line in output.splitlines():
        if not line.startswith("|"):
            header = None
        elif header is None:
            header = [cell.strip() for cell in line.strip("|").split("|")]
            found.append({})
        elif not line.startswith("|-"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            found[-1][cells[0]] = dict(zip(header, cells))
    return found


def show(folder, capsys):
    assert main([str(folder)]) == 0
    return capsys.readouterr().out


def test_a_row_is_the_mean_of_its_seeds_with_smallest_and_largest(tmp_path, capsys):
    runs = [
        result("tolerance-0.25", 1, 29.5, 0.7),
        result("tolerance-0.25", 2, 30.0, 0.75),
        result("tolerance-0.25", 3, 31.1, 0.8),
    ]
    runs[0]["updates_to_converge"] = None
    write(tmp_path, result("dense", 1, 31.0, 1), *runs)
    grid, skipped = tables(show(tmp_path, capsys))
    row = grid["tolerance-0.25"]
    assert row["seeds"] == "1, 2, 3" and row["R-L"] == "30.20 (29.50-31.10)" and row["R-L - dense"] == "-0.80"
    assert row["significant loss"] == "1 of 3" and row["FLOPs"] == "0.750" and row["FLOPs (paper)"] == "0.650"
    assert row["FLOPs (corpus)"] == "-"  # older results are without what it is made of
    assert row["updates to converge"] == "100" and row["violation"] == "-0.010" and row["distinct paths"] == "7"
    assert grid["dense"]["R-L"] == "31.00" and grid["dense"]["R-L - dense"] == ""
    assert list(skipped) == ["tolerance-0.25"] and list(skipped["tolerance-0.25"].values())[1:] == [
        "10.0", "20.0", "25.0", "50.0", "12.5",
    ]  # fmt: skip


def test_the_brief_table_holds_the_cells_of_the_whole_one(tmp_path, capsys):
    rows = [
        result("dense", 1, 31.0, 1),
        result("tolerance-0.25", 1),
        result("static-0.79", 1, 29.0),
        failure("joint-budget-0.7", 1),
    ]
    write(tmp_path, *rows)
    (whole, _) = tables(show(tmp_path, capsys))
    assert main([str(tmp_path), "--tables", "brief"]) == 0
    (brief,) = tables(capsys.readouterr().out)
    assert set(brief) == {"tolerance-0.25", "static-0.79", "joint-budget-0.7"}
    for name, cells in brief.items():
        assert len(cells) == 7 and cells.items() <= whole[name].items()


def test_flops_of_the_corpus_are_a_ratio_of_sums(tmp_path, capsys):
    runs = [
        result("tolerance-0.25", seed, gflops_per_example=g, gflops_per_example_dense=4.0)
        for seed, g in ((1, 3), (2, 2))
    ]
    write(tmp_path, result("dense", 1, 31.0, 1), *runs)
    assert tables(show(tmp_path, capsys))[0]["tolerance-0.25"]["FLOPs (corpus)"] == "0.625"


def test_the_table_is_the_same_in_whatever_order_the_files_come(tmp_path, capsys):
    names = ["dense", "tolerance-0.02", "tolerance-0.1", "tolerance-0.25", "budget-0.5", "budget-0.8", "random-0.79"]
    runs = [result(name, seed, 25.0 + seed) for name in names for seed in (1, 2)] + [failure("static-0.79", 1)]
    shown = []
    for shuffle in range(3):
        folder = tmp_path / str(shuffle)
        folder.mkdir()
        write(folder, *random.Random(shuffle).sample(runs, len(runs)))
        shown.append(show(folder, capsys))
    assert shown[0] == shown[1] == shown[2]
    assert list(tables(shown[0])[0]) == [*names, "static-0.79"]


def test_numbers_in_names_sort_as_numbers():
    assert sorted(["samples-16", "samples-4", "budget-0.8", "budget-0.5", "dense"], key=row_order) == [
        "dense", "budget-0.5", "budget-0.8", "samples-4", "samples-16",
    ]  # fmt: skip


def test_a_failed_row_stays_in_the_table_with_its_reason(tmp_path, capsys):
    write(tmp_path, result("dense", 1, 31, 1), result("barrier", 1), failure("barrier", 2), failure("as-printed", 1))
    output = show(tmp_path, capsys)
    grid, skipped = tables(output)
    assert grid["barrier"]["seeds"] == "1; failed: 2" and grid["barrier"]["R-L"] == "30.00"
    assert grid["as-printed"]["seeds"] == "failed: 1" and grid["as-printed"]["FLOPs"] == "-"
    assert "- as-printed, seed 1: exit code 1: out of memory" in output
    assert "- barrier, seed 2: exit code 1: out of memory" in output and list(skipped) == ["barrier"]


BROKEN = [
    ("{", "0.json: cannot be read"),
    ("3", "0.json: found a JSON int"),
    ({**result("dense", 1), "row": "sparse"}, "row 'sparse' is none of dense, dense-plain-loss"),
    ({**result("dense", 1), "row": "budget-much"}, "row 'budget-much' is none of"),
    ({**result("dense", 1), "rougeL": "30"}, "'rougeL' is '30', expected int or float"),
    ({**result("dense", 1), "rougeL": True}, "'rougeL' is True"),
    ({**result("dense", 1), "seconds": math.nan}, "'seconds' is nan"),
    ({**result("dense", 1), "significant_loss": 0}, "'significant_loss' is 0, expected bool"),
    ({**result("dense", 1), "flops_generation": 0}, "'flops_generation' is 0, expected more than 0"),
    ({**result("dense", 1), "rougeL_interval": [1.0]}, "expected [low, high]"),
    ({**result("dense", 1), "rougeL_minus_dense": {"low": 1.0}}, "'rougeL_minus_dense' 'difference' is None"),
    ({**result("dense", 1), "skip_rates": {"token": "much"}}, "'skip_rates' 'token' is 'much'"),
    ({k: v for k, v in result("dense", 1).items() if k != "command"}, "no key 'command'"),
    ({"row": "dense", "failed": "x"}, "no key 'seed'"),
]


@pytest.mark.parametrize("broken, message", BROKEN)
def test_a_broken_file_is_named_in_one_line_and_no_table_is_printed(tmp_path, capsys, broken, message):
    write(tmp_path, broken, result("tolerance-0.25", 1))
    assert main([str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1 and not captured.out


@pytest.mark.parametrize("second", [result("tolerance-0.25", 1, 29.0), failure("tolerance-0.25", 1)])
def test_the_same_row_and_seed_twice_is_refused(tmp_path, capsys, second):
    write(tmp_path, result("tolerance-0.25", 1), second)
    assert main([str(tmp_path)]) == 1
    assert "1.json: row tolerance-0.25, seed 1 is also in" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["subset", "updates", "max_tokens", "data", "base"])
def test_rows_that_were_not_made_alike_are_refused(tmp_path, capsys, name):
    other = result("tolerance-0.25", 1, settings={**SETTINGS, name: "other"})
    write(tmp_path, result("dense", 1, 31, 1), other)
    assert main([str(tmp_path)]) == 1
    assert f"has {name} 'other'" in capsys.readouterr().err


def test_another_seed_may_start_from_another_base(tmp_path):
    write(tmp_path, result("dense", 1), result("dense", 2, settings={**SETTINGS, "base": "other"}))
    assert main([str(tmp_path)]) == 0


def test_a_folder_without_results_is_refused(tmp_path, capsys):
    for folder in (tmp_path, tmp_path / "missing"):
        assert main([str(folder)]) == 1
    assert "holds no results" in capsys.readouterr().err


def test_what_is_written_is_read_back_and_what_is_wrong_is_not_written(tmp_path):
    write_result(str(tmp_path / "new" / "a.json"), result("tolerance-0.25", 1))
    assert read_results(str(tmp_path / "new")) == [result("tolerance-0.25", 1)]
    with pytest.raises(ResultError):
        write_result(str(tmp_path / "new" / "b.json"), {"row": "tolerance-0.25", "seed": 1})
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.json"]


def test_the_picture_is_written_whole_or_not_at_all(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    write(
        tmp_path, result("dense", 1, 31, 1), result("budget-0.5", 1), result("budget-0.8", 1), failure("static-0.79", 1)
    )
    assert main([str(tmp_path), "--plot", str(tmp_path / "plot.png")]) == 0
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "folder.png").mkdir()
    assert main([str(tmp_path), "--plot", str(tmp_path / "folder.png")]) == 1
    assert "folder.png: cannot be written" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.part"))


def system(name, hypotheses, references, **changes):
    records = [make_record(identity, **changes) for identity in hypotheses]
    return System(name, GenerationOutput(hypotheses, references), records)


def test_a_row_is_measured_against_dense_on_the_same_examples():
    references = make_texts(60)
    dense = system("dense", spoil(references, 0.3), references, flops_generation=1000)
    for share, worse in ((0.3, False), (0.9, True)):
        row = system("barrier", spoil(references, share, seed=2), references)
        made = measure("barrier", 2, row, dense, "texts")
        scores = [document_scores(*texts(one), count_empty=True)["rougeL"].mean() for one in (row, dense)]
        assert made["rougeL_minus_dense"]["difference"] == pytest.approx(100 * (scores[0] - scores[1]))
        assert made["significant_loss"] is worse and made["flops_generation"] == pytest.approx(0.9)
        assert made["row"] == "barrier" and made["seed"] == 2 and "n:60" in made["signature"]
        by_example = 100 * document_scores(*texts(row), count_empty=True)["rougeL"]
        assert made["rougeL_by_example"] == pytest.approx(by_example.tolist(), abs=0.005)
    itself = measure("dense", 2, dense, dense, "texts")
    assert itself["dense_rougeL"] == itself["rougeL"] == made["dense_rougeL"] and not itself["significant_loss"]
    assert itself["rougeL_minus_dense"]["difference"] == 0
    with pytest.raises(ValueError, match="differ in 1 examples"):
        measure("barrier", 2, system("barrier", make_texts(59), make_texts(59)), dense, "texts")


def log_lines(*entries):
    """fairseq's lines with ``--log-format json``, values as strings."""
    lines = ["2024-01-01 | INFO | fairseq.trainer | begin training epoch 1"]
    for entry in entries:
        texts = {key: str(value) for key, value in entry.items()}
        lines.append("2024-01-01 | INFO | train_inner | " + json.dumps({"epoch": 1, "lr": "5e-4", **texts}))
    return "\n".join(lines) + "\n"


def test_a_log_is_read_by_update_and_a_repeated_update_counts_once(tmp_path):
    path = tmp_path / "train.log"
    first = log_lines({"num_updates": 10, "sd_violation": 1}, {"num_updates": 20, "sd_violation": 2})
    path.write_text(
        first + '2024 | INFO | train_inner | {"num_upd\n' + log_lines({"num_updates": 20, "sd_violation": 3})
    )
    log = read_training_log(str(path))
    assert [(one["num_updates"], one["sd_violation"]) for one in log] == [(10, 1), (20, 3)]
    with pytest.raises(ResultError):
        read_training_log(str(tmp_path / "missing"))


@pytest.mark.parametrize(
    "flops, converged",
    [
        ([0.9, 0.8, 0.705, 0.7, 0.7], 30),
        ([0.7, 0.7], 10),
        ([0.7, 0.9, 0.7], 30),  # near the end's value by chance, and away again
        ([0.9, 0.8, 0.7], 30),
        ([1.0] * 10 + [0.7, 0.71, 0.72] * 7, 110),  # batches of short and of long documents, one policy
        ([], None),
    ],
)
def test_convergence_is_the_first_update_after_which_flops_stay(flops, converged):
    log = [
        {"num_updates": 10.0 * (i + 1), "sd_flops_generation": value, "sd_multiplier": 0.3}
        for i, value in enumerate(flops)
    ]
    frozen = [{"num_updates": 1e3 + i, "sd_flops_generation": 0.1 * (i % 10)} for i in range(50)]  # other documents
    assert updates_to_converge(log) == updates_to_converge(log + frozen) == converged
    assert updates_to_converge(frozen) is None


def test_the_last_violation_is_that_of_the_last_fifty_updates_that_moved_the_policy():
    log = [{"num_updates": 10.0 * i, "sd_violation": 1.0 if i <= 5 else 0.1 * (i - 5)} for i in range(1, 11)]
    log += [{"num_updates": 10.0 * i, "sd_flops_generation": 0.7} for i in range(11, 30)]  # the policy is fixed
    assert violation_last(log) == pytest.approx((0.1 + 0.2 + 0.3 + 0.4 + 0.5) / 5)
    assert violation_last(log[10:]) is None


def checked(difference):
    return {
        "constraint": {"violation": {"difference": difference, "low": difference - 0.01, "high": difference + 0.01}}
    }


def test_the_deployed_violation_has_its_interval_or_the_seeds_lowest_and_highest(tmp_path, capsys):
    first = [result("dense", 1), result("barrier", 1), result("tolerance-0.4", 1, **checked(-0.02))]
    write(tmp_path, *first, *(result("tolerance-0.25", seed, **checked(0.01 * seed)) for seed in (1, 2, 3)))
    (grid, _) = tables(show(tmp_path, capsys))
    shown = {name: row["violation (deployed)"] for name, row in grid.items()}
    assert (
        shown["tolerance-0.25"] == "+0.020 (+0.010 to +0.030)" and shown["tolerance-0.4"] == "-0.020 [-0.030, -0.010]"
    )
    assert shown["dense"] == shown["barrier"] == "-"
    write(tmp_path, result("tolerance-0.25", 1, constraint={"violation": {"difference": 0.1, "low": 0.0}}))
    assert main([str(tmp_path)]) == 1
    assert "'constraint' 'violation' 'high' is None, expected int or float" in capsys.readouterr().err


def noise(tmp_path, **changes):
    figures = {"noise_to_signal": 2.0, "cosine": 0.5, "seconds": 1.5, **changes}
    names = ["reinmax", "leave-one-out-2", "score-function"]
    path = tmp_path / "noise"
    path.write_text(json.dumps({"estimators": [{"estimator": name, **figures} for name in names]}))
    return path


def test_an_estimators_noise_stands_beside_its_row(tmp_path, capsys):
    write(
        tmp_path,
        result("dense", 1),
        result("tolerance-0.25", 1, 30.0, 0.75, **checked(0.02)),
        failure("score-function", 1),
    )
    options = [str(tmp_path), "--tables", "estimators", "--noise", str(noise(tmp_path))]
    assert main(options) == 0
    (found,) = tables(capsys.readouterr().out)
    assert list(found) == ["reinmax", "leave-one-out-2", "score-function"]
    row = found["reinmax"]
    assert row["row"] == "tolerance-0.25" and row["FLOPs"] == "0.750" and row["R-L - dense"] == "-1.00"
    assert row["violation (deployed)"] == "+0.020 [+0.010, +0.030]"
    assert row["noise / signal"] == "2.00" and row["noise / signal x seconds"] == "3.00"
    assert found["leave-one-out-2"]["row"] == found["leave-one-out-2"]["FLOPs"] == ""
    assert found["score-function"]["row"] == "score-function" and found["score-function"]["FLOPs"] == ""
    for broken in ("none", noise(tmp_path, cosine=None), noise(tmp_path, seconds="fast")):
        assert main([*options[:-1], str(broken)]) == 1
        assert f"{broken}: not what gradient_noise writes" in capsys.readouterr().err


def compare(folder, capsys, reference):
    assert main([str(folder), "--against", reference]) == 0
    return tables(capsys.readouterr().out)[2]


def read_interval(text):
    return [float(number) for number in re.findall(r"[-+]\d+\.\d+", text)]


def test_rows_are_compared_pairwise_by_example_and_seed(tmp_path, capsys):
    generator = np.random.default_rng(1)
    base = [generator.uniform(0, 100, 1000).round(2).tolist() for _ in range(2)]
    better = [(np.array(one) + 2 + generator.normal(0, 8, 1000)).tolist() for one in base]
    for seed in (1, 2):
        (tmp_path / f"a{seed}.json").write_text(
            json.dumps(result("tolerance-0.25", seed, rougeL_by_example=base[seed - 1]))
        )
        row = result("static-0.79", seed, flops=0.75, rougeL_by_example=better[seed - 1])
        (tmp_path / f"b{seed}.json").write_text(json.dumps(row))
    (tmp_path / "c.json").write_text(json.dumps(result("barrier", 1)))  # an older result, without scores
    found = compare(tmp_path, capsys, "tolerance-0.25")
    assert set(found) == {"static-0.79"} and found["static-0.79"]["seeds"] == "1, 2"
    assert found["static-0.79"]["FLOPs - tolerance-0.25"] == "-0.050"
    each = [read_interval(text) for text in found["static-0.79"]["R-L - tolerance-0.25, each seed"].split(";")]
    for seed, (difference, low, high) in enumerate(each):
        differences = np.array(better[seed]) - base[seed]
        margin = 1.96 * differences.std() / 1000**0.5
        assert difference == pytest.approx(differences.mean(), abs=0.006)
        assert [low, high] == pytest.approx([differences.mean() - margin, differences.mean() + margin], abs=0.1)
    difference, low, high = read_interval(found["static-0.79"]["all seeds"])
    assert difference == pytest.approx(np.mean([each[0][0], each[1][0]]), abs=0.01)
    assert high - low < 0.85 * min(one[2] - one[1] for one in each)  # two seeds' noise is independent here
    backwards = read_interval(compare(tmp_path, capsys, "static-0.79")["tolerance-0.25"]["all seeds"])
    assert backwards == pytest.approx([-difference, -high, -low], abs=0.02)


def test_the_interval_beside_dense_is_that_of_the_comparison_with_dense(tmp_path, capsys):
    generator = np.random.default_rng(2)
    results = [result("barrier", 1, 30.5)]  # an older result, without scores
    for seed in (1, 2, 3):
        dense = generator.uniform(0, 100, 1000)
        results.append(result("dense", seed, flops=1.0, rougeL_by_example=dense.tolist()))
        changed = dense - 1 + generator.normal(0, 5, 1000)
        results.append(result("static-0.79", seed, rougeL_by_example=changed.tolist()))
    write(tmp_path, *results)
    assert main([str(tmp_path), "--against", "dense"]) == 0
    quality, _, compared = tables(capsys.readouterr().out)
    assert quality["static-0.79"]["R-L - dense"] == compared["static-0.79"]["all seeds"]
    assert len(read_interval(quality["static-0.79"]["R-L - dense"])) == 3
    assert quality["barrier"]["R-L - dense"] == "-0.50"


@pytest.mark.parametrize(
    "scores, message",
    [([1.0], "has 1 scores, expected 1000"), ("x", "is 'x', expected list"), ([True] * 1000, "is True, expected int")],
)
def test_broken_scores_by_example_are_named(tmp_path, capsys, scores, message):
    write(tmp_path, result("tolerance-0.25", 1, rougeL_by_example=scores))
    assert main([str(tmp_path)]) == 1
    assert message in capsys.readouterr().err


def test_a_row_that_cannot_be_compared_with_is_one_line(tmp_path, capsys):
    write(tmp_path, result("tolerance-0.25", 1), result("static-0.79", 1))
    assert main([str(tmp_path), "--against", "tolerance-0.25"]) == 1
    captured = capsys.readouterr()
    assert not captured.out and "--against tolerance-0.25: no such row with" in captured.err


def test_a_document_is_filled_with_what_the_command_prints_and_keeps_the_rest(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scores = [1.0] * 1000
    for name, seeds in (("one", (1, 2)), ("two", (3,))):
        (tmp_path / name).mkdir()
        pairs = [(row, seed) for row in ("tolerance-0.25", "static-0.79") for seed in seeds]
        write(tmp_path / name, *(result(row, seed, rougeL_by_example=scores) for row, seed in pairs))
    around = ["# Title\n\n| a | table |\n", "\n\ntext between\n", "\nthe end\n"]
    options = ["one --against tolerance-0.25", "two --tables skipped,quality"]
    blocks = [f"<!-- learning_table {words} -->\n{{}}<!-- /learning_table -->" for words in options]
    old = around[0] + blocks[0].format("") + around[1] + blocks[1].format("\nold\n| rows |\n") + around[2]
    (tmp_path / "README.md").write_text(old)
    assert main(["--fill", "README.md"]) == 0
    printed = []
    for words in options:
        capsys.readouterr()
        assert main(words.split()) == 0
        printed.append(blocks[len(printed)].format("\n" + capsys.readouterr().out + "\n"))
    assert len(tables(printed[0])) == 3 and "% skipped" in printed[1].splitlines()[2]
    filled = (tmp_path / "README.md").read_text()
    assert filled == around[0] + printed[0] + around[1] + printed[1] + around[2]
    assert main(["--fill", "README.md"]) == 0
    assert (tmp_path / "README.md").read_text() == filled


@pytest.mark.parametrize(
    "block, message",
    [
        ("no block", "expected lines <!-- learning_table FOLDER -->"),
        ("<!-- learning_table one -->", "in pairs"),
        ("<!-- learning_table one -->\n<!-- /learning_table -->\n<!-- /learning_table -->", "in pairs"),
        ("<!-- learning_table -->\n<!-- /learning_table -->", "in pairs"),
        (
            "<!-- learning_table one --colour red -->\n<!-- /learning_table -->",
            "--colour red -->: options that are none",
        ),
        ("<!-- learning_table 'one -->\n<!-- /learning_table -->", "'one -->: options that are none"),
        ("<!-- learning_table --fill one -->\n<!-- /learning_table -->", "expected a folder, and no --fill"),
        (
            "<!-- learning_table one --tables all -->\n<!-- /learning_table -->",
            "'all' is none of quality, skipped, compared",
        ),
        ("<!-- learning_table two -->\n<!-- /learning_table -->", "two: No such file"),
    ],
)
def test_a_document_that_cannot_be_filled_is_one_line_and_no_file_changes(
    tmp_path, capsys, monkeypatch, block, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one").mkdir()
    write(tmp_path / "one", result("tolerance-0.25", 1))
    good = "<!-- learning_table one -->\n<!-- /learning_table -->\n"
    (tmp_path / "good.md").write_text(good)
    (tmp_path / "bad.md").write_text(f"text\n{block}\n")
    assert main(["--fill", "good.md", "bad.md"]) == 1
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1 and not captured.out
    assert (tmp_path / "good.md").read_text() == good and (tmp_path / "bad.md").read_text() == f"text\n{block}\n"
    assert {path.name for path in tmp_path.iterdir()} == {"one", "good.md", "bad.md"}


@pytest.mark.parametrize("arguments", [[], ["results", "--fill", "README.md"]])
def test_a_folder_or_documents_are_expected(capsys, arguments):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2 and "expected a folder of results, or --fill and files" in capsys.readouterr().err


DOCUMENTS = [
    path
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    if "<!-- learning_table" in path.read_text()
]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_the_tables_in_the_documents_are_those_of_the_results(path, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    text = re.sub(r" --plot \S+", "", path.read_text())
    assert fill(text, path.name) == text


def test_no_two_families_look_alike_in_the_picture():
    looks = [choose_look(place) for place in range(len(FAMILIES))]
    assert len(set(looks)) == len(FAMILIES)
