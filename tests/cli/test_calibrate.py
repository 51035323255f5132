"""``sd-calibrate``: the setting that it chooses is the one that the written checkpoint decides with."""

import json
import shutil

import pytest
import torch

pytest.importorskip("scipy")


def run(data, *arguments, subset="train"):
    from sd_fairseq.commands.calibrate import main

    return main([str(argument) for argument in (data, "--gen-subset", subset, *arguments)])


@pytest.fixture(scope="module")
def mixed(pipeline, tmp_path_factory):
    """The pipeline's policy with logits between -6 and 6, so that a shift changes few decisions at a time."""
    state = torch.load(str(pipeline.switchable), weights_only=False)
    generator = torch.Generator().manual_seed(1)
    for name, size in (("heads.weight", 0.0), ("heads.bias", 6.0)):
        value = state["model"]["encoder.policy." + name]
        value.copy_(size * (2 * torch.rand(value.shape, generator=generator) - 1))
    path = tmp_path_factory.mktemp("calibrate") / "mixed.pt"
    torch.save(state, str(path))
    return path


@pytest.fixture(scope="module")
def calibrated(pipeline, mixed):
    """A calibration that many tests look at: the checkpoint that it wrote, and its report."""
    output, report = mixed.with_name("calibrated.pt"), mixed.with_name("report.json")
    assert run(pipeline.data, "--path", mixed, "--max-loss", 5, "--output", output, "--report", report) == 0
    return output, json.loads(report.read_text(encoding="utf-8"))


def flops(path, data):
    """FLOPs and loss of a checkpoint's own decisions, by another command."""
    from sd_fairseq.commands.check import main

    report = path.with_suffix(".check.json")
    command = [data, "--path", path, "--gen-subset", "train", "--examples", "0", "--tolerance", "0"]
    assert main([str(one) for one in (*command, "--output", report)]) == 0
    found = json.loads(report.read_text(encoding="utf-8"))
    return found["flops_generation"], found["violation"]["difference"]


@pytest.mark.parametrize("risk", ["nats", "rouge"])
def test_the_calibrated_checkpoint_costs_and_loses_what_the_report_says(pipeline, mixed, tmp_path, capsys, risk):
    before = mixed.read_bytes()
    output, report = tmp_path / "calibrated.pt", tmp_path / "report.json"
    options = ["--risk", risk, "--max-loss", {"nats": 0.5, "rouge": 90}[risk], "--max-len-b", 8]
    written = ["--output", output, "--report", report, "--check-subset", "test"]
    assert run(pipeline.data, "--path", mixed, *options, *written) == 0
    found = json.loads(report.read_text(encoding="utf-8"))
    (chosen,) = [one for one in found["settings"] if one["shift"] == found["chosen"]]
    share, loss = flops(output, pipeline.data)
    assert share == pytest.approx(chosen["flops_generation"], abs=1e-6) and share < 0.99
    if risk == "nats":
        assert loss == pytest.approx(chosen["loss"]["difference"], abs=1e-5)
    assert found["check"]["subset"] == "test" and "of the FLOPs" in capsys.readouterr().out
    assert mixed.read_bytes() == before
    assert chosen["p"] <= 0.025  # two sequences share the level


def test_both_sequences_fall_in_cost_one_from_the_trained_policy_and_one_from_the_dense_path(calibrated):
    trained, dense = ([one for one in calibrated[1]["settings"] if one["sequence"] == number] for number in (1, 2))
    for sequence in (trained, dense):
        shares = [one["flops_generation"] for one in sequence]
        assert shares == sorted(shares, reverse=True)
    assert trained[0]["shift"] == 0 and dense[0]["loss"]["difference"] == pytest.approx(0, abs=1e-6)
    assert dense[-1]["flops_generation"] >= trained[0]["flops_generation"]


