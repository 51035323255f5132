"""The picture of time against FLOPs shows the rows of the sweep, all of its parts, and the diagonal."""

import argparse
import json
import sys

import pytest

pytest.importorskip("matplotlib")
import measure  # noqa: E402
import plot  # noqa: E402
import saving  # noqa: E402

RATES = (0.0, 0.5, 0.9)
SETTING = {"precision": "fp32", "source": 20, "beam": 2}


@pytest.fixture(scope="module")
def bench():
    args = argparse.Namespace(size="tiny", precision="fp32", source_length=20, beam=2, rounds=1, threads=1)
    return saving.Bench(args, 1)


@pytest.fixture
def rows(bench, monkeypatch):
    """A real sweep's rows, whose FLOPs are the path's; the times are made up."""
    monkeypatch.setattr(saving, "SWEEP", RATES)
    monkeypatch.setattr(saving, "STEPS", 2)
    return [{**row, **SETTING} for row in saving.sweep_rows(bench)]


def test_the_sweep_measures_each_part_at_each_rate(rows):
    assert {(row["part"], row["skip_rate"]) for row in rows} == {
        (part, rate) for part in ("encoder", "decoder", "generation") for rate in RATES
    }
    for part in plot.MARKERS:
        flops = [row["flops_ratio"] for row in rows if row["part"] == part]
        assert flops[0] == 1.0 and flops == sorted(flops, reverse=True) and len(set(flops)) == 3


def test_a_skipped_sublayer_costs_less_in_its_own_part_only(bench):
    dense = bench.decisions(saving.DENSE)
    encoder, decoder = dense.encoder_ffn.clone(), dense.decoder_ffn.clone()
    encoder[:, 1] = decoder[:, 1] = False
    for changed, part, other in (
        ({"encoder_ffn": encoder}, bench.encoder_flops, bench.decoder_flops),
        ({"decoder_ffn": decoder}, bench.decoder_flops, bench.encoder_flops),
    ):
        skipping = type(dense)(**{**vars(dense), **changed})
        assert 0 < part(skipping) < part(dense)
        assert other(skipping) == pytest.approx(other(dense), rel=1e-9)


def made_up(part, times):
    """Rows of one part: ``times`` by relative FLOPs."""
    row = {"case": plot.CASE, "part": part, **SETTING}
    return [{**row, "flops_ratio": x, "ratio": 1 / y, "spread": [0.9 / y, 1.1 / y]} for x, y in times.items()]


def test_the_picture_has_a_line_a_part_through_its_points_and_the_diagonal():
    times = {part: {1.0: 1.0, 0.3: 0.5 - 0.1 * place, 0.6: 0.7} for place, part in enumerate(plot.MARKERS)}
    figure = plot.draw([row for part in times for row in made_up(part, times[part])])
    axes = figure.axes[0]
    drawn = {container.get_label().split(",")[0]: container[0].get_xydata() for container in axes.containers}
    assert set(drawn) == {"encoder", "decoder", "generation"}
    for part, points in drawn.items():
        assert points.tolist() == [pytest.approx(point) for point in sorted(times[part].items())]
    diagonal = next(line for line in axes.lines if line.get_linestyle() == ":")
    assert diagonal.get_xydata().tolist() == [[0, 0], [1, 1]]


def test_the_command_writes_beside_and_refuses_what_is_no_sweep(tmp_path, monkeypatch):
    sweep = tmp_path / "sweep.json"
    measure.write(str(sweep), [{**row, "peer": "ours dense"} for row in made_up("encoder", {1.0: 1.0, 0.5: 0.6})])
    monkeypatch.setattr(sys, "argv", ["plot.py", str(sweep)])
    plot.main()
    picture = (tmp_path / "sweep.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and {path.name for path in tmp_path.iterdir()} == {"sweep.json", "sweep.png"}
    for text in ("[]", "{broken", json.dumps([{"case": "encoder-saving"}])):
        sweep.write_text(text, encoding="utf-8")
        with pytest.raises(SystemExit, match="^.*sweep.json: [^\n]*$"):
            plot.main()
        assert (tmp_path / "sweep.png").read_bytes() == picture
