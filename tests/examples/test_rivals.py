"""Rivals: how students are cut and rules are chosen, every row's options, and a small grid of all kinds of rows."""

import importlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pairs import read_pairs
from warm import python

pytest.importorskip("fairseq")

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "examples" / "rivals"
PLACES = [str(ROOT / "examples" / "tradeoff"), str(FOLDER)]
NAMES = ("recipe", "steps", "grid", "run", "tuning", "rival_grid", "shrink")
LAYERS = (3, 4)  # of the tiny base
SIZE = [
    *("--encoder-layers", str(LAYERS[0]), "--decoder-layers", str(LAYERS[1]), "--share-all-embeddings"),
    *("--encoder-embed-dim", "16", "--decoder-embed-dim", "16", "--encoder-ffn-embed-dim", "32"),
    *("--decoder-ffn-embed-dim", "32", "--encoder-attention-heads", "2", "--decoder-attention-heads", "2"),
]
DENSE = "--arch switchable_bart_tiny --sd-policy dense"
PLAIN = "--criterion label_smoothed_cross_entropy"
INT8 = "--sd-generation-precision int8"
PRUNED = "decoder_attention=100=,decoder_ffn=1001"
TABLE = f"""dense\t\t\tbase
hsd-0.7\t{DENSE}\t--criterion sd_exit_criterion --sd-exit-rule {{rule:hsd:0.7}}\t\t--sd-path {{rule:hsd:0.7}}
exits-free\t{DENSE}\t--criterion sd_exit_criterion --sd-exit-loss free --sd-distillation 0.9 --sd-teacher $BASE
free-0.7\t\t\texits-free\t--beam 1 --sd-path {{rule:free:0.7}}
student-3-2\t{DENSE} --decoder-layers 2\t{PLAIN} --finetune-from-model {{student:3-2}}\t\t{INT8}
layerdrop\t--arch bart_base --encoder-layerdrop 0.2 --decoder-layerdrop 0.2\t{PLAIN}
layerdrop-3-2\t--encoder-layerdrop 0 --decoder-layerdrop 0\t\tlayerdrop\t--sd-path {PRUNED}
lead-1\t\t\tbase
"""
ROWS = "hsd-0.7,free-0.7,student-3-2,layerdrop-3-2,lead-1"


@pytest.fixture(scope="module")
def tools():
    """The scripts as modules, by name; of the two called run and timing ours are ``rivals`` and ``rivals_timing``."""
    before = dict(sys.modules)
    sys.path[:0] = PLACES
    try:
        found = {name: importlib.import_module(name) for name in NAMES}
        for name in ("run", "timing"):
            found["rivals_" + name] = load(name)
        yield found
    finally:
        for place in PLACES:
            sys.path.remove(place)
        for name in set(sys.modules) - set(before):  # their names are common ones
            if str(ROOT / "examples") in str(getattr(sys.modules[name], "__file__", "")):
                sys.modules.pop(name)


def load(name):
    spec = importlib.util.spec_from_file_location("rivals_" + name, str(FOLDER / (name + ".py")))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "layers, kept, chosen",
    [
        (12, 6, [0, 2, 4, 7, 9, 11]),  # as published
        (12, 3, [0, 6, 11]),
        (6, 3, [0, 3, 5]),
        (6, 2, [0, 5]),
        (6, 6, [0, 1, 2, 3, 4, 5]),
        (4, 1, [0]),
    ],
)
def test_students_keep_evenly_spaced_layers(tools, layers, kept, chosen):
    assert tools["shrink"].choose_layers(layers, kept) == chosen


def test_a_rule_is_chosen_by_quality_near_the_target_and_by_flops_far_from_it(tools):
    def one(rule, flops, score):
        return {"rule": rule, "flops_generation": flops, "rougeL": score}

    choose = tools["tuning"].choose
    found = [one("a", 0.9, 50), one("b", 0.715, 20), one("c", 0.69, 30), one("d", 0.5, 40)]
    assert choose(found, 0.7)["rule"] == "c" and choose(found, 0.72)["rule"] == "b"
    assert choose(found, 0.8)["rule"] == "b" and choose(found, 0.3)["rule"] == "d"


