"""Switchable checkpoints are averaged, joined, overridden, fine-tuned as BART's are; bad ones end with one line."""

import os

import pytest
import torch
from dropin.commands import FRESH_START, OWN, SEARCH, assert_same_hypotheses
from dropin.workers import SWITCHABLE, TASK, load

from sd_fairseq.decision.trace import read_trace
from sd_fairseq.plugin.guards.compatibility import loads_weights_only

BEAM = ["--beam", "2"]
DENSE = ["--model-overrides", "{'sd_policy': 'dense'}"]
FREEZE = ["--lr", "0", "--sd-policy-lr", "1e-9"]


@pytest.fixture(scope="module")
def other(zoo):
    """A second switchable checkpoint, with other weights in backbone and policy."""

    def disturb(state):
        generator = torch.Generator().manual_seed(8)
        for key, value in state["model"].items():
            if value.is_floating_point() and value.dim() > 1:
                state["model"][key] = value + 0.1 * torch.empty_like(value).normal_(generator=generator)

    return zoo.rewritten(zoo.mixed, "other.pt", disturb)


def average(*paths):
    """What fairseq's scripts/average_checkpoints.py does: the mean of every entry."""
    states = [load(path) for path in paths]
    models = [state["model"] for state in states]
    states[0]["model"] = {key: sum(model[key].float() for model in models) / len(models) for key in models[0]}
    return states[0]


def policy_of(path):
    return {key: value for key, value in load(path)["model"].items() if key.startswith("encoder.policy.")}


def test_averaged_checkpoints_generate_and_train_on(zoo, other, tmp_path):
    torch.save(average(zoo.mixed, zoo.mixed), str(tmp_path / "same.pt"))
    assert_same_hypotheses(zoo.generate(tmp_path / "same.pt", *BEAM), zoo.generate(zoo.mixed, *BEAM))
    torch.save(average(zoo.mixed, other), str(tmp_path / "mean.pt"))
    trace = tmp_path / "trace.jsonl"
    assert len(zoo.generate(tmp_path / "mean.pt", *BEAM, "--sd-trace", trace)) == 12
    assert len({record.path for record in read_trace(str(trace))}) > 1
    path = zoo.train("average", *SWITCHABLE, *FRESH_START, *FREEZE, "--restore-file", tmp_path / "mean.pt")
    mean = policy_of(tmp_path / "mean.pt")
    assert all(torch.allclose(value, mean[key], atol=1e-6) for key, value in policy_of(path).items())


def test_an_ensemble_of_one_model_twice_is_that_model(zoo):
    once = zoo.generate(zoo.mixed, *BEAM)
    assert_same_hypotheses(zoo.generate(os.pathsep.join([str(zoo.mixed)] * 2), *BEAM), once)


def test_an_ensemble_whose_members_decide_differently_ignores_batch_mates(zoo, other):
    for members in ([zoo.mixed, other], [zoo.mixed, zoo.plain]):
        paths = os.pathsep.join(map(str, members))
        together = zoo.generate(paths, *BEAM, "--batch-size", "12")
        assert_same_hypotheses(together, zoo.generate(paths, *BEAM, "--batch-size", "1"))
        for member in members:
            alone = zoo.generate(member, *BEAM)
            assert any(alone[number][0].score != together[number][0].score for number in alone)


def test_without_its_policy_a_switchable_checkpoint_is_its_bart(zoo):
    assert_same_hypotheses(zoo.generate(zoo.mixed, *BEAM, *DENSE), zoo.generate(zoo.plain, *BEAM, *OWN))


def test_finetuning_takes_the_policy_along(zoo, tmp_path):
    path = zoo.train(tmp_path, *SWITCHABLE, *FREEZE, "--finetune-from-model", zoo.mixed)
    assert "checkpoint has no policy" not in zoo.last_output
    expected = policy_of(zoo.mixed)
    assert all(torch.allclose(value, expected[key], atol=1e-6) for key, value in policy_of(path).items())


