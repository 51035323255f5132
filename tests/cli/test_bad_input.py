"""Bad input gets one clear line naming what was found, a non-zero exit, and leaves nothing half-written."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from traces import make_record

from sd_fairseq.decision.trace import to_json_line

BASE = ["--arch", "switchable_bart_tiny", "--criterion", "sd_policy_criterion", "--max-update", "1"]


def check_refused(finished, *needles):
    """Asserts one error line that holds all needles, and no traceback."""
    assert finished.returncode != 0
    errors = [line for line in finished.stderr.splitlines() if "error:" in line]
    assert len(errors) == 1, finished.stderr[-2000:]
    assert "Traceback" not in finished.stderr
    for needle in needles:
        assert needle in errors[0], errors[0]


def test_a_missing_restore_file(pipeline):
    finished = pipeline.train("missing", *BASE, "--restore-file", "no/such.pt", check=False)
    check_refused(finished, "no/such.pt", "no such file")
    assert not (pipeline.folder / "missing").exists()


def test_a_truncated_checkpoint(pipeline, tmp_path):
    cut = tmp_path / "cut.pt"
    cut.write_bytes(pipeline.base.read_bytes()[:20000])
    trace = tmp_path / "trace.jsonl"
    check_refused(pipeline.generate(cut, "--sd-trace", trace, check=False), "cut.pt", "truncated")
    assert not trace.exists()


def test_a_foreign_checkpoint(pipeline, tmp_path):
    foreign = tmp_path / "foreign.pt"
    torch.save({"state_dict": {"weight": torch.zeros(2)}}, str(foreign))
    check_refused(pipeline.generate(foreign, check=False), "foreign.pt", "state_dict")


def test_a_checkpoint_of_another_model(pipeline, tmp_path):
    state = torch.load(str(pipeline.base), weights_only=False)
    state["model"] = {"decoder.weight": torch.zeros(2)}
    other = tmp_path / "other.pt"
    torch.save(state, str(other))
    check_refused(pipeline.train("other", *BASE, "--restore-file", other, check=False), "decoder.weight", "BART")


def test_a_dictionary_that_does_not_match(pipeline, tmp_path):
    other = pipeline.binarise(tmp_path / "other", {"train": [("a b c", "a b")] * 4, "test": [("a b c", "a b")] * 4})
    check_refused(pipeline.generate(pipeline.switchable, check=False, data=other), "dictionary", "symbols")


@pytest.fixture(scope="session")
def foreign_data(pipeline, tmp_path_factory):
    """Binarised data of another dictionary."""
    return pipeline.binarise(tmp_path_factory.mktemp("foreign") / "x", {"train": [("a b c", "a b")] * 4})


@pytest.mark.parametrize("kind", ["base", "switchable"])
def test_a_teacher_of_another_dictionary(pipeline, foreign_data, tmp_path, kind):
    teacher = getattr(pipeline, kind)
    options = ["--sd-distillation", "0.5", "--sd-teacher", teacher, "--save-dir", tmp_path / "s"]
    arguments = [foreign_data, *pipeline.task, *pipeline.training, *BASE, *options]
    finished = pipeline.fairseq("train", *arguments, check=False)
    check_refused(finished, f"--sd-teacher {teacher}", "dictionary of", "symbols, the data's has")
    assert not (tmp_path / "s").exists() or not list((tmp_path / "s").iterdir())


@pytest.mark.parametrize("what", ["the checkpoint", "the data"])
def test_a_trace_over_an_input(pipeline, tmp_path, what):
    checkpoint, place = tmp_path / "c.pt", pipeline.data / "test.source-target.source.bin"
    checkpoint.write_bytes(pipeline.switchable.read_bytes())
    place = checkpoint if what == "the checkpoint" else place
    before = place.read_bytes()
    os.link(str(place), str(tmp_path / "link"))
    for name in (place, tmp_path / "link"):
        check_refused(pipeline.generate(checkpoint, "--sd-trace", name, check=False), "--sd-trace", "same file as")
    assert place.read_bytes() == before


COMMANDS = {  # of a checkpoint; what else they need
    "answer": "{squad} --path {path} --input {questions}",
    "classify": "{glue} --path {path} --input {table}",
    "match_random": "{data} --path {path} --trace {trace}",
    "export": "{path} {out} --path dense",
    "check": "{data} --path {path} --tolerance 1",
    "search_paths": "{data} --path {path}",
    "measure_noise": "{data} --path {path}",
    "fit": "{data} --path {path} --flops 0.7",
    "calibrate": "{data} --path {path} --gen-subset valid --max-loss 0.1",
}


def refuse(name, capsys, *needles, **places):
    """Runs an sd-* command in this process and asserts one error line that holds all needles."""
    words = [word.format(**places) for word in COMMANDS[name].split()]
    assert importlib.import_module("sd_fairseq.commands." + name).main(words) == 1
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if ": error: " in line]
    assert len(lines) == 1 and "Traceback" not in error, error
    for needle in needles:
        assert needle in lines[0], lines[0]


@pytest.fixture
def places(pipeline, tmp_path):
    """Small files that every command finds right."""
    found = {"data": pipeline.data, "path": pipeline.switchable, "glue": tmp_path / "glue"}
    found.update(squad=tmp_path / "squad", out=tmp_path / "OUT")
    found["squad"].mkdir()
    found["glue"].mkdir()
    for name in ("encoder.json", "vocab.bpe"):
        (found["squad"] / name).write_text("{}" if "json" in name else "#version")
    prepared = {"columns": ["a"], "labels": ["x", "y"], "label_column": "label", "bpe": "sentencepiece"}
    (tmp_path / "glue" / "prepared.json").write_text(json.dumps(prepared))
    for name, text in {
        "questions": '{"id": "1", "question": "what", "context": "a b c"}\n',
        "table": "a\tlabel\nhey\tx\n",
        "trace": to_json_line(make_record(0)) + "\n",
    }.items():
        found[name] = tmp_path / (name + {"questions": ".jsonl", "table": ".tsv", "trace": ".jsonl"}[name])
        found[name].write_text(text)
    return found


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("damage", ["cut", "text", "folder", "absent"])
def test_a_checkpoint_that_is_none_is_one_line_of_every_command(places, tmp_path, capsys, name, damage):
    path = tmp_path / "broken.pt"
    if damage == "cut":
        path.write_bytes(places["path"].read_bytes()[:20000])
    elif damage == "text":
        path.write_text("{}")
    elif damage == "folder":
        path.mkdir()
    refuse(name, capsys, "broken.pt", **{**places, "path": path})
    assert not (tmp_path / "OUT").exists()


WITHOUT_A_MODEL = {
    "explain_paths": "{trace} --pairs {questions}",
    "rouge": "{table} {trace}",
    "report": "--add x {trace} {table}",
    "squad_score": "{questions} {trace}",
    "encode": "{trace} {table} {out}",
    "options": "",
}
OUTPUTS = {
    "answer": ["--output", "--na-probs", "--n-best-output", "--decisions", "--summary"],
    "classify": ["--output", "--summary"],
    "check": ["--output"],
    "search_paths": ["--output"],
    "measure_noise": ["--output"],
    "fit": ["--output", "--report", "--table"],
    "explain_paths": ["--output", "--plot"],
    "rouge": ["-s"],
    "export": [""],
    "encode": [""],
    "calibrate": ["--output", "--report"],
    "import_weights": [],  # writes into a folder
    "report": [],  # its files' names are its own: see below
    "match_random": [],
    "squad_score": [],
    "options": [],
}


def typed(name, option, output):
    """The words of a command that writes ``output``."""
    words = {**COMMANDS, **WITHOUT_A_MODEL}[name]
    return words.replace("{out}", output) if option == "" else f"{words} {option} {output}"


def test_every_command_and_every_output_is_in_the_lists():
    folder = Path(__file__).resolve().parents[2] / "sd_fairseq" / "commands"
    names = sorted(path.stem for path in folder.glob("*.py") if path.stem not in ("__init__", "shared"))
    assert sorted(OUTPUTS) == names
    for name in names:
        parser = importlib.import_module("sd_fairseq.commands." + name)
        parser = getattr(parser, "build_parser", None) or importlib.import_module("sd_fairseq.evaluation." + name)
        parser = parser if callable(parser) else getattr(parser, "build_parser", None)
        options = [word for action in parser()._actions for word in action.option_strings] if parser else []
        writing = [one for one in options if one in sum(OUTPUTS.values(), []) and one not in ("-s", "--table")]
        assert not set(writing) - set(OUTPUTS[name]), name


@pytest.mark.parametrize("name, option", [(name, option) for name, options in OUTPUTS.items() for option in options])
def test_an_output_over_an_input_or_another_output_is_refused_by_every_command(
    places, tmp_path, capsys, monkeypatch, name, option
):
    words = typed(name, option, "{place}")
    inputs = [one for one in ("path", "questions", "table", "trace") if "{" + one + "}" in words]
    assert inputs
    for one in inputs:
        before, link = places[one].read_bytes(), tmp_path / "link"
        os.link(str(places[one]), str(link))
        for place in (places[one], link):
            if option == "--table":
                continue  # what is there is read
            monkeypatch.setitem(COMMANDS, name, words)
            refuse(name, capsys, "same file as the input", **places, place=place)
        assert places[one].read_bytes() == before
        os.remove(str(link))
    others = [other for other in OUTPUTS[name] if other != option]
    for other in others:
        monkeypatch.setitem(COMMANDS, name, f"{words} {other} {{place}}")
        refuse(name, capsys, "same file as the output", **places, place=tmp_path / "new")
    assert not (tmp_path / "new").exists()
    monkeypatch.setitem(COMMANDS, name, words)
    refuse(name, capsys, "cannot be written", **places, place=tmp_path / "no" / "folder" / "x")
    refuse(name, capsys, "cannot be written", **places, place=tmp_path)


def test_a_report_over_an_input_is_refused(places, tmp_path, capsys, monkeypatch):
    os.link(str(places["trace"]), str(tmp_path / "report.json"))
    monkeypatch.setitem(COMMANDS, "report", WITHOUT_A_MODEL["report"] + " --output-dir {folder}")
    refuse("report", capsys, "same file as the input", **places, folder=tmp_path)


@pytest.mark.parametrize("name", ["answer", "classify"])
def test_a_head_s_command_refuses_a_checkpoint_of_another_task(places, capsys, name):
    refuse(name, capsys, "switchable_translation", "expected --task switchable_", **places)


@pytest.mark.parametrize("name", [name for name, words in COMMANDS.items() if "{data}" in words or "{glue}" in words])
@pytest.mark.parametrize("damage", ["file", "empty", "absent"])
def test_a_folder_of_data_that_is_none_is_one_line_of_every_command(places, tmp_path, capsys, name, damage):
    folder = tmp_path / "none"
    if damage == "file":
        folder.write_text("")
    elif damage == "empty":
        folder.mkdir()
    refuse(name, capsys, "none", **{**places, "data": folder, "glue": folder})


@pytest.mark.parametrize(
    "options, needles",
    [
        (["--sd-space", "token", "--sd-token-strategies", "keep"], ["token", "nothing to switch"]),
        (["--sd-space", "encoder,head"], ["encoder,head"]),
        (["--sd-token-strategies", "keep,last:120"], ["last:120", "1-99"]),
        (["--sd-tolerance", "-0.1"], ["--sd-tolerance -0.1", "0 or more"]),
        (["--sd-first-encoder-layer", "1"], ["1", "2..4"]),
        (
            ["--sd-policy-freeze-update", "2", "--sd-policy-warmup-updates", "5"],
            ["freeze-update 2", "warmup-updates 5"],
        ),
        (["--encoder-layerdrop", "0.1"], ["layerdrop"]),
    ],
)
def test_an_unknown_or_contradictory_option(pipeline, options, needles):
    check_refused(pipeline.train("options", *BASE, *options, check=False), *needles)
    assert not list((pipeline.folder / "options").glob("*.pt")) if (pipeline.folder / "options").exists() else True


def test_an_option_nobody_knows(pipeline):
    finished = pipeline.train("unknown", *BASE, "--sd-no-such-option", "1", check=False)
    assert finished.returncode == 2
    assert "--sd-no-such-option" in finished.stderr


def test_the_criterion_with_a_plain_bart(pipeline):
    options = ["--arch", "bart_base", "--criterion", "sd_policy_criterion", "--max-update", "1"]
    check_refused(pipeline.train("plain", *options, check=False), "BARTModel", "switchable_bart")


def test_a_source_longer_than_the_model_takes(pipeline, tmp_path):
    pairs = {"test": [("the " * 300, "long one")] + pipeline.pairs["test"]}
    data = pipeline.binarise(tmp_path / "long", pairs, dictionary=pipeline.data / "dict.source.txt")
    trace = tmp_path / "trace.jsonl"
    finished = pipeline.generate(pipeline.switchable, "--sd-trace", trace, check=False, data=data)
    check_refused(finished, "sentence 0", "301 tokens", "256")
    assert not trace.exists()


def test_a_shard_option_that_fairseq_would_ignore(pipeline):
    finished = pipeline.generate(pipeline.switchable, "--num-shards", 2, "--shard-id", 0, check=False)
    check_refused(finished, "--num-shards 2", "--distributed-world-size 2")


def test_an_empty_line(pipeline, tmp_path):
    pairs = {"test": pipeline.pairs["test"][:2] + [("", "nothing")]}
    data = pipeline.binarise(tmp_path / "empty", pairs, dictionary=pipeline.data / "dict.source.txt")
    check_refused(pipeline.generate(pipeline.switchable, check=False, data=data), "line 3", "empty")



@pytest.mark.parametrize("key", ["decoder.layers.0.fc1.weight", "encoder.policy.heads.bias"])
@pytest.mark.parametrize("command", ["train", "generate"])
def test_weights_that_are_not_finite_are_refused_at_loading(pipeline, tmp_path, command, key):
    state = torch.load(str(pipeline.switchable), weights_only=False)
    state["model"][key].view(-1)[0] = float("nan")
    broken = tmp_path / "broken.pt"
    torch.save(state, str(broken))
    if command == "generate":
        finished = pipeline.generate(broken, check=False)
    else:
        options = ["--restore-file", broken, "--reset-optimizer", "--reset-dataloader", "--reset-meters"]
        finished = pipeline.train("nan", *BASE, *options, check=False)
    check_refused(finished, "not finite", key)
    assert not (pipeline.folder / "nan" / "checkpoint_last.pt").exists()


def test_a_loss_that_is_not_finite_refuses_the_step(pipeline, tmp_path):
    state = torch.load(str(pipeline.switchable), weights_only=False)
    state["model"]["decoder.layers.0.fc1.weight"].fill_(1e38)  # finite, and overflows
    broken = tmp_path / "broken.pt"
    torch.save(state, str(broken))
    options = ["--restore-file", broken, "--reset-optimizer", "--reset-dataloader", "--reset-meters"]
    finished = pipeline.train("nan", *BASE, *options, check=False)
    check_refused(finished, "loss is nan", "update 0", "unchanged")
    assert not (pipeline.folder / "nan" / "checkpoint_last.pt").exists()


def test_hypotheses_and_references_of_unequal_length(tmp_path):
    (tmp_path / "a").write_text("one .\ntwo .\n")
    (tmp_path / "b").write_text("one .\n")
    command = [sys.executable, "-m", "sd_fairseq.evaluation.rouge", str(tmp_path / "a"), str(tmp_path / "b")]
    command += ["--saveto", str(tmp_path / "out")]
    finished = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
    assert finished.returncode != 0
    assert "Traceback" not in finished.stderr
    assert "2" in finished.stderr and "1" in finished.stderr
    assert not (tmp_path / "out").exists()
