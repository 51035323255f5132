"""Plain BART checkpoints of every age load into switchable_bart, and give bit for bit what they gave in bart."""

import argparse

import pytest
import torch
from dropin import layouts
from dropin.commands import (
    AS_SWITCHABLE,
    FRESH_START,
    OWN,
    PLAIN,
    assert_same_hypotheses,
    hydra_train,
    louden,
    read_hypotheses,
)
from dropin.workers import ROOT, SWITCHABLE, TASK, load

REAL = ROOT.parent / "shared" / "data" / "fairseq_ckpt"
SEARCH = ["--beam", "2", "--no-repeat-ngram-size", "3"]
CHANGES = {
    "base": lambda state: None,
    "mask row": layouts.with_mask_row,
    "classification head": layouts.with_heads,
    "0.12.2's copies": layouts.with_fused_copies,
    "2019": layouts.of_2019,
}
NAMES = [*CHANGES, "large", "hydra"]
AS_HYDRA_SWITCHABLE = ["--model-overrides", "{'model': {'_name': 'switchable_bart_base'}}"]


def train_large(zoo):
    return zoo.rewritten(zoo.train("large", "--arch", "bart_large", *PLAIN[2:]), "large.pt", louden)


def train_with_hydra(zoo):
    return zoo.rewritten(hydra_train(zoo, "hydra", "bart_base", "translation"), "hydra.pt", louden)


@pytest.fixture(scope="module")
def checkpoints(zoo):
    """Makes and keeps the checkpoints, each when first asked for."""
    made = {}

    def find(name):
        if name not in made:
            train = {"large": train_large, "hydra": train_with_hydra}.get(name)
            made[name] = train(zoo) if train else zoo.rewritten(zoo.plain, f"{name}.pt", CHANGES[name])
        return made[name]

    return find


def backbone(path, words):
    """The weights of a checkpoint that switchable_bart has too."""
    model = load(path)["model"]
    skipped = ("classification_heads.", "encoder.policy.", "policy_learner.")
    found = {key: value for key, value in model.items() if not key.startswith(skipped)}
    copies = tuple(f"{name}_{kind}" for name in layouts.FUSED for kind in ("weight", "bias"))
    found = {key: value for key, value in found.items() if not key.endswith(copies) or ".self_attn." in key}
    vocabulary = ("embed_tokens.weight", "output_projection.weight")
    return {key: value[:words] if key.endswith(vocabulary) else value for key, value in found.items()}


def assert_same_weights(path, original):
    words = load(path)["model"]["encoder.embed_tokens.weight"].size(0)
    found, expected = backbone(path, words), backbone(original, words)
    assert found.keys() == expected.keys() and len(found) > 50
    assert not [key for key, value in found.items() if not torch.equal(value, expected[key])]


@pytest.mark.parametrize("name", NAMES)
def test_training_starts_from_every_layout_with_its_very_weights(zoo, checkpoints, name):
    path = zoo.train("from", *SWITCHABLE, *FRESH_START, "--lr", "0", "--restore-file", checkpoints(name))
    assert "checkpoint has no policy" in zoo.last_output
    assert_same_weights(path, checkpoints(name))


@pytest.mark.parametrize("name", ["mask row", "2019"])
def test_finetuning_starts_from_a_plain_checkpoint(zoo, checkpoints, tmp_path, name):
    path = zoo.train(tmp_path, *SWITCHABLE, "--lr", "0", "--finetune-from-model", checkpoints(name))
    assert_same_weights(path, checkpoints(name))


@pytest.mark.parametrize("name", NAMES)
def test_generation_from_every_layout_is_barts(zoo, checkpoints, name):
    path = checkpoints(name)
    fairseq_loads = name not in ("0.12.2's copies", "hydra")
    own = zoo.generate(path if fairseq_loads else repaired(zoo, path, name), *SEARCH, *OWN)
    assert "decided by" not in zoo.last_output
    by_itself = zoo.generate(path, *SEARCH)
    assert "decided by: dense" in zoo.last_output and "slower generator" not in zoo.last_output
    assert_same_hypotheses(by_itself, own)
    found = zoo.generate(path, *SEARCH, *(AS_HYDRA_SWITCHABLE if name == "hydra" else AS_SWITCHABLE))
    assert "decided by: network" in zoo.last_output
    assert_same_hypotheses(found, own)


def repaired(zoo, path, name):
    """A checkpoint that fairseq's own BART can load, with the same weights."""

    def repair(state):
        copies = tuple(f"{one}_{kind}" for one in layouts.FUSED for kind in ("weight", "bias"))
        state["model"] = {k: v for k, v in state["model"].items() if not k.endswith(copies) or ".self_attn." in k}
        if name == "hydra":
            state["cfg"]["model"] = argparse.Namespace(**state["cfg"]["model"], task="translation")

    return zoo.rewritten(path, f"{name}.repaired.pt", repair)


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the real old checkpoint beside the repository")
def test_a_real_old_checkpoint_loads_and_generates_as_fairseqs_transformer(zoo):
    task = [*TASK[:4], "-s", "sym", "-t", "math"]
    options = ["--beam", "2", "--distributed-world-size", "400", "--batch-size", "4", "--num-workers", "0"]
    data = REAL / "data-bin"
    outputs = []
    differs = "'layernorm_embedding': False, 'no_scale_embedding': False"
    for more in ([], ["--model-overrides", "{'arch': 'switchable_bart', %s}" % differs]):
        output = zoo.command(
            "generate", *task, *options, "--cpu", "--path", REAL / "checkpoint_best.pt", *more, data=data
        )
        outputs.append(output)
    assert "decided by: network" in outputs[1] and "decided by" not in outputs[0]
    assert_same_hypotheses(read_hypotheses(outputs[1]), read_hypotheses(outputs[0]))
