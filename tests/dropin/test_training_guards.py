"""What a user of fairseq-train sees: sizes from the checkpoint, the preset's line, how the policy ended, the best."""

import json
import re

import pytest
from dropin.commands import ONE_UPDATE
from dropin.workers import TASK, load

LEARN = ["--arch", "switchable_bart", "--criterion", "sd_policy_criterion"]
QUICK = [
    *("--optimizer", "adam", "--lr", "1e-3", "--batch-size", "15", "--required-batch-size-multiple", "1", "--cpu"),
    *("--seed", "1", "--num-workers", "0", "--no-progress-bar", "--no-epoch-checkpoints"),
]


def train(zoo, folder, *options):
    """Trains from the plain checkpoint as a user does, without its sizes; returns what was printed."""
    start = ["--finetune-from-model", zoo.plain, "--save-dir", folder]
    return zoo.command("train", *TASK, *QUICK, *LEARN, *start, *options)


def policy_lines(output):
    return re.findall(r"(INFO|WARNING)\W+sd_fairseq\S+policy_summary\W+policy: (.*)", output)


def inner_lines(output, first):
    """What fairseq's progress bar says within an epoch, from its first character on."""
    return [line[line.index(first) :] for line in output.splitlines() if "train_inner" in line and first in line]


@pytest.fixture(scope="module")
def skipping(zoo, tmp_path_factory):
    """A training whose policy skips at once, and validates and saves at every epoch of two updates."""
    folder = tmp_path_factory.mktemp("skipping")
    options = ["--max-update", "12", "--sd-policy-freeze-update", "8", "--sd-policy-lr", "0.05"]
    return folder, train(zoo, folder, *options, "--log-format", "simple", "--log-interval", "1")


def test_sizes_positions_and_the_teacher_come_from_the_checkpoint(zoo, skipping):
    _, output = skipping
    assert f"as in {zoo.plain}: encoder_layers 3, decoder_layers 2" in output
    trained, plain = (vars(load(path)["cfg"]["model"]) for path in (skipping[0] / "checkpoint_last.pt", zoo.plain))
    for name in ("encoder_layers", "decoder_embed_dim", "decoder_attention_heads", "max_source_positions"):
        assert trained[name] == plain[name]
    assert f"teacher {zoo.plain}" in output


def test_what_the_preset_filled_in_is_one_line_and_in_the_checkpoint(skipping):
    folder, output = skipping
    (line,) = re.findall(r"preset recommended: .*", output)
    assert "space encoder,decoder" in line and "mode budget" in line and "policy-lr" not in line
    criterion = load(folder / "checkpoint_last.pt")["cfg"]["criterion"]
    assert (criterion["sd_mode"], criterion["sd_flops_budget"], criterion["sd_policy_lr"]) == ("budget", 0.7, 0.05)
    assert all(value is not None for name, value in criterion.items() if name in ("sd_alpha", "sd_estimator"))


def test_the_policy_is_described_when_it_is_fixed_and_at_the_end(skipping):
    kinds = policy_lines(skipping[1])
    assert [text.split(";")[0] for _, text in kinds] == ["fixed from update 8 on", "training ended after 12 updates"]
    for kind, text in kinds:
        flops = float(re.search(r"([\d.]+) of the dense FLOPs \(budget 0.7\)", text).group(1))
        assert flops < 1 and "skipped: " in text and "skipped: nothing" not in text
        assert (kind == "WARNING") == (abs(flops - 0.7) > 0.03) == ("the budget is missed" in text)


def test_the_best_checkpoint_is_one_of_the_deployed_phase(zoo, skipping, tmp_path):
    """Losses rise here at once: the lowest is the first, before anything is skipped."""
    folder, output = skipping
    best = load(folder / "checkpoint_best.pt")
    assert best["optimizer_history"][-1]["num_updates"] >= 8
    again = [load(folder / name)["extra_state"]["best"] for name in ("checkpoint_best.pt", "checkpoint_last.pt")]
    assert again[1] <= again[0]


