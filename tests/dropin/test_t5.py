"""fairseq's commands with a T5: a training that stops and goes on, and an imported model from text to text."""

import random
from pathlib import Path

import pytest
import torch
from dropin.workers import TASK, build_data, fail_or_finish, load, run, start

pytest.importorskip("fairseq")
REFERENCE = Path(__file__).resolve().parents[1] / "reference" / "t5" / "v1_1"
SIZES = [
    *("--arch", "switchable_t5_tiny", "--encoder-layers", "3", "--decoder-layers", "2", "--encoder-embed-dim", "16"),
    *("--encoder-ffn-embed-dim", "32", "--attention-head-dim", "6", "--dropout", "0.2"),
]
TRAINING = [
    *("--criterion", "sd_policy_criterion", "--sd-preset", "paper", "--sd-policy-lr", "0.005", "--clip-norm", "0.5"),
    *("--sd-constraint-interval", "3", "--optimizer", "adam", "--lr", "1e-3", "--num-workers", "0", "--seed", "1"),
    *("--no-epoch-checkpoints", "--log-format", "json", "--log-interval", "1", "--cpu", "--no-progress-bar"),
    *("--batch-size", "5", "--required-batch-size-multiple", "1"),
]
SEARCH = ["--cpu", "--no-progress-bar", "--num-workers", "0", "--beam", "3", "--max-len-b", "9", "--batch-size", "5"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return build_data(tmp_path_factory.getbasetemp() / "dropin-data")


def train(data, folder, updates, *more):
    arguments = [data, *TASK, *SIZES, *TRAINING, "--save-dir", folder, "--max-update", updates, *more]
    folder.mkdir(exist_ok=True)
    return run("train", arguments, folder / f"log{updates}")


def moments(checkpoint):
    """All tensors of the optimizer, in order."""
    state = checkpoint["last_optimizer_state"]["state"]
    return [value for key in sorted(state) for value in state[key].values() if torch.is_tensor(value)]


def test_a_training_that_stops_ends_where_an_unbroken_one_ends_and_its_checkpoint_generates(data, tmp_path):
    train(data, tmp_path / "whole", 10)
    train(data, tmp_path / "parts", 4)
    output = train(data, tmp_path / "parts", 10)
    assert "Loaded checkpoint" in output
    whole, parts = (load(tmp_path / name / "checkpoint_last.pt") for name in ("whole", "parts"))
    assert whole["model"].keys() == parts["model"].keys()
    assert all(torch.equal(value, parts["model"][name]) for name, value in whole["model"].items())
    assert all(torch.equal(one, other) for one, other in zip(moments(whole), moments(parts)))
    path = ["--path", tmp_path / "whole" / "checkpoint_last.pt", "--gen-subset", "test"]
    trace = tmp_path / "trace.jsonl"
    lines = run("generate", [data, *TASK, *SEARCH, *path, "--sd-trace", trace], tmp_path / "log")
    assert lines.count("\nH-") == 12 and len(trace.read_text().splitlines()) == 12
    assert "12 documents" in lines and "by the fast generator" in lines
    slow = run("generate", [data, *TASK, *SEARCH, *path, "--sd-generator", "fairseq"], tmp_path / "slow")
    assert words_of(slow) == words_of(lines) and len(words_of(slow)) == 12
    random_path = ["--sd-path", "random:0.5"]
    assert "distinct paths" in run("generate", [data, *TASK, *SEARCH, *path, *random_path], tmp_path / "log2")


def test_float16_is_one_line(data, tmp_path):
    process = start("train", [data, *TASK, *SIZES, *TRAINING, "--memory-efficient-fp16"], tmp_path / "log")
    (output,) = fail_or_finish([process], [tmp_path / "log"])
    assert process.exitcode == 1 and "Traceback" not in output
    assert "switchable_t5 does not support --fp16" in output.splitlines()[-1]


def words_of(output):
    """Number and words of every hypothesis, sorted."""
    return sorted((line.split("\t")[0], line.split("\t")[2]) for line in output.splitlines() if line.startswith("H-"))


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """The reference model imported, and texts of its words binarised with its ids."""
    pytest.importorskip("tokenizers", reason="the package tokenizers is not installed")
    from sd_fairseq.commands.encode import main as encode
    from sd_fairseq.commands.import_weights import main as import_weights

    folder, words = tmp_path_factory.mktemp("imported"), random.Random(1)
    assert import_weights([str(REFERENCE), str(folder / "t5")]) == 0
    tokenizer, arguments = str(folder / "t5" / "tokenizer.json"), []
    for split, count in (("train", 20), ("valid", 5)):
        for side in ("source", "target"):
            lines = [" ".join(f"w{words.randint(3, 47)}" for _ in range(words.randint(5, 12))) for _ in range(count)]
            (folder / f"{split}.{side}").write_text("\n".join(lines) + "\n", encoding="utf-8")
            assert encode([tokenizer, str(folder / f"{split}.{side}"), str(folder / f"{split}.ids.{side}")]) == 0
        arguments += [f"--{split}pref", folder / f"{split}.ids"]
    arguments += ["--srcdict", folder / "t5" / "dict.txt", "--joined-dictionary", "--destdir", folder / "bin"]
    output = run("preprocess", [*TASK, *arguments], folder / "log")
    assert "0.0% replaced" in output
    return folder


def test_an_imported_model_is_trained_on_text_and_generates_text(imported, tmp_path):
    start_from = ["--finetune-from-model", imported / "t5" / "model.pt", "--arch", "switchable_t5"]
    options = ["--save-dir", tmp_path, "--max-update", "3"]
    output = run("train", [imported / "bin", *TASK, *TRAINING, *start_from, *options], tmp_path / "log")
    assert "as in " in output and "attention_head_dim 6" in output
    text = ["--bpe", "sd_tokenizer", "--sd-tokenizer", imported / "t5" / "tokenizer.json"]
    path = ["--path", tmp_path / "checkpoint_last.pt", "--gen-subset", "valid"]
    lines = run("generate", [imported / "bin", *TASK, *SEARCH, *path, *text], tmp_path / "log2").splitlines()
    target = (imported / "valid.target").read_text(encoding="utf-8").splitlines()
    assert {line.split("\t")[1] for line in lines if line.startswith("T-")} == set(target)
    hypotheses = [line.split("\t")[2] for line in lines if line.startswith("D-")]
    assert len(hypotheses) == 5 and all(word.startswith("w") for line in hypotheses for word in line.split())


def test_text_typed_in_is_answered_by_the_imported_folder_alone(imported, tmp_path):
    (tmp_path / "input").write_text("w3 w4 w5 w6 w7 w8\nw9 unheard\n", encoding="utf-8")
    text = [
        "--bpe",
        "sd_tokenizer",
        "--sd-tokenizer",
        imported / "t5" / "tokenizer.json",
        "--input",
        tmp_path / "input",
    ]
    path = ["--path", imported / "t5" / "model.pt", "--cpu", "--beam", "2", "--max-len-b", "9"]
    output = run("interactive", [imported / "t5", *TASK, *path, *text], tmp_path / "log")
    assert "S-0\t3 4 5 6 7 8\n" in output and output.count("\nD-") == 2


def test_a_tokenizer_that_is_none_is_one_line(imported, tmp_path):
    (tmp_path / "broken.json").write_text("{}", encoding="utf-8")
    for given, text in ((tmp_path / "none.json", "no such file"), (tmp_path / "broken.json", "not a tokenizer.json")):
        options = ["--bpe", "sd_tokenizer", "--sd-tokenizer", given, "--path", imported / "t5" / "model.pt", "--cpu"]
        process = start("interactive", [imported / "t5", *TASK, *options], tmp_path / "log")
        (output,) = fail_or_finish([process], [tmp_path / "log"])
        assert process.exitcode == 1 and text in output.splitlines()[-1] and "Traceback" not in output
