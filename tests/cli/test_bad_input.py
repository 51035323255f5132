"""Bad input gets one clear line naming what was found, a non-zero exit, and leaves nothing half-written."""

import subprocess
import sys

import pytest
import torch

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
