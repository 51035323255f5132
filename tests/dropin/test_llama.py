"""fairseq's commands with decoder-only models: trained from nothing, and an imported one that answers."""

from pathlib import Path

import pytest
import torch
from dropin.workers import TASK, build_data, load, run

pytest.importorskip("fairseq")
REFERENCE = Path(__file__).resolve().parents[1] / "reference"
SIZES = ["--decoder-layers", "3", "--decoder-embed-dim", "16", "--dropout", "0.1"]
TRAINING = [
    *("--criterion", "sd_policy_criterion", "--sd-preset", "paper", "--sd-policy-lr", "0.005", "--clip-norm", "0.5"),
    *("--optimizer", "adam", "--lr", "1e-3", "--num-workers", "0", "--seed", "1", "--batch-size", "5", "--cpu"),
    *("--no-epoch-checkpoints", "--no-progress-bar", "--required-batch-size-multiple", "1", "--disable-validation"),
]
SEARCH = ["--cpu", "--no-progress-bar", "--num-workers", "0", "--beam", "3", "--max-len-b", "9", "--batch-size", "5"]


@pytest.mark.parametrize("family,model", [("llama", "SwitchableLlamaModel"), ("gpt2", "SwitchableGPT2Model")])
def test_a_training_that_stops_ends_where_an_unbroken_one_ends_and_its_checkpoint_answers(
    family, model, tmp_path, tmp_path_factory
):
    data = build_data(tmp_path_factory.getbasetemp() / "dropin-data")

    def train(name, updates):
        (tmp_path / name).mkdir(exist_ok=True)
        place = ["--save-dir", tmp_path / name, "--max-update", updates]
        return run(
            "train",
            [data, *TASK, "--arch", f"switchable_{family}_tiny", *SIZES, *TRAINING, *place],
            tmp_path / name / f"log{updates}",
        )

    train("whole", 8)
    train("parts", 3)
    assert "Loaded checkpoint" in train("parts", 8)
    whole, parts = (load(tmp_path / name / "checkpoint_last.pt")["model"] for name in ("whole", "parts"))
    assert whole.keys() == parts.keys() and all(torch.equal(value, parts[name]) for name, value in whole.items())
    path = ["--path", tmp_path / "whole" / "checkpoint_last.pt", "--gen-subset", "test", "--sd-path", "random:0.6"]
    trace = tmp_path / "trace.jsonl"
    output = run("generate", [data, *TASK, *SEARCH, *path, "--sd-trace", trace], tmp_path / "log")
    assert output.count("\nH-") == 12 and len(trace.read_text().splitlines()) == 12
    if family == "gpt2":
        assert f"{model} is not a switchable BART, T5 or LLaMA" in output
    else:
        assert "12 documents" in output and "by the fast generator" in output
    slow = run("generate", [data, *TASK, *SEARCH, *path, "--sd-generator", "fairseq"], tmp_path / "slow")
    assert words_of(slow) == words_of(output)


def words_of(output):
    """Number and words of every hypothesis, sorted."""
    return sorted((line.split("\t")[0], line.split("\t")[2]) for line in output.splitlines() if line.startswith("H-"))


@pytest.mark.parametrize("kind", ["llama/tied", "gpt2/plain"])
def test_an_imported_model_answers(kind, tmp_path):
    from sd_fairseq.commands.import_weights import main as import_weights

    assert import_weights([str(REFERENCE / kind), str(tmp_path / "model")]) == 0
    (tmp_path / "input").write_text("5 6 7 8\n9 10\n", encoding="utf-8")
    options = ["--path", tmp_path / "model" / "model.pt", "--cpu", "--beam", "2", "--max-len-b", "9"]
    output = run("interactive", [tmp_path / "model", *TASK, *options, "--input", tmp_path / "input"], tmp_path / "log")
    assert "S-0\t5 6 7 8\n" in output and output.count("\nH-") == 2 and "<pad>" not in output.split("H-0")[1]