def test_averaged_weights_of_training_are_kept_and_generate(zoo, tmp_path):
    from fairseq.checkpoint_utils import load_ema_from_checkpoint

    options = ["--store-ema", "--ema-decay", "0.5", "--max-update", "3", "--lr", "0.01"]
    path = zoo.train("averaging", *SWITCHABLE, *options)
    ema = load(path)["extra_state"]["ema"]
    state = load_ema_from_checkpoint(str(path))
    backbone = "decoder.layers.0.fc1.weight"
    assert not torch.equal(ema[backbone], load(path)["model"][backbone])
    assert torch.equal(state["model"][backbone], ema[backbone])
    torch.save(state, str(tmp_path / "ema.pt"))
    assert len(zoo.generate(tmp_path / "ema.pt", *BEAM)) == 12
    assert "decided by: network" in zoo.last_output
    assert "checkpoint has no policy" not in zoo.last_output


class Foreign:
    """What no checkpoint of fairseq holds."""


COMMANDS = {
    "generate": lambda zoo, path: [*SEARCH, "--path", path],
    "interactive": lambda zoo, path: [*SEARCH, "--path", path],
    "validate": lambda zoo, path: ["--cpu", "--path", path],
    "train": lambda zoo, path: [*SWITCHABLE, *zoo.training, "--restore-file", path, "--save-dir", zoo.folder / "none"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_truncated_checkpoint_is_one_line(zoo, command):
    cut = zoo.folder / "cut.pt"
    cut.write_bytes(zoo.mixed.read_bytes()[:-4000])
    error = zoo.refused(command, *TASK, *COMMANDS[command](zoo, cut))
    assert "cut.pt: truncated" in error
    assert not (zoo.folder / "none").exists()


@pytest.mark.skipif(not loads_weights_only(), reason="this torch loads every type by default")
@pytest.mark.parametrize("command", ["generate", "train"])
def test_a_checkpoint_with_objects_is_refused_by_name_and_says_how_to_opt_in(zoo, monkeypatch, command):
    monkeypatch.delenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", raising=False)

    def add_object(state):
        state["extra_state"]["object"] = Foreign()

    path = zoo.rewritten(zoo.mixed, "foreign.pt", add_object)
    error = zoo.refused(command, *TASK, *COMMANDS[command](zoo, path))
    assert f"{__name__}.Foreign" in error and "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1" in error


@pytest.mark.parametrize("space", ["encoder", "token"])
def test_a_policy_of_another_decision_space_is_one_line(zoo, space):
    options = [*COMMANDS["train"](zoo, zoo.mixed), *FRESH_START, "--sd-space", space, "--batch-size", "5"]
    assert "--sd-space" in zoo.refused("train", *TASK, *options)


def test_denoising_pretrains_a_switchable_backbone(zoo):
    zoo.language_model  # noqa: B018  # writes the one-sided data that this task reads
    options = ["--task", "denoising", "--arch", "switchable_bart_tiny", "--criterion", "cross_entropy"]
    noise = ["--mask", "0.3", "--mask-length", "span-poisson", "--replace-length", "1", "--tokens-per-sample", "64"]
    folder = zoo.folder / "denoising"
    start = ["--user-dir", TASK[1], "--save-dir", folder, "--max-update", "1", "--batch-size", "8"]
    more = ["--sample-break-mode", "eos", "--rotate", "0", "--disable-validation"]
    zoo.command("train", *start, *zoo.training, *options, *noise, *more)
    words = load(folder / "checkpoint_last.pt")["model"]["encoder.embed_tokens.weight"].size(0)
    plain = load(zoo.plain)["model"]["encoder.embed_tokens.weight"].size(0)
    assert words == plain + 1
    path = zoo.train("denoised", *SWITCHABLE, *FRESH_START, "--restore-file", folder / "checkpoint_last.pt")
    assert len(zoo.generate(path, *BEAM)) == 12
