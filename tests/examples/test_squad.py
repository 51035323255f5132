"""examples/squad from raw JSON to answers: prepare.py, training, validation, the batch command, Python."""

import json
import math
import os
import re
import subprocess

import pytest
import torch
from dropin import stand_ins
from dropin.workers import ROOT, run
from pairs import read_pairs
from squad import FOLDER, make_squad, prepare

from sd_fairseq.decision.trace import SITE_FIELDS
from sd_fairseq.evaluation.squad_score import main as score
from sd_fairseq.plugin.models.span_head import SPAN_HEAD

TASK = [
    *("--user-dir", str(ROOT / "sd_fairseq"), "--task", "switchable_squad"),
    *("--max-positions", "96", "--sd-stride", "48", "--sd-question-tokens", "16"),
]
SIZE = [
    *("--encoder-layers", "3", "--decoder-layers", "2", "--encoder-embed-dim", "16", "--decoder-embed-dim", "16"),
    *("--encoder-ffn-embed-dim", "32", "--decoder-ffn-embed-dim", "32"),
    *("--encoder-attention-heads", "2", "--decoder-attention-heads", "2"),
    *("--max-source-positions", "96", "--max-target-positions", "96", "--optimizer", "adam", "--lr", "1e-2"),
    *("--max-tokens", "1500", "--required-batch-size-multiple", "1", "--cpu", "--num-workers", "0", "--seed", "1"),
    *("--no-epoch-checkpoints", "--log-format", "json", "--log-interval", "1", "--no-progress-bar"),
    *("--arch", "switchable_bart_tiny", "--criterion", "sd_policy_criterion", "--max-update", "3"),
]


class Squad:
    """What the tests share.

    Attributes:
        folder: with train.json and dev.json.
        data: made by prepare.py.
        checkpoint: trained for three updates with a policy, its deployed paths mixed afterwards.
        log: what the training printed.
    """

    def __init__(self, folder):
        self.folder, self.data, self.checkpoint = folder, folder / "data", folder / "mixed.pt"
        rows = read_pairs()[:36]
        for name, part in (("train", rows[:24]), ("dev", rows[24:])):
            (folder / f"{name}.json").write_text(json.dumps(make_squad(part, name)), encoding="utf-8")
        files = ["--train", folder / "train.json", "--valid", folder / "dev.json"]
        assert prepare(self.data, *files, "--vocab-size", 300) is None
        self.log = run("train", [self.data, *TASK, *SIZE, "--save-dir", folder / "save"], folder / "log")
        state = torch.load(str(folder / "save" / "checkpoint_last.pt"), weights_only=False)
        generator = torch.Generator().manual_seed(1)
        for name, value in state["model"].items():
            if name.startswith("encoder.policy.") and name.endswith("heads.weight"):
                value.normal_(generator=generator)
            if name.startswith("encoder.policy.") and name.endswith("heads.bias"):
                value.zero_()
        torch.save(state, str(self.checkpoint))


@pytest.fixture(scope="module")
def squad(tmp_path_factory):
    return Squad(tmp_path_factory.mktemp("squad"))


def predict(squad, *arguments, source=None):
    """Runs the batch command in this process; returns its exit code."""
    from sd_fairseq.commands.answer import main

    common = [squad.data, "--path", squad.checkpoint, "--input", source or squad.folder / "dev.json"]
    return main([str(one) for one in [*common, *arguments]])


def load_hub(squad):
    from sd_fairseq.plugin.models.switchable_bart import SwitchableBARTModel
    from sd_fairseq.plugin.squad.offsets import bpe_options

    options = bpe_options(str(squad.data))
    return SwitchableBARTModel.from_pretrained(str(squad.folder), "mixed.pt", str(squad.data), **options).eval()


FILES = {
    "--output": "answers.json",
    "--na-probs": "silence.json",
    "--n-best-output": "best.json",
    "--decisions": "decisions.jsonl",
    "--summary": "summary.json",
}


