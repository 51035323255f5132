"""examples/glue from prepared data to predictions: training, fairseq's validation, the batch command, the hub."""

import json
import shutil

import pytest
import torch
from dropin.workers import ROOT, run
from glue import make_data

from sd_fairseq.decision.trace import SITE_FIELDS
from sd_fairseq.plugin.guards.errors import InputError

FOLDER = ROOT / "examples" / "glue"
TASK = ["--user-dir", str(ROOT / "sd_fairseq"), "--task", "switchable_sentence_prediction", "--num-classes", "2"]
SIZE = [
    *("--encoder-layers", "3", "--decoder-layers", "2", "--encoder-embed-dim", "16", "--decoder-embed-dim", "16"),
    *("--encoder-ffn-embed-dim", "32", "--decoder-ffn-embed-dim", "32"),
    *("--encoder-attention-heads", "2", "--decoder-attention-heads", "2", "--max-positions", "128"),
    *("--max-source-positions", "128", "--max-target-positions", "128", "--optimizer", "adam", "--lr", "1e-2"),
    *("--max-tokens", "800", "--required-batch-size-multiple", "1", "--cpu", "--num-workers", "0", "--seed", "1"),
    *(
        "--no-epoch-checkpoints",
        "--log-format",
        "json",
        "--log-interval",
        "1",
        "--no-progress-bar",
        "--init-token",
        "0",
    ),
    *("--arch", "switchable_bart_tiny", "--criterion", "sd_policy_criterion", "--max-update", "3"),
    *("--best-checkpoint-metric", "accuracy", "--maximize-best-checkpoint-metric", "--sd-sort-by-length"),
]


class Glue:
    """Real texts, labelled by whether they name a library; what the tests share.

    Attributes:
        folder: where everything stands.
        rows: (premise, hypothesis, label) of train and valid.
        data: made by prepare.py.
        checkpoint: trained for three updates with a policy.
        log: what the training printed.
    """

    def __init__(self, folder):
        self.folder, self.data = folder, folder / "data"
        self.rows = make_data(folder)
        arguments = [self.data, *TASK, *SIZE, "--save-dir", folder / "save"]
        self.log = run("train", arguments, folder / "train.log")
        self.checkpoint = folder / "save" / "checkpoint_last.pt"
        state = torch.load(str(self.checkpoint), weights_only=False)
        generator = torch.Generator().manual_seed(3)
        for key in state["model"]:  # deployed paths that differ from example to example
            if key.endswith(("policy.heads.weight", "policy.hidden.bias")):
                state["model"][key] = torch.randn(state["model"][key].shape, generator=generator)
            if key.endswith("policy.heads.bias"):
                state["model"][key].zero_()
        self.mixed = folder / "save" / "mixed.pt"
        torch.save(state, str(self.mixed))


@pytest.fixture(scope="module")
def glue(tmp_path_factory):
    pytest.importorskip("fairseq")
    return Glue(tmp_path_factory.mktemp("glue"))


def test_training_logs_scores_and_skip_rates_and_keeps_the_best(glue):
    valid = [json.loads(line[line.index("{") :]) for line in glue.log.splitlines() if '"valid_accuracy"' in line]
    assert valid and all(0 <= float(one["valid_accuracy"]) <= 100 for one in valid)
    assert {"valid_f1", "valid_matthews", "valid_sd_flops_generation", "valid_sd_skip_encoder_ffn"} <= set(valid[-1])
    assert (glue.folder / "save" / "checkpoint_best.pt").exists()


def predict(glue, *arguments, checkpoint=None):
    """Runs the batch command in this process; returns its exit code."""
    from sd_fairseq.commands.classify import main

    return main([str(glue.data), "--path", str(checkpoint or glue.mixed), *map(str, arguments)])


def load_hub(glue):
    """The checkpoint with mixed paths behind the hub interface."""
    from sd_fairseq.plugin.models.switchable_bart import SwitchableBARTModel

    folder, model = str(glue.mixed.parent), str(glue.data / "sentencepiece.model")
    options = {"bpe": "sentencepiece", "sentencepiece_model": model}
    return SwitchableBARTModel.from_pretrained(folder, "mixed.pt", str(glue.data), **options).eval()


def predictions(glue, tmp_path, *options, source=None, name="out.jsonl"):
    out = tmp_path / name
    assert predict(glue, "--input", source or glue.folder / "valid.tsv", "--output", out, *options) == 0
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_predictions_do_not_depend_on_the_batch_size_and_agree_with_their_summary(glue, tmp_path, capsys):
    found = predictions(glue, tmp_path, "--batch-size", 7, "--summary", tmp_path / "summary.json")
    alone = predictions(glue, tmp_path, "--batch-size", 1, name="alone.jsonl")
    assert [one["id"] for one in found] == [str(i) for i in range(20)]
    assert len({tuple(one[site] for site in SITE_FIELDS) + (one["token_strategy"],) for one in found}) > 1
    for one, other in zip(found, alone):
        for name in (*SITE_FIELDS, "token_strategy", "label", "gold", "flops_generation", "flops_paper"):
            assert one[name] == other[name]
        assert one["probabilities"] == pytest.approx(other["probabilities"], rel=1e-4)
        assert sum(one["probabilities"].values()) == pytest.approx(1)
        assert one["flops_generation"] < one["flops_generation_dense"]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["accuracy"] == pytest.approx(100 * sum(one["label"] == one["gold"] for one in found) / 20)
    relative = [one["flops_generation"] / one["flops_generation_dense"] for one in found]
    assert summary["flops_generation"] == pytest.approx(sum(relative) / 20)
    dropped = [1 - one["kept_source_tokens"] / one["source_tokens"] for one in found]
    assert summary["skip_rates"]["token"] == pytest.approx(sum(dropped) / 20)