def test_candidates_are_rules_and_those_of_deeper_decoders_are_left_out(tools):
    tuning = tools["tuning"]
    for name, (_, texts) in tuning.TUNED.items():
        assert tuning.candidates(name, 6) == list(texts), name
    assert "skipdecode:max=6,min=2,over=4" not in tuning.candidates("skipdecode", 4)
    with pytest.raises(ValueError, match="none of hsd, skipdecode"):
        tuning.candidates("slow", 6)
    with pytest.raises(ValueError, match="can have none"):
        tuning.candidates("hsd", 1)


def test_every_rows_options_are_real_and_rows_differ_in_their_own_only(tools):
    from fairseq import options

    from sd_fairseq.plugin.guards.preflight import typed_options
    from sd_fairseq.plugin.guards.presets import check_effects

    recipe = tools["recipe"]
    rows = recipe.read_rows(str(FOLDER / "rows.tsv"))
    sizes = {name: 6 for name in (*recipe.SIZES, "max_source_positions", "max_target_positions")}
    settings = recipe.Settings(600, 1536, (), (), ("--cpu",), ("--cpu",), *recipe.size_options(sizes, sizes))
    shared = {}
    for name, row in rows.items():
        values = {inside: "hsd:min=3" if kind == "rule" else "s.pt" for inside, (kind, _) in row.placeholders().items()}
        command, _ = recipe.generate_command(row, 1, "test", settings, values)
        options.parse_args_and_arch(options.get_generation_parser(), typed(command))
        if row.weights:
            continue
        command = recipe.train_command(row, 1, settings, values)
        args = options.parse_args_and_arch(options.get_training_parser(), typed(command))
        check_effects(typed_options(command))
        found = {key: value for key, value in vars(args).items() if not key.startswith("sd_")}
        own = ("arch", "criterion", "save_dir", "finetune_from_model", "encoder_layers", "decoder_layers")
        for key in (*own, "encoder_layerdrop", "decoder_layerdrop"):
            found.pop(key, None)
        for key, value in found.items():
            assert shared.setdefault(key, value) == value, f"{name} differs from the other rows in {key}"


def typed(command):
    return [str(ROOT / "sd_fairseq") if word == "sd_fairseq" else word for word in command[3:]]


@pytest.fixture(scope="module")
def made(tools, tmp_path_factory):
    """A tiny base and a grid of one row of every kind."""
    from cli.conftest import ENVIRONMENT, binarise, fairseq

    folder = tmp_path_factory.mktemp("rivals")
    words = [(" ".join(p["document"].split()[:30]), " ".join(p["summary"].split())) for p in read_pairs()[:44]]
    data = binarise(folder / "texts", {"train": words[:24], "valid": words[24:30], "test": words[30:]})
    task = ["--user-dir", ROOT / "sd_fairseq", "--task", "switchable_translation", "-s", "source", "-t", "target"]
    limits = ["--max-source-positions", "64", "--max-target-positions", "64", "--truncate-source"]
    training = ["--optimizer", "adam", "--lr", "1e-3", "--max-update", "2", "--max-tokens", "512", "--cpu"]
    base = ["--arch", "bart_base", "--criterion", "cross_entropy", *SIZE, "--save-dir", folder / "base"]
    fairseq("train", data, *task, *limits, *training, *base, "--disable-validation")
    (folder / "rows.tsv").write_text(TABLE)
    arguments = ["--data", data, "--base", folder / "base" / "checkpoint_last.pt", "--out", folder / "out"]
    arguments += ["--results", folder / "results", "--seeds", "3", "--updates", "2", "--table", folder / "rows.tsv"]
    arguments = [*map(str, arguments), "--rows", ROWS]
    few = {name: (needs, texts[: 1 + (name == "hsd")]) for name, (needs, texts) in tools["tuning"].TUNED.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", python())
        patch.setitem(ENVIRONMENT, "PYTHONWARNINGS", "ignore")
        for module in (tools["tuning"], tools["rival_grid"]):
            patch.setattr(module, "TUNED", few)
        code = tools["rivals_run"].main(arguments)
        yield {"folder": folder, "arguments": arguments, "code": code, "tools": tools}


def results_of(made):
    paths = sorted((made["folder"] / "results").glob("*.json"))
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}