def predictions(squad, folder, *options):
    """Runs the batch command; returns what it wrote, by option."""
    folder.mkdir(exist_ok=True)
    wanted = [one for option, name in FILES.items() for one in (option, folder / name)]
    assert predict(squad, *wanted, *options) == 0
    found = {option: (folder / name).read_text(encoding="utf-8") for option, name in FILES.items()}
    lines = found.pop("--decisions").splitlines()
    return {**{option: json.loads(text) for option, text in found.items()}, "--decisions": list(map(json.loads, lines))}


def test_training_logs_how_many_spans_are_found_and_what_is_skipped(squad):
    logged = [json.loads(line[line.index("{") :]) for line in squad.log.splitlines() if '"valid_loss"' in line]
    assert logged and all(0 <= float(one["valid_span_both_ends"]) <= 100 for one in logged)
    assert {"valid_span_one_end", "valid_sd_flops_generation", "valid_sd_skip_encoder_ffn"} <= set(logged[-1])


def test_the_head_that_was_trained_is_the_one_that_answers(squad):
    """It survives the checkpoint, and so do the questions on their way through files, windows and batches."""
    hub = load_hub(squad)
    state = torch.load(str(squad.checkpoint), weights_only=False)["model"]
    head = hub.model.classification_heads[SPAN_HEAD].out_proj.weight
    assert torch.equal(head, state[f"classification_heads.{SPAN_HEAD}.out_proj.weight"])


def test_answers_do_not_depend_on_the_batch_size_and_agree_with_files_and_summary(squad, tmp_path, capsys):
    found = predictions(squad, tmp_path / "many", "--batch-size", 7)
    alone = predictions(squad, tmp_path / "one", "--batch-size", 1)
    assert list(found["--output"]) == [f"dev{number}" for number in range(12)]
    assert found["--output"] == alone["--output"]
    assert len({tuple(one[site] for site in SITE_FIELDS) for one in found["--decisions"]}) > 1
    for one, other in zip(found["--decisions"], alone["--decisions"]):
        for name in ("id", "window", *SITE_FIELDS, "token_strategy", "flops_generation", "flops_paper"):
            assert one[name] == other[name]
        assert one["flops_generation"] < one["flops_generation_dense"]
    contexts = {}
    for paragraph in json.loads((squad.folder / "dev.json").read_text(encoding="utf-8"))["data"][0]["paragraphs"]:
        contexts[paragraph["qas"][0]["id"]] = paragraph["context"]
    for identity, entries in found["--n-best-output"].items():
        assert found["--na-probs"][identity] == pytest.approx(alone["--na-probs"][identity], rel=1e-3)
        assert math.fsum(one["probability"] for one in entries) == pytest.approx(1)
        assert all(one["text"] == contexts[identity][one["start"] : one["end"]] for one in entries)
        assert "" in [one["text"] for one in entries]  # SQuAD 2.0
        assert (found["--output"][identity] == "") == (found["--na-probs"][identity] > 0.5)
    summary = found["--summary"]
    assert summary["examples"] == 12 < summary["windows"] == len(found["--decisions"])
    relative = [one["flops_generation"] / one["flops_generation_dense"] for one in found["--decisions"]]
    assert summary["flops_generation"] == pytest.approx(sum(relative) / len(relative))


