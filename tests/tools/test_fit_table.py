"""The table of policy_fit's reports."""

import json

import pytest
from fit_table import read_fits, render_fits
from learning_results import ResultError

REPORT = {
    **{"examples": 1000, "search_examples": 100, "paths": 24, "price": 1.0, "epoch": 3, "flops_generation": 0.7},
    **{"distinct_paths": 5, "nll_dense": 2.0, "nll_static": 2.4, "nll_policy": 2.38, "nll_oracle": 2.2},
    **{"gain_over_static": {"difference": 0.02, "low": 0.01, "high": 0.03}, "oracle_gap": 0.2},
    "static_flops_at_equal_loss": 0.715,
}


def write(folder, name, report):
    (folder / (name + ".json")).write_text(json.dumps(report), encoding="utf-8")


def test_every_report_is_a_line_and_the_share_is_of_what_skipping_costs(tmp_path):
    write(tmp_path, "b", REPORT)
    write(tmp_path, "a", {**REPORT, "nll_static": 2.0})  # skipping costs nothing: no share of it
    lines = render_fits(str(tmp_path)).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert [line[0] for line in cells] == ["a", "b"]
    assert "+0.0200 [+0.0100, +0.0300]" in cells[1] and "5.0%" in cells[1] and cells[0][9] == "-"
    assert "0.715" in cells[1] and cells[1][-2:] == ["-", "-"]
    assert len({len(line) for line in cells}) == 1


def test_what_a_rule_on_the_length_gains_stands_beside(tmp_path):
    ranges = {"difference": 0.01, "low": 0.0, "high": 0.02, "flops_static": 0.7, "flops_ranges": 0.69}
    write(tmp_path, "a", {**REPORT, "gain_of_length_ranges": ranges})
    assert "+0.0100 [+0.0000, +0.0200] (0.690)" in render_fits(str(tmp_path))


def test_what_was_held_out_stands_beside(tmp_path):
    held_out = {"examples": 90, "gain_over_static": {"difference": -0.01, "low": -0.02, "high": 0.0}}
    write(tmp_path, "a", {**REPORT, "held_out": held_out})
    cells = [cell.strip() for cell in render_fits(str(tmp_path)).splitlines()[2].strip("|").split("|")]
    assert cells[-2:] == ["90", "-0.0100 [-0.0200, +0.0000]"]


@pytest.mark.parametrize("name", ["examples", "nll_oracle", "gain_over_static", "flops_generation"])
def test_a_report_without_a_figure_is_named(tmp_path, name):
    write(tmp_path, "a", {key: value for key, value in REPORT.items() if key != name})
    with pytest.raises(ResultError, match="a.json: not what policy_fit writes.*" + name):
        read_fits(str(tmp_path))


def test_a_folder_without_reports_is_refused(tmp_path):
    with pytest.raises(ResultError, match="holds no report of policy_fit"):
        render_fits(str(tmp_path))