def test_every_kind_of_row_is_made(made):
    results = results_of(made)
    assert made["code"] == 0, {name: one.get("failed") for name, one in results.items()}
    assert set(results) == {f"{name}-3" for name in ("dense", *ROWS.split(","))}
    for name, one in results.items():
        assert len(one["rouge1_by_example"]) == len(one["rouge2_by_example"]) == one["examples"] == 14, name
        assert str(made["folder"]) not in json.dumps(one) and str(ROOT) not in json.dumps(one)
        assert set(one["works"]) == {"batched", "beams", "exact_caches"}
    assert not results["free-0.7-3"]["works"]["beams"] and results["hsd-0.7-3"]["works"]["exact_caches"]


def test_students_cost_what_their_layers_cost_beside_the_base(made):
    """A student with two of four decoder layers costs what the base does along a path of two decoder layers."""
    results = results_of(made)
    student, pruned = results["student-3-2-3"], results["layerdrop-3-2-3"]
    assert student["flops_generation"] < 0.95 and pruned["flops_generation"] < 0.95
    assert student["flops_generation"] == pytest.approx(pruned["flops_generation"], abs=0.02)
    assert "--sd-generation-precision int8" in student["command"][-1]
    assert results["lead-1-3"]["flops_generation"] == 0 and results["dense-3"]["flops_generation"] == 1
    (command,) = [one for one in student["command"] if "shrink.py" in one]
    assert command.endswith("$BASE $OUT/students/3-2.pt --encoder-layers 3 --decoder-layers 2")
    path = made["folder"] / "out" / "students" / "3-2.pt"
    weights = torch.load(str(path), weights_only=False)["model"]
    base = torch.load(made["arguments"][3], weights_only=False)["model"]
    for kept, original in ((0, 0), (1, 3)):
        name = "decoder.layers.{}.fc1.weight"
        assert torch.equal(weights[name.format(kept)], base[name.format(original)])
    assert not any(name.startswith("decoder.layers.2") for name in weights)


def test_the_bases_flops_that_students_are_measured_by_are_those_of_its_traces(made):
    """The base's own records, taken for a student's, get the dense FLOPs that they have."""
    from dataclasses import replace

    run, grid_of = made["tools"]["run"], made["tools"]["rival_grid"].RivalGrid
    grid = run.build_grid(run.build_parser().parse_args(made["arguments"]), grid_of)
    records = grid.read("dense", 3, "test").records
    shorter = [replace(one, decoder_ffn="=="[:2], flops_generation_dense=1, flops_paper_dense=1) for one in records]
    for found, expected in zip(grid.measure_by_base(shorter), records):
        assert found.flops_generation_dense == expected.flops_generation_dense
        assert found.flops_paper_dense == expected.flops_paper_dense
    assert grid.measure_by_base(records) is records


def test_rules_are_tuned_on_valid_and_what_was_tried_is_told(made):
    results = results_of(made)
    for row, weights, tries, exits in (
        ("hsd-0.7-3", "$BASE", 2, ()),
        ("free-0.7-3", "$OUT/exits-free-3/", 1, ("--beam 1",)),
    ):
        ((inside, tuning),) = results[row]["tuning"].items()
        assert len(tuning["tried"]) == tries and tuning["chosen"] in {one["rule"] for one in tuning["tried"]}
        tried = [one for one in results[row]["command"] if " --gen-subset valid " in one]
        assert len(tried) == tries and all(f"--path {weights}" in one for one in tried)
        assert all(word in one for one in tried for word in exits)
        assert f"--sd-path {tuning['chosen']}" in results[row]["command"][-1], inside
        assert len(results[row]["layer_shares"]) == LAYERS[1]
    (trained,) = [one for one in results["hsd-0.7-3"]["command"] if "fairseq_cli.train" in one]
    assert "--sd-exit-rule " + results["hsd-0.7-3"]["tuning"]["rule:hsd:0.7"]["chosen"] in trained