def test_the_summarys_scores_are_the_scorers(squad, tmp_path, capsys):
    found = predictions(squad, tmp_path, "--no-answer-threshold", 0.4)
    capsys.readouterr()
    assert score([str(squad.folder / "dev.json"), str(tmp_path / "answers.json")]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["NoAns_total"] == 3 and figures["HasAns_total"] == 9
    for name, value in figures.items():
        assert found["--summary"][name] == pytest.approx(value), name
    assert found["--summary"]["best_f1"] >= max(figures["f1"], 25)  # silence alone gets 3 of 12


def test_fairseqs_validation_sees_the_commands_paths_and_flops(squad, tmp_path, capsys):
    arguments = [squad.data, *TASK, "--path", squad.checkpoint, "--cpu", "--num-workers", "0", "--batch-size", "6"]
    output = run("validate", [*arguments, "--log-format", "json"], tmp_path / "log")
    logged = json.loads(next(line[line.index("{") :] for line in output.splitlines() if '"valid_loss"' in line))
    summary = predictions(squad, tmp_path / "out")["--summary"]
    for name in ("flops_generation", "flops_paper"):
        assert float(logged[f"valid_sd_{name}"]) == pytest.approx(summary[name], abs=1e-3)


def test_dense_answers_skip_nothing(squad, tmp_path, capsys):
    for one in predictions(squad, tmp_path, "--dense")["--decisions"]:
        assert "0" not in "".join(one[site] for site in SITE_FIELDS) and one["token_strategy"] == "keep"
        assert one["flops_generation"] == one["flops_generation_dense"]


def test_questions_without_answers_in_json_lines_all_get_one_and_python_gives_the_same(squad, tmp_path, capsys):
    from sd_fairseq.plugin.predict.squad import SquadPredictor

    rows = [
        {"id": str(i), "question": "Where is it?", "context": f"It stands in 東京 or Kraków {i}."} for i in range(3)
    ]
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert predict(squad, "--output", tmp_path / "out.json", source=path) == 0
    assert "exact" not in json.loads(capsys.readouterr().out)
    answers = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    predictor = SquadPredictor(load_hub(squad))
    for row in rows:
        assert answers[row["id"]] == predictor.answer(row["question"], row["context"]).best != ""
        assert answers[row["id"]] in row["context"]


GOOD = {"id": "a", "question": "q?", "context": "some words"}


@pytest.mark.parametrize(
    "line, fault",
    [
        (json.dumps({**GOOD, "id": "b", "context": " "}), "2: 'context' is empty"),
        (json.dumps({"question": "q?", "context": "c"}), "2: no 'id'"),
        (json.dumps(GOOD), "2, id a: the id was given before, at .*in.jsonl:1"),
        (json.dumps({**GOOD, "id": "b", "answers": [{"text": "no", "answer_start": 0}]}), "2, id b, answer 0: 'no'"),
        (json.dumps({**GOOD, "id": "b", "context": "\u200b"}), "2, id b: 'context' has no character"),
        ('{"id": ', "2: not valid JSON"),
    ],
)
def test_bad_input_is_named_and_leaves_no_output(squad, tmp_path, capsys, line, fault):
    path = tmp_path / "in.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + line + "\n", encoding="utf-8")
    assert predict(squad, "--output", tmp_path / "out.json", "--summary", tmp_path / "s.json", source=path) == 1
    error = capsys.readouterr().err
    assert error.count("sd_fairseq: error:") == 1 and re.search("in.jsonl:" + fault, error), error
    assert [one.name for one in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize(
    "option, value, fault",
    [
        ("--n-best", 0, "--n-best 0 is not 1 or more"),
        ("--no-answer-threshold", 2, "--no-answer-threshold 2.0 is not in 0..1"),
        ("--output", "no/such/folder/out.json", "no/such/folder/out.json: cannot be written"),
    ],
)
def test_bad_options_are_named(squad, capsys, option, value, fault):
    assert predict(squad, option, value) == 1
    assert fault in capsys.readouterr().err


def test_prepare_refuses_bad_files_and_leaves_nothing(squad, tmp_path):
    content = json.loads((squad.folder / "train.json").read_text(encoding="utf-8"))
    content["data"][0]["paragraphs"][5]["qas"][0]["answers"][0]["answer_start"] += 1
    (tmp_path / "bad.json").write_text(json.dumps(content))
    error = prepare(tmp_path / "out", "--train", tmp_path / "bad.json")
    assert "bad.json: article 0 (Texts), paragraph 5, question 0, id train5, answer 0: " in error and "\n" not in error
    assert [one.name for one in tmp_path.iterdir()] == ["bad.json"]


def test_prepared_questions_are_the_raw_ones_and_clozes_are_sound(squad, tmp_path):
    from sd_fairseq.evaluation.squad_data import read_questions

    raw, kept = (read_questions(str(path)) for path in (squad.folder / "dev.json", squad.data / "valid.json"))
    fields = [[(one.id, one.text, one.context, one.answers, one.impossible) for one in part] for part in (raw, kept)]
    assert fields[0] == fields[1] and len(raw) == 12
    options = ["--train", squad.folder / "train.json", "--vocab-size", 300, "--cloze", 50]
    assert prepare(tmp_path / "out", *options) is None
    clozes = read_questions(str(tmp_path / "out" / "cloze.json"))
    assert len(clozes) == 50 and all(" what" in " " + one.text and one.text.endswith("?") for one in clozes)


def test_every_option_in_the_scripts_is_one_of_fairseqs(squad, tmp_path):
    """A small run of small.sh's own training command line, two updates."""
    script = (FOLDER / "small.sh").read_text(encoding="utf-8")
    block = script[script.index("fairseq_cli.train") : script.index('--save-dir "$out/$name"')]
    words = block.replace('"', "").split()[2:]
    values = {"$package": ROOT / "sd_fairseq", "$rate": "1e-3", "$count": "2", "$tokens": "600", "$seed": "1"}
    command = [str(values.get(word, word)) for word in words]
    command = ["(0.9, 0.98)" if one == "(0.9," else one for one in command if one != "0.98)"]
    command = ["0" if one.startswith("$((count") else one for one in command if one not in ("/", "10))")]
    output = run("train", [squad.data, *command, "--save-dir", tmp_path / "save"], tmp_path / "log")
    assert "done training" in output and (tmp_path / "save" / "checkpoint_last.pt").exists()


def call_train_script(folder, *arguments, **environment):
    """Runs train.sh with a command in place of fairseq-train; returns the options it was given, or the error."""
    program = folder / "fairseq-train"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@" >"$RECORD"\n')
    program.chmod(0o700)
    values = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "RECORD": str(folder / "options")}
    values.update({name: str(value) for name, value in environment.items()})
    command = ["bash", str(FOLDER / "train.sh"), *map(str, arguments)]
    done = subprocess.run(command, env=values, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
    return (folder / "options").read_text().split("\n")[:-1] if done.returncode == 0 else done.stderr


@pytest.mark.parametrize("gpus, at_once, update_freq", [(8, 3, 2), (1, 3, 16), (4, 6, 2), (16, 3, 1)])
def test_an_update_of_the_large_recipe_has_48_windows_on_any_gpus(tmp_path, gpus, at_once, update_freq):
    options = call_train_script(tmp_path, "data", "model.pt", "save", GPUS=gpus, MAX_SENTENCES=at_once)
    assert options[options.index("--update-freq") + 1] == str(update_freq)
    assert at_once * gpus * update_freq == 48


def test_gpus_that_cannot_share_an_update_evenly_are_refused(tmp_path):
    assert "5 GPUs of MAX_SENTENCES=3 do not divide" in call_train_script(tmp_path, "d", "m", "s", GPUS=5)


def test_fairseq_train_takes_every_option_of_the_large_recipe(squad, tmp_path):
    save = tmp_path / "save"
    options = call_train_script(tmp_path, squad.data, squad.checkpoint, save, "--fp16-no-flatten-grads", GPUS=8)
    options[options.index("--user-dir") + 1] = str(ROOT / "sd_fairseq")
    output = run("train", [*options, "--cpu"], tmp_path / "log", prepare=stand_ins.parser_only)
    found = json.loads(next(line[8:] for line in output.splitlines() if line.startswith("options ")))
    assert found["optimization"]["lr"] == [1.5e-5] and found["optimization"]["max_update"] == 5430
    assert found["task"]["max_positions"] == 512 and not [word for word in options if word.startswith("--sd-policy")]
    assert found["checkpoint"]["finetune_from_model"] == str(squad.checkpoint)
