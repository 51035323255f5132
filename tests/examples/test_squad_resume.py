"""Question answering goes on after a stop as if it had never stopped, to the bit."""

import json

import pytest
import torch
from dropin.workers import ROOT, load, run
from pairs import read_pairs
from squad import make_squad, prepare

OPTIONS = [
    *("--user-dir", str(ROOT / "sd_fairseq"), "--task", "switchable_squad"),
    *("--max-positions", "64", "--sd-stride", "32", "--sd-question-tokens", "12"),
    *("--max-source-positions", "64", "--max-target-positions", "64"),
    *("--arch", "switchable_bart_tiny", "--criterion", "sd_policy_criterion", "--sd-policy-lr", "0.02"),
    *("--encoder-layers", "2", "--decoder-layers", "2", "--encoder-embed-dim", "16", "--decoder-embed-dim", "16"),
    *("--encoder-ffn-embed-dim", "32", "--decoder-ffn-embed-dim", "32"),
    *("--encoder-attention-heads", "2", "--decoder-attention-heads", "2", "--dropout", "0.2"),
    *("--optimizer", "adam", "--lr", "1e-2", "--max-tokens", "700", "--required-batch-size-multiple", "1"),
    *("--cpu", "--num-workers", "0", "--seed", "3", "--no-epoch-checkpoints", "--disable-validation"),
]


def changes(before, after):
    """Names of the tensors that differ."""
    assert before.keys() == after.keys()
    return [name for name in before if not torch.equal(before[name], after[name])]


def test_a_training_stopped_in_the_middle_of_an_epoch_ends_where_an_unbroken_one_ends(tmp_path):
    pytest.importorskip("fairseq")
    rows = read_pairs()[:20]
    (tmp_path / "train.json").write_text(json.dumps(make_squad(rows, "q")), encoding="utf-8")
    data = tmp_path / "data"
    assert prepare(data, "--train", tmp_path / "train.json", "--vocab-size", 300) is None
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    ends = {}
    for folder, updates in ((whole, 5), (broken, 2), (broken, 5)):
        run("train", [data, *OPTIONS, "--save-dir", folder, "--max-update", updates], folder.with_suffix(".log"))
        ends[folder, updates] = load(folder / "checkpoint_last.pt")
    stopped, unbroken, resumed = ends[broken, 2], ends[whole, 5], ends[broken, 5]
    assert 0 < stopped["extra_state"]["train_iterator"]["iterations_in_epoch"]  # in the middle of an epoch
    assert changes(stopped["model"], unbroken["model"])
    assert not changes(resumed["model"], unbroken["model"])
    moments = [end["last_optimizer_state"]["state"] for end in (resumed, unbroken)]
    assert moments[0].keys() == moments[1].keys()
    for key in moments[0]:
        assert torch.equal(moments[0][key]["exp_avg"], moments[1][key]["exp_avg"])
    assert resumed["extra_state"]["train_iterator"] == unbroken["extra_state"]["train_iterator"]