def test_the_first_sentences_of_a_source_are_its_lead(made):
    from sd_fairseq.evaluation.report import System

    grid, run = made["tools"]["rival_grid"], made["tools"]["run"]
    read = run.build_grid(run.build_parser().parse_args(made["arguments"]), grid.RivalGrid).read
    dense = read("dense", 3, "test")
    sources = {identity: "One is. Two are! Three? Four 1.5 x." for identity in dense.output.ids}
    from dataclasses import replace

    system = System("dense", replace(dense.output, sources=sources), dense.records)
    texts = [grid.lead("lead-1", system, number).output.hypotheses[0] for number in (1, 3, 9)]
    assert texts == ["One is.", "One is. Two are! Three?", "One is. Two are! Three? Four 1.5 x."]


@pytest.mark.parametrize(
    "layers, said", [((3, 5), "5 of 4 layers cannot be kept"), ((0, 2), "0 of 3 layers cannot be kept")]
)
def test_a_student_that_cannot_be_is_refused_in_one_line(made, tmp_path, layers, said):
    command = [python(), FOLDER / "shrink.py", made["arguments"][3], tmp_path / "s.pt"]
    command += ["--encoder-layers", layers[0], "--decoder-layers", layers[1]]
    done = subprocess.run([*map(str, command)], stderr=subprocess.PIPE, universal_newlines=True)
    assert done.returncode == 1 and said in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "s.pt").exists()


def test_rows_are_timed_in_turn_at_both_batch_sizes(made, tools, tmp_path, monkeypatch):
    order = []

    def run(words, *others, **options):
        order.append((words[words.index("--path") + 1], words[-1]))
        tools["steps"].run_command(words, *others, **options)

    monkeypatch.setattr(tools["grid"], "run_command", run)
    arguments = [*made["arguments"], "--rows", "student-3-2,lead-1", "--rounds", "1", "--documents", "5"]
    assert tools["rivals_timing"].main([*arguments, "--output", str(tmp_path / "time.json")]) == 0
    assert [size for _, size in order] == ["1", "1", "16", "16"]
    assert [path == arguments[3] for path, _ in order] == [True, False, True, False], "in turn, dense first"
    found = json.loads((tmp_path / "time.json").read_text(encoding="utf-8"))
    assert found["documents"] == 5 and set(found["batches"]) == {"1", "16"}
    assert str(made["folder"]) not in json.dumps(found)
    for rows in found["batches"].values():
        assert set(rows) == {"dense-3", "student-3-2-3"}
        for one in rows.values():
            assert len(one["seconds"]) == 1 and 50 < one["megabytes"] < 5000 and one["beside"] == "dense-3"
            low, high = one["times_as_fast"]["spread"]
            assert low <= one["times_as_fast"]["ratio"] <= high
        assert rows["dense-3"]["times_as_fast"] == {"ratio": 1, "spread": [1, 1]}


def test_one_hypothesis_is_compared_with_one_hypothesis(tools):
    found = {"dense-1": [(4.0, 9.0)], "dense-beam-1-1": [(2.0, 8.0)], "free-0.7-1": [(1.0, 7.0)]}
    summary = tools["rivals_timing"].compare(found, ["dense-beam-1", "free-0.7"])
    assert summary["free-0.7-1"]["times_as_fast"]["ratio"] == 2 and summary["free-0.7-1"]["beside"] == "dense-beam-1-1"
    del found["dense-beam-1-1"]
    assert tools["rivals_timing"].compare(found, ["free-0.7"])["free-0.7-1"]["times_as_fast"]["ratio"] == 4


def test_what_is_not_made_is_not_timed(made, tools, tmp_path, capsys):
    output = ["--output", str(tmp_path / "t.json")]
    code = tools["rivals_timing"].main([*made["arguments"], "--seeds", "4", "--rows", "student-3-2", *output])
    error = capsys.readouterr().err
    assert code == 2 and "dense-4: not made yet" in error and error.count("\n") == 1