def test_the_command_and_fairseqs_validation_see_the_same_data(glue, tmp_path, capsys):
    """The text goes through the same cut, pieces, symbols and decoder input as in training."""
    hub = load_hub(glue)
    dataset = hub.task.load_dataset("valid")
    sample = dataset.collater([dataset[index] for index in range(len(dataset))])
    with torch.no_grad():
        logits = hub.model(**sample["net_input"], classification_head_name="sentence_classification_head")[0]
    expected = torch.softmax(logits, dim=-1)
    assert len(torch.unique(expected, dim=0)) > 10
    for one, row in zip(predictions(glue, tmp_path), expected):
        assert list(one["probabilities"].values()) == pytest.approx(row.tolist(), rel=1e-4)


def test_sorted_batches_hold_every_sentence_once_by_length(glue):
    hub = load_hub(glue)
    dataset = hub.task.load_dataset("train")
    order = dataset.ordered_indices()
    assert sorted(order.tolist()) == list(range(40)) != order.tolist()
    lengths = [dataset.num_tokens(index) for index in order]
    assert lengths == sorted(lengths) and len(set(lengths)) > 5


def test_fairseqs_validation_reports_the_commands_scores_and_flops(glue, tmp_path, capsys):
    arguments = [glue.data, *TASK, "--path", glue.mixed, "--cpu", "--num-workers", "0", "--batch-size", "6"]
    output = run("validate", [*arguments, "--log-format", "json"], tmp_path / "log")
    logged = json.loads(next(line[line.index("{") :] for line in output.splitlines() if '"valid_accuracy"' in line))
    predictions(glue, tmp_path, "--summary", tmp_path / "summary.json")
    summary = json.loads((tmp_path / "summary.json").read_text())
    for name in ("accuracy", "f1", "matthews"):
        assert float(logged[f"valid_{name}"]) == pytest.approx(summary[name], abs=0.01)
    for name in ("flops_generation", "flops_paper"):
        assert float(logged[f"valid_sd_{name}"]) == pytest.approx(summary[name], abs=1e-3)


def test_dense_predictions_skip_nothing(glue, tmp_path, capsys):
    for one in predictions(glue, tmp_path, "--dense"):
        assert "0" not in "".join(one[site] for site in SITE_FIELDS) and one["token_strategy"] == "keep"
        assert one["flops_generation"] == one["flops_generation_dense"]


def test_the_hub_predicts_one_sentence_and_a_padded_batch_alike(glue):
    hub = load_hub(glue)
    one, pair = hub.encode("a library of sounds"), hub.encode("a game", "a toy")
    batch = torch.nn.utils.rnn.pad_sequence([one, pair], batch_first=True, padding_value=1)
    with torch.no_grad():
        together = hub.predict("sentence_classification_head", batch)
        alone = torch.cat([hub.predict("sentence_classification_head", tokens) for tokens in (one, pair)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together.exp().sum(dim=1), torch.ones(2))
    with pytest.raises(InputError, match="'entailment' .*sentence_classification_head"):
        hub.predict("entailment", one)


@pytest.mark.parametrize(
    "line, fault",
    [
        ('{"sentence1": "a"}', "2: no column 'sentence2'"),
        ('{"sentence1": "a", "sentence2": ""}', "2: column 'sentence2' is empty"),
        ('{"sentence1": "a", "sentence2": "b", "label": "maybe"}', "2: label 'maybe'"),
        ('{"sentence1": "a", ', "2: not valid JSON"),
    ],
)
def test_bad_input_to_the_command_is_named_and_leaves_no_output(glue, tmp_path, capsys, line, fault):
    import re

    (tmp_path / "in.jsonl").write_text('{"sentence1": "a", "sentence2": "b"}\n' + line + "\n")
    assert predict(glue, "--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl") == 1
    error = capsys.readouterr().err
    assert error.count("sd_fairseq: error:") == 1 and re.search("in.jsonl:" + fault, error), error
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_an_example_longer_than_the_model_takes_is_named(glue, tmp_path, capsys):
    """Where the data were not cut, nothing is cut."""
    data = tmp_path / "data"
    shutil.copytree(str(glue.data), str(data))
    record = json.loads((data / "prepared.json").read_text())
    (data / "prepared.json").write_text(json.dumps({**record, "max_tokens": 0}))
    (tmp_path / "in.jsonl").write_text(json.dumps({"sentence1": "word " * 200, "sentence2": "b"}) + "\n")
    from sd_fairseq.commands.classify import main

    assert main([str(data), "--path", str(glue.mixed), "--input", str(tmp_path / "in.jsonl")]) == 1
    assert "in.jsonl:1: " in capsys.readouterr().err