def test_a_best_score_of_before_the_freeze_does_not_survive_a_stop(zoo, tmp_path):
    options = ["--sd-policy-freeze-update", "8", "--sd-policy-lr", "0.05", "--patience", "50"]
    train(zoo, tmp_path, *options, "--max-update", "6")
    state = load(tmp_path / "checkpoint_last.pt")
    state["extra_state"]["best"] = 0.001  # as if nothing could be better
    import torch

    torch.save(state, str(tmp_path / "checkpoint_last.pt"))
    train(zoo, tmp_path, *options, "--max-update", "12")
    assert load(tmp_path / "checkpoint_best.pt")["optimizer_history"][-1]["num_updates"] >= 8


def test_a_model_that_skips_nothing_is_a_warning(zoo, tmp_path):
    output = train(zoo, tmp_path, "--max-update", "4", "--sd-policy-freeze-update", "2", "--sd-policy-lr", "1e-9")
    assert [kind for kind, text in policy_lines(output) if "this model skips nothing" in text] == ["WARNING"] * 2


def test_a_training_that_ends_before_the_freeze_says_so_however_it_ends(zoo, tmp_path):
    for name, limit in (("updates", ["--max-update", "3"]), ("epochs", ["--max-update", "99", "--max-epoch", "1"])):
        output = train(zoo, tmp_path / name, *limit)
        ((kind, text),) = policy_lines(output)
        assert kind == "WARNING" and "training ended after" in text
        assert "before the policy was fixed (update 300)" in text


def test_a_policy_that_is_trained_anew_has_a_fresh_optimizer(zoo, skipping, tmp_path):
    old = load(skipping[0] / "checkpoint_last.pt")["model"]
    assert float(old["policy_learner.steps"]) == 8
    again = ["--finetune-from-model", skipping[0] / "checkpoint_last.pt", "--max-update", "2"]
    train(zoo, tmp_path, *again, "--sd-policy-freeze-update", "9")
    assert float(load(tmp_path / "checkpoint_last.pt")["model"]["policy_learner.steps"]) == 2
    train(zoo, tmp_path, *again[:2], "--max-update", "4", "--sd-policy-freeze-update", "9")  # goes on where it was
    assert float(load(tmp_path / "checkpoint_last.pt")["model"]["policy_learner.steps"]) == 4


def test_a_size_that_contradicts_the_checkpoint_is_one_line(zoo, tmp_path):
    error = zoo.refused(
        *("train", *TASK, *QUICK, *LEARN, *ONE_UPDATE, "--finetune-from-model", zoo.plain),
        *("--save-dir", tmp_path, "--encoder-layers", "5"),
    )
    assert "--encoder-layers 5" in error and "has 3" in error
    assert not list(tmp_path.glob("*.pt"))


def test_fewer_positions_may_be_typed_and_cut_the_data_only(zoo, tmp_path):
    train(zoo, tmp_path, "--max-update", "1", "--max-source-positions", "30", "--truncate-source")
    trained = vars(load(tmp_path / "checkpoint_last.pt")["cfg"]["model"])
    assert trained["max_source_positions"] == vars(load(zoo.plain)["cfg"]["model"])["max_source_positions"]


def test_a_simple_log_has_short_lines_and_json_has_everything(zoo, skipping, tmp_path):
    inner = inner_lines(skipping[1], "epoch")
    assert len(inner) == 12
    for text in inner:
        assert len(text) <= 180 and "sd_flops_generation=" in text and "sd_skip" not in text and "None" not in text
    output = train(zoo, tmp_path, "--max-update", "2", "--log-format", "json", "--log-interval", "1")
    full = [json.loads(line) for line in inner_lines(output, "{")]
    assert full and all("sd_skip_encoder_ffn" in figures and "wps" in figures for figures in full)


def test_losses_with_and_without_dropout_do_not_share_a_name(zoo, tmp_path):
    logged = ["--log-format", "json", "--log-interval", "1"]
    output = train(zoo, tmp_path, "--max-update", "2", "--sd-tolerance", "0.1", *logged)
    full = [json.loads(line) for line in inner_lines(output, "{")]
    assert full
    assert all("sd_quality_dense" not in figures and "sd_quality_dense_dropout_off" in figures for figures in full)
