"""Tables and pictures of rivals, of rows that are made up from recorded ones."""

import json
from pathlib import Path

import draw_rivals
import pytest
import rival_tables

RESULTS = Path(__file__).resolve().parents[2] / "results"
WORKS = {"batched": True, "beams": False, "exact_caches": True}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Results with three rivals, whose scores are those of other rows."""
    trained = tmp_path / "debian" / "trained"
    trained.mkdir(parents=True)
    names = ("dense", "dense-trained-on", "recommended", "tolerance-0.25", "random-0.7")
    for path in (one for name in names for one in (RESULTS / "debian" / "trained").glob(name + "-[12].json")):
        (trained / path.name).write_bytes(path.read_bytes())
    (tmp_path / "rivals").mkdir()
    for name, source, shares in (
        ("calm-0.7", "static-0.7", [1.0, 0.5, 0.25]),
        ("student-6-2", "random-0.7", None),
        ("lead-1", "dense", None),
        ("dense-beam-1", "dense", None),
        ("free-0.7", "static-0.7", [1.0, 0.4, 0.4]),
    ):
        result = json.loads((RESULTS / "debian" / "trained" / f"{source}-1.json").read_text(encoding="utf-8"))
        result.update(row=name, layer_shares=shares, works=WORKS, tuning={})
        if name in ("free-0.7", "dense-beam-1"):
            result["signature"] = result["signature"].replace("|beam:4|", "|beam:1|")
        if name == "lead-1":
            result.update(flops_generation=0, flops_paper=0)
        if shares:
            result["tuning"] = {"rule:calm:0.7": {"tried": [], "chosen": "calm:threshold=0.4"}}
        (tmp_path / "rivals" / f"{name}-1.json").write_text(json.dumps(result), encoding="utf-8")
    (tmp_path / "rivals" / "uls-0.7-1.json").write_text(json.dumps({"row": "uls-0.7", "seed": 1, "failed": "no"}))

    def timed(ratio):
        return {"median": 8 / ratio, "megabytes": 500, "times_as_fast": {"ratio": ratio, "spread": [ratio, ratio + 1]}}

    rows = {"dense-1": timed(1), "calm-0.7-1": timed(2), "student-6-2-1": timed(4)}
    (tmp_path / "times.json").write_text(json.dumps({"batches": {"1": rows, "16": rows}}))
    read_rows, read_times = rival_tables.read_rows, rival_tables.read_times
    for module in (rival_tables, draw_rivals):
        monkeypatch.setattr(module, "read_rows", lambda: read_rows(tmp_path))
        monkeypatch.setattr(module, "read_times", lambda: read_times(tmp_path / "times.json"))
    return tmp_path


def table(name):
    header, *lines = getattr(rival_tables, name)()
    assert len(header) <= 6 and all(len(line) == len(header) for line in lines)
    return {line[0].strip("`"): dict(zip(header[1:], line[1:])) for line in lines}


def test_rivals_stand_beside_our_rows_of_the_same_seeds(folder):
    lines = table("quality")
    assert {"dense", "recommended", "calm-0.7", "student-6-2", "lead-1"} <= set(lines) and "uls-0.7" not in lines
    calm = lines["calm-0.7"]
    assert calm["seeds"] == "1" and calm["FLOPs"] == "0.703"  # of all documents, not the mean of their shares
    assert calm["minus its counterpart"].endswith("(`recommended`)")
    assert lines["recommended"]["minus its counterpart"] == "" == lines["lead-1"]["minus its counterpart"]
    assert lines["free-0.7"]["minus its counterpart"].endswith("(`dense-beam-1`)")
    assert lines["dense-beam-1"]["minus its counterpart"] == ""
    assert lines["lead-1"]["FLOPs"] == "0.000" and lines["dense"]["FLOPs"] == "1.000"


def test_what_a_method_needs_is_told_of_rivals_only(folder):
    lines = table("methods")
    assert set(lines) == {"calm-0.7", "student-6-2", "lead-1", "dense-beam-1", "free-0.7"}
    assert lines["calm-0.7"]["beams"] == "no" and lines["calm-0.7"]["batches"] == "yes"
    assert lines["calm-0.7"]["% of tokens, by decoder layer"] == "100 50 25"
    assert lines["calm-0.7"]["chosen on `valid`"] == "`calm:threshold=0.4`"


def test_seconds_are_those_that_were_measured(folder):
    lines = table("speed")
    assert lines["calm-0.7"]["batch 1, s"] == "4.0" and lines["student-6-2"]["MB"] == "500"
    assert lines["calm-0.7"]["times as fast"] == "2.00 (2.00 to 3.00)" and lines["dense"]["times as fast"] == ""


def test_pictures_hold_at_most_four_series_and_only_what_is_there(folder, tmp_path):
    pytest.importorskip("matplotlib")
    assert len(draw_rivals.SERIES) == 4
    assert draw_rivals.series_of("student-6-2") == "smaller or rounded" and draw_rivals.series_of("lead-1") is None
    assert draw_rivals.main([str(tmp_path)]) == 0
    assert all((tmp_path / f"rivals_{name}.png").stat().st_size > 1000 for name in ("flops", "seconds"))
    assert draw_rivals.draw(str(tmp_path / "none.png"), lambda name: None, "") == 0
    assert not (tmp_path / "none.png").exists() and draw_rivals.main([]) == 2


def test_every_series_holds_families_that_exist():
    from row_names import FAMILIES

    assert all(family in FAMILIES for families, _ in draw_rivals.SERIES.values() for family in families)


def test_without_measured_seconds_the_table_is_empty(monkeypatch, tmp_path):
    read = rival_tables.read_times
    monkeypatch.setattr(rival_tables, "read_times", lambda: read(tmp_path / "none.json"))
    assert len(list(rival_tables.speed())) == 1