def test_where_nothing_keeps_the_bound_nothing_is_written_but_the_report(pipeline, mixed, tmp_path, capsys):
    state = torch.load(str(mixed), weights_only=False)
    state["model"]["encoder.policy.heads.bias"].fill_(-50.0)  # beyond every shift
    broken = tmp_path / "broken.pt"
    torch.save(state, str(broken))
    output, report = tmp_path / "out.pt", tmp_path / "report.json"
    options = ["--max-loss", 1e-6, "--output", output, "--report", report]
    assert run(pipeline.data, "--path", broken, *options) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sd_fairseq: error: no shift is shown to lose at most 1e-06 nats a token")
    assert report.exists() and not output.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-loss", "0"], "--max-loss 0.0 is not positive"),
        (["--max-loss", "nan"], "--max-loss nan"),
        (["--max-loss", "1", "--confidence", "1"], "--confidence 1.0 is not in (0, 1)"),
        (["--max-loss", "1", "--test", "hoeffding-bentkus"], "needs a bounded loss"),
        (["--max-loss", "100", "--risk", "rouge"], "allows every loss"),
        (["--max-loss", "1", "--check-subset", "train"], "--check-subset train is the split that is calibrated on"),
        (["--max-loss", "1", "--output", "o.pt", "--model-overrides", '{"sd_x": 1}'], "would decide without them"),
    ],
)
def test_wrong_options_are_refused(pipeline, mixed, capsys, options, message):
    assert run(pipeline.data, "--path", mixed, *options) == 1
    assert message in capsys.readouterr().err


def test_only_a_trained_policy_is_calibrated_and_never_onto_itself(pipeline, mixed, tmp_path, capsys):
    dense = ["--model-overrides", '{"sd_policy": "dense"}']
    assert run(pipeline.data, "--path", mixed, "--max-loss", 1, *dense) == 1
    assert "found no policy" in capsys.readouterr().err
    copy = tmp_path / "copy.pt"
    shutil.copy(str(mixed), str(copy))
    assert run(pipeline.data, "--path", copy, "--max-loss", 1, "--output", copy) == 1
    assert "the same file as the input" in capsys.readouterr().err
    assert run(pipeline.data, "--path", pipeline.base, "--max-loss", 1) == 1
    assert "holds no policy" in capsys.readouterr().err
    assert run(pipeline.data, "--path", mixed, "--max-loss", 1, subset="") == 1
    assert "--gen-subset: found none" in capsys.readouterr().err


def test_the_copy_is_read_as_the_checkpoint_is(mixed, calibrated):
    from sd_fairseq.plugin.guards.checkpoint_structure import stored_options

    assert stored_options(str(calibrated[0])) == stored_options(str(mixed)) != {}


def test_thirteen_pairs_show_nothing_but_that_the_dense_path_is_dense(pipeline, mixed, tmp_path):
    report = tmp_path / "report.json"
    assert run(pipeline.data, "--path", mixed, "--max-loss", 5, "--report", report, subset="valid") == 0
    found = json.loads(report.read_text(encoding="utf-8"))
    assert {one["p"] for one in found["settings"]} == {0.0, 1.0} and found["flops_generation"] > 0.99


def test_the_loss_counts_from_the_references_dense_path(pipeline, mixed, calibrated, tmp_path):
    reports = [calibrated[1]]
    for reference in (pipeline.base, mixed):
        report = tmp_path / f"{len(reports)}.json"
        run(pipeline.data, "--path", mixed, "--max-loss", 5, "--report", report, "--reference", reference)
        reports.append(json.loads(report.read_text(encoding="utf-8")))
    own, base, same = ([one["loss"]["difference"] for one in report["settings"]] for report in reports)
    moved = {round(one - other, 4) for one, other in zip(own, base)}
    assert own == pytest.approx(same, abs=1e-6) and len(moved) == 1 and moved != {0.0}
    assert all(one["p"] > 0 for one in reports[1]["settings"])  # a dense path of other weights may lose
