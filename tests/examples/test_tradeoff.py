"""The trade-off grid: rows that differ in nothing but their options, and the whole grid on a tiny model."""

import argparse
import gzip
import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from warm import python

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "examples" / "tradeoff"
PAIRS = ROOT / "examples" / "data" / "debian"


def call(*command, **options):
    """Runs a command; returns the finished process."""
    return subprocess.run(
        [*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, **options
    )


@pytest.fixture(scope="module")
def tools():
    """The scripts as modules, by name."""
    sys.path.insert(0, str(FOLDER))
    names = ("recipe", "steps", "grid", "run", "timing")
    try:
        yield {name: importlib.import_module(name) for name in names}
    finally:
        sys.path.remove(str(FOLDER))
        for name in names:  # their names are common ones
            sys.modules.pop(name, None)


def settings(tools, **changes):
    recipe = tools["recipe"]
    base = {name: 2 for name in (*recipe.SIZES, "max_source_positions", "max_target_positions")}
    size, length = recipe.size_options(argparse.Namespace(**base), base)
    values = {
        "updates": 600,
        "max_tokens": 3072,
        "training": (),
        "policy": (),
        "device": ("--cpu",),
        "generation": ("--cpu",),
        "size": size,
        "length": length,
    }
    return recipe.Settings(**{**values, **changes})


def test_every_row_is_one_of_the_tables_and_its_options_are_real(tools):
    pytest.importorskip("fairseq")
    from fairseq import options

    from sd_fairseq.plugin.criterions.options import check_options, multiplier_rule
    from sd_fairseq.plugin.guards.preflight import typed_options
    from sd_fairseq.plugin.guards.presets import Run, check_effects, fill_criterion

    recipe = tools["recipe"]
    rows = recipe.read_rows(str(FOLDER / "rows.tsv"))
    path = "encoder_attention=110,token_strategy=last:20"
    values = {"keep": "0.7", "seed": "2", "static-path": path, "start-path": path}
    values.update(
        {"keep:0.703": "0.6", "static-path:0.703": path, "fitted:0.78": "f.pt", "fitted:0.7": "f.pt"}
    )
    shared = {}
    for name, row in rows.items():
        if row.weights:
            continue
        command = recipe.train_command(row, 2, settings(tools), values)[3:]
        command = [str(ROOT / "sd_fairseq") if word == "sd_fairseq" else word for word in command]
        args = options.parse_args_and_arch(options.get_training_parser(), command)
        if row.has_policy:
            check_effects(typed_options(command))  # every option that is given has an effect
            fill_criterion(args, Run.of(args))
            check_options(args)
            multiplier_rule(args)
        found = {key: value for key, value in vars(args).items() if not key.startswith("sd_")}
        start = "f.pt" if name.startswith("fitted") else "$BASE"
        assert found.pop("finetune_from_model") == start, name
        for key in ("arch", "criterion", "save_dir"):
            found.pop(key)
        for key, value in found.items():
            assert shared.setdefault(key, value) == value, f"{name} differs from the other rows in {key}"
    assert shared["max_update"] == 600 and shared["seed"] == 2


def test_paths_are_searched_and_started_in_the_space_of_the_rows(tools):
    recipe = tools["recipe"]
    rows = recipe.read_rows(str(FOLDER / "rows.tsv"))
    more = ("--sd-space", "encoder,token", "--sd-alpha", "2")
    command = recipe.search_command(settings(tools, policy=more), "$OUT/frontier.json", 10, 0.6, "examples")
    assert command[command.index("--sample") + 1] == "examples"
    assert command[command.index("--lowest") + 1] == "0.6" and command[command.index("--examples") + 1] == "10"
    assert json.loads(command[command.index("--model-overrides") + 1]) == {"sd_space": "encoder,token"}
    assert rows["tolerance-0.25"].parts(()) == ["encoder", "decoder"]
    assert rows["tolerance-0.25"].parts(more) == ["encoder", "token"]
    assert rows["token-only"].parts(more) == ["token"]


def test_a_policy_is_fitted_in_the_space_of_the_rows(tools):
    recipe = tools["recipe"]
    command = recipe.fit_command(settings(tools, policy=("--sd-space", "token")), "0.7", "$OUT/fit-0.7/policy", 10)
    assert json.loads(command[command.index("--model-overrides") + 1]) == {"sd_space": "token"}
    assert command[command.index("--flops") + 1] == "0.7" and command[command.index("--search-examples") + 1] == "10"
    assert command[command.index("--output") + 1] == "$OUT/fit-0.7/policy.pt"
    from sd_fairseq.commands.fit import build_parser
    from sd_fairseq.study import policy_fit

    words = [word.replace("$OUT/fit-0.7/", "") for word in command[3:]]
    policy_fit.check_arguments(build_parser().parse_args(words))  # the command takes them


@pytest.mark.parametrize(
    "line, message",
    [
        ("budgets-0.5\t\t", "row 'budgets-0.5' is none of"),
        ("tolerance-0.25\t\t", "row 'tolerance-0.25' stands twice"),
        (
            "static\t--sd-static-path {path}\t",
            "{path} is none of {keep}, {seed}, {static-path}, {start-path}, {fitted}",
        ),
        ("static\t\t--finetune-from-model {fitted:barrier}", "{fitted:barrier}: expected {fitted:FLOPs}"),
        ("static\t\t--finetune-from-model {fitted}", "{fitted}: expected {fitted:FLOPs}, such as {fitted:0.7}"),
        ("static\t--sd-random-keep {keep:barrier}\t", "FLOPs of 'barrier', which is no trained row above"),
        (
            "static\t--sd-random-keep {keep:dense-trained-on}\t",
            "FLOPs of 'dense-trained-on', which is no trained row above",
        ),
        ("static\t--sd-random-seed {seed:barrier}\t", "{seed:barrier} is none of"),
        ("random-deployed\t--sd-policy random\t\tbarrier", "weights of 'barrier', which is no trained row above"),
        ("barrier\t\t\t\t--beam 1\tdense", "6 columns"),
        ("barrier\t--sd-policy 'random\t", "No closing quotation"),
    ],
)
def test_a_row_that_cannot_be_made_is_named(tools, tmp_path, line, message):
    table = tmp_path / "rows.tsv"
    table.write_text(f"dense\t\t--criterion c\ntolerance-0.25\n{line}\n")
    with pytest.raises(tools["recipe"].RecipeError) as caught:
        tools["recipe"].read_rows(str(table))
    assert str(caught.value).startswith(f"{table}:3: ") and message in str(caught.value)


@pytest.mark.parametrize(
    "lines, message",
    [
        (["dense\t\t\tbase", "barrier"], None),
        (["tolerance-0.25", "barrier"], "no row 'dense'"),
        (
            ["dense\t\t\tbase", "static\t--sd-static-path {static-path}"],
            "FLOPs of 'tolerance-0.25', which is no trained row above",
        ),
    ],
)
def test_a_table_needs_the_rows_that_others_are_compared_and_matched_with(tools, tmp_path, lines, message):
    table = tmp_path / "rows.tsv"
    table.write_text("\n".join(lines))
    if message is None:
        assert list(tools["recipe"].read_rows(str(table))) == [line.split("\t")[0] for line in lines]
        return
    with pytest.raises(tools["recipe"].RecipeError, match=message):
        tools["recipe"].read_rows(str(table))


@pytest.fixture(scope="module")
def made(tools, tmp_path_factory):
    """A tiny base by base.sh and a grid of four rows, one of which cannot be trained."""
    pytest.importorskip("fairseq")
    from cli.conftest import ENVIRONMENT, binarise

    folder = tmp_path_factory.mktemp("tradeoff")
    with gzip.open(str(PAIRS / "valid.jsonl.gz"), "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines][:60]
    words = [(" ".join(row["document"].split()[:40]), " ".join(row["summary"].split())) for row in rows]
    data = binarise(folder / "texts", {"train": words[:30], "valid": words[30:40], "test": words[40:]})
    (folder / "prepared").mkdir()
    for name in ("data-bin", "lead-bin", "span-bin"):
        shutil.copytree(str(data), str(folder / "prepared" / name))
    small = {"DIM": 16, "FFN": 32, "LAYERS": 2, "HEADS": 2, "SOURCE_TOKENS": 48}
    small.update({name + "_UPDATES": 1 for name in ("WARM", "SPAN", "BASE", "ROBUST")})
    environment = {**ENVIRONMENT, "PYTHON": python(), "THREADS": "1", **{k: str(v) for k, v in small.items()}}

    def base(**changes):
        script = ["bash", FOLDER / "base.sh", folder / "prepared", folder / "start"]
        return call(*script, env={**environment, **changes})

    first = base()
    assert first.returncode == 0, first.stdout[-2000:] + first.stderr[-2000:]
    table = folder / "rows.tsv"
    text = (FOLDER / "rows.tsv").read_text()
    text = text.replace(
        "{keep} --sd-random-seed {seed}\t\ttolerance-0.25",
        "{keep:tolerance-0.25} --sd-random-seed {seed}\t\ttolerance-0.25",
    )
    assert "{keep:tolerance-0.25}" in text
    table.write_text(text + "budget-2\t\t--sd-mode budget --sd-flops-budget 2\n")
    arguments = ["--data", folder / "prepared" / "data-bin", "--base", folder / "start" / "base.pt"]
    arguments += ["--out", folder / "out", "--results", folder / "results", "--seeds", "3", "--updates", "5"]
    arguments += ["--subset", "valid", "--rows", "budget-2,tolerance-0.25,random-deployed", "--table", table]
    arguments += ["--search-examples", "10", "--training-options", "--log-interval 1"]
    arguments = list(map(str, arguments))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", python())
        code = tools["run"].main(arguments)
    return {"folder": folder, "arguments": arguments, "code": code, "base": base}


@pytest.mark.parametrize("positions", [0, 70])
def test_a_slim_base_starts_a_row_as_the_base_does(made, tmp_path, positions):
    torch = pytest.importorskip("torch")
    base = made["folder"] / "start" / "base" / "checkpoint_best.pt"
    longer = ["--max-source-positions", positions, "--max-target-positions", positions]
    process = call(python(), FOLDER / "slim.py", base, tmp_path / "s.pt", *longer)
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "s.pt").stat().st_size < 0.5 * base.stat().st_size
    before, after = (torch.load(str(path), weights_only=False) for path in (base, tmp_path / "s.pt"))
    for name, value in before["model"].items():
        found = after["model"][name]
        assert torch.equal(found[: len(value)] if value.dim() else found, value.half()), name
    places = [str(made["folder"]), str(ROOT)]
    assert any(place in str(before["cfg"]) for place in places)
    assert not any(place in str(after["cfg"]) for place in places)
    for stack, side in (("encoder", "source"), ("decoder", "target")):
        weight = stack + ".embed_positions.weight"
        grown = positions - before["cfg"]["task"]["max_{}_positions".format(side)] if positions else 0
        assert after["model"][weight].size(0) == before["model"][weight].size(0) + grown
    arguments = dict(zip(made["arguments"][::2], made["arguments"][1::2]))
    arguments.update({"--base": tmp_path / "s.pt", "--out": tmp_path / "out", "--results": tmp_path / "results"})
    arguments["--rows"] = "dense"
    command = [python(), FOLDER / "run.py", *(word for pair in arguments.items() for word in pair)]
    process = call(*command)
    assert process.returncode == 0, process.stdout + process.stderr
    (result,) = results_of(tmp_path).values()
    assert "--max-source-positions {}".format(positions or 48) in result["command"][0]
    assert not positions or "--max-target-positions {}".format(positions) in result["command"][0]


def test_a_slim_base_cannot_lose_positions(made, tmp_path):
    base = made["folder"] / "start" / "base" / "checkpoint_best.pt"
    process = call(python(), FOLDER / "slim.py", base, tmp_path / "s.pt", "--max-source-positions", 20)
    assert process.returncode == 1 and process.stderr.count("\n") == 1
    assert "it has 48 source positions, 20 wanted" in process.stderr and not (tmp_path / "s.pt").exists()


def generations(result):
    return [command for command in result["command"] if " fairseq_cli.generate " in command]


def results_of(folder):
    return {path.stem: json.loads(path.read_text()) for path in sorted((folder / "results").glob("*"))}


def test_the_grid_makes_every_row_and_a_failure_neither_stops_it_nor_is_lost(made):
    results = results_of(made["folder"])
    assert made["code"] == 1
    assert set(results) == {"dense-3", "budget-2-3", "tolerance-0.25-3", "random-deployed-3"}
    assert "--sd-flops-budget 2.0 is not in (0, 1]" in results["budget-2-3"]["failed"]
    dense, default, deployed = (results[f"{name}-3"] for name in ("dense", "tolerance-0.25", "random-deployed"))
    assert dense["flops_generation"] == 1 and default["flops_generation"] < 0.99
    assert any("--sd-initial-path encoder_attention==" in command for command in default["command"])
    assert default["dense_rougeL"] == deployed["dense_rougeL"] == dense["rougeL"]
    difference = default["rougeL_minus_dense"]
    apart = default["rougeL"] - dense["rougeL"]  # of means over resamples
    assert difference["difference"] == pytest.approx(apart, abs=0.1)
    assert default["significant_loss"] == (difference["high"] < 0)
    assert default["updates_to_converge"] in range(1, 6) and default["violation_last"] is not None
    assert dense["violation_last"] is None and deployed["updates_to_converge"] is None
    constraint = default["constraint"]
    assert constraint["tolerance"] == 0.25 and constraint["examples"] >= 10 and constraint["flops_generation"] < 1
    assert constraint["violation"]["low"] <= constraint["violation"]["difference"] <= constraint["violation"]["high"]
    assert "constraint" not in dense and "constraint" not in deployed
    assert deployed["distinct_paths"] > 1


def test_no_result_tells_of_this_machine_and_every_command_is_there(made):
    for name, result in results_of(made["folder"]).items():
        text = json.dumps(result)
        assert str(made["folder"]) not in text and str(ROOT) not in text, name
        if "failed" not in result:
            assert all(command.startswith("python -m ") for command in result["command"])
            assert generations(result)[-1].endswith("> $OUT/{row}-{seed}/valid.txt".format(**result))
            assert result["device"] == {"training": "CPU", "generation": "CPU"}
    assert not any("fairseq_cli.train" in command for command in results_of(made["folder"])["dense-3"]["command"])
    assert "--path $BASE " in results_of(made["folder"])["dense-3"]["command"][-1]
    deployed = results_of(made["folder"])["random-deployed-3"]["command"]
    trained = [command for command in deployed if "fairseq_cli.train" in command]
    assert not any("$OUT/random-deployed-3" in command for command in trained)
    assert "--path $OUT/tolerance-0.25-3/checkpoint_last.pt" in deployed[-1]


def test_a_second_call_makes_only_what_failed(made, tools, monkeypatch):
    before = results_of(made["folder"])
    ran = []

    def count(words, log, output, updates, **options):
        ran.append(words[words.index("--save-dir") + 1])
        raise tools["steps"].StepError("stopped")

    monkeypatch.setattr(tools["grid"], "run_command", count)
    assert tools["run"].main(made["arguments"]) == 1
    assert [Path(folder).name for folder in ran] == ["budget-2-3"]
    after = results_of(made["folder"])
    changed = [name for name in before if before[name] != after[name]]
    assert changed == ["budget-2-3"] and after["budget-2-3"]["failed"].endswith("stopped")
    base = made["base"]()
    assert base.returncode == 0 and base.stdout.count("finished before") == 4
    other = made["base"](BASE_UPDATES="7")
    assert other.returncode == 1 and "was trained otherwise (1 updates" in other.stderr


@pytest.mark.parametrize("place", ["--results", "--out"])
def test_what_was_made_with_other_settings_is_refused_not_reused(made, tools, tmp_path, capsys, place):
    arguments = [*made["arguments"], "--updates", "6", "--rows", "tolerance-0.25"]
    if place == "--out":  # the weights are there, the results are not
        arguments += ["--results", str(tmp_path / "elsewhere")]
    before = results_of(made["folder"])
    assert tools["run"].main(arguments) == 2
    error = capsys.readouterr().err
    assert "with updates 5, now 6" in error and place in error and error.count("\n") == 1
    assert results_of(made["folder"]) == before
    assert {path.name for path in tmp_path.glob("elsewhere/*")} <= {"dense-3.json"}  # the base as it is, never trained


def test_what_many_rows_need_fails_once_and_each_of_them_says_so(made, tools, tmp_path, monkeypatch):
    ran = []

    def fail(words, *_, **__):
        ran.append(words)
        raise tools["steps"].StepError("no room")

    monkeypatch.setattr(tools["grid"], "run_command", fail)
    elsewhere = ["--out", str(tmp_path / "out"), "--results", str(tmp_path / "results")]
    assert tools["run"].main([*made["arguments"], *elsewhere, "--rows", "tolerance-0.25,barrier"]) == 1
    assert len(ran) == 1  # dense, which the others are compared with
    failed = {path.stem: json.loads(path.read_text())["failed"] for path in (tmp_path / "results").glob("*.json")}
    assert set(failed) == {"dense-3", "tolerance-0.25-3", "barrier-3"}
    assert set(failed.values()) == {"$OUT/dense-3/valid: no room"}


def test_the_table_of_the_grid_shows_every_row(made, tmp_path, capsys):
    from learning_table import main

    pytest.importorskip("matplotlib")
    assert main([str(made["folder"] / "results"), "--plot", str(tmp_path / "plot.png")]) == 0
    output = capsys.readouterr().out
    rows = [line.split("|")[1].strip() for line in output.splitlines() if line.startswith("|")]
    assert rows[:7] == ["row", rows[1], "dense", "tolerance-0.25", "budget-2", "random-deployed", "% skipped"]
    assert "- budget-2, seed 3: " in output and (tmp_path / "plot.png").stat().st_size > 1000


def test_where_policies_start_is_nothing_to_the_base_itself(made, tools):
    run = tools["run"]
    grid = run.build_grid(run.build_parser().parse_args([*map(str, made["arguments"]), "--start-flops", "0.65"]))
    settings = results_of(made["folder"])["dense-3"]["settings"]
    grid.inputs = {name: settings[name] for name in grid.inputs}  # another test has written the base's file anew
    assert grid.is_finished("dense", 3)
    with pytest.raises(tools["recipe"].RecipeError, match="start_flops"):
        grid.is_finished("tolerance-0.25", 3)


def test_a_row_says_what_trained_it_wherever_it_is_generated(made, tools):
    run = tools["run"]
    grid = run.build_grid(run.build_parser().parse_args([*map(str, made["arguments"])]))
    marker = made["folder"] / "out" / "tolerance-0.25-3" / "trained"
    before = marker.read_text()
    assert json.loads(before)["device"] == "CPU" and "torch" in json.loads(before)["versions"]
    try:
        marker.write_text('{"device": "a GPU", "versions": {"torch": "1"}}')
        for row in ("tolerance-0.25", "random-deployed"):  # the latter deploys the former's weights
            assert grid.find_training(grid.rows[row], 3) == ("a GPU", {"torch": "1"})
        assert grid.find_training(grid.rows["dense"], 3)[0] == "CPU"
        marker.write_text("true")  # by an earlier version
        assert grid.find_training(grid.rows["tolerance-0.25"], 3)[0] == "CPU"
    finally:
        marker.write_text(before)


def test_trained_rows_are_timed_in_turn_and_nothing_of_theirs_changes(made, tools, tmp_path, monkeypatch):
    timing = importlib.import_module("timing")
    order = []

    def run(words, *others, **options):
        order.append(words[words.index("--path") + 1])
        tools["steps"].run_command(words, *others, **options)

    monkeypatch.setattr(sys, "executable", python())
    monkeypatch.setattr(tools["grid"], "run_command", run)
    before = {path: path.stat().st_mtime_ns for path in (made["folder"] / "out").rglob("*") if path.name != "lock"}
    arguments = [
        *made["arguments"],
        "--rows",
        "tolerance-0.25",
        "--rounds",
        "2",
        "--output",
        str(tmp_path / "time.json"),
    ]
    assert timing.main(arguments) == 0
    assert len(order) == 4 and order[:2] == order[2:] and order[0] != order[1]
    found = json.loads((tmp_path / "time.json").read_text())
    assert set(found["seconds"]) == {"dense-3", "tolerance-0.25-3"} and found["device"] == "CPU"
    for name, values in found["seconds"].items():
        assert len(values) == 2 and sorted(values)[0] <= found["medians"][name] <= sorted(values)[1]
    ratio = found["medians"]["dense-3"] / found["medians"]["tolerance-0.25-3"]
    assert found["times_as_fast"] == {"dense-3": 1, "tolerance-0.25-3": pytest.approx(ratio, abs=0.001)}
    made_by = generations(results_of(made["folder"])["tolerance-0.25-3"])[-1]
    assert found["commands"]["tolerance-0.25-3"] == made_by and str(made["folder"]) not in json.dumps(found)
    after = {path: path.stat().st_mtime_ns for path in (made["folder"] / "out").rglob("*") if path.name != "lock"}
    assert after == before


def test_a_row_without_weights_is_not_timed(made, tools, tmp_path, capsys, monkeypatch):
    timing = importlib.import_module("timing")
    monkeypatch.setattr(tools["grid"], "run_command", lambda *_, **__: pytest.fail("something ran"))
    arguments = [*made["arguments"], "--rows", "barrier", "--output", str(tmp_path / "time.json")]
    monkeypatch.setattr(timing, "time_row", skip_dense(timing.time_row))
    assert timing.main(arguments) == 2
    assert "$OUT/barrier-3: no trained weights, run.py makes them" in capsys.readouterr().err
    assert not (tmp_path / "time.json").exists()
    assert timing.main([*arguments, "--output", str(tmp_path / "none" / "time.json")]) == 2
    assert "--output: no folder for" in capsys.readouterr().err


def skip_dense(time_row):
    return lambda grid, name, seed: 1.0 if name == "dense" else time_row(grid, name, seed)
