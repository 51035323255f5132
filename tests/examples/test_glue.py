"""examples/glue from raw files to predictions: prepare.py, training, the batch command, the hub, the scripts."""

import gzip
import importlib.util
import json
import shutil
import sys
from unittest import mock

import pytest
import torch
from dropin.workers import ROOT, TEXTS, run

from sd_fairseq.decision.trace import SITE_FIELDS
from sd_fairseq.plugin.errors import InputError

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


def prepare(*arguments):
    """Runs prepare.py's command line in this process; returns its error line, or None when it ended well."""
    spec = importlib.util.spec_from_file_location("glue_prepare", str(FOLDER / "prepare.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with mock.patch.object(sys, "argv", ["prepare.py", *map(str, arguments)]):
        try:
            module.main()
        except SystemExit as stop:
            return str(stop.code)
    return None


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
        with gzip.open(str(TEXTS), "rt", encoding="utf-8") as lines:
            texts = [json.loads(line) for line in lines][:60]
        named = [(row["document"], row["summary"], "librar" in row["document"]) for row in texts]
        named = [(a, b, "entailment" if label else "not_entailment") for a, b, label in named]
        self.rows = {"train": named[:40], "valid": named[40:]}
        for split, rows in self.rows.items():
            lines = ["index\tsentence1\tsentence2\tlabel"]
            lines += ["\t".join([str(i), *row]) for i, row in enumerate(rows)]
            (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        files = ["--train", folder / "train.tsv", "--valid", folder / "valid.tsv"]
        assert prepare("RTE", self.data, *files, "--vocab-size", 400, "--max-tokens", 100) is None
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


def read_back(data, place, split):
    """The texts that the binary data hold."""
    import sentencepiece
    from fairseq.data import Dictionary, data_utils

    processor = sentencepiece.SentencePieceProcessor(model_file=str(data / "sentencepiece.model"))
    dictionary = Dictionary.load(str(data / place / "dict.txt"))
    dataset = data_utils.load_indexed_dataset(str(data / place / split), dictionary)
    lines = [dictionary.string(dataset[index]) for index in range(len(dataset))]
    return lines if place == "label" else [processor.decode(line.split(" ")) for line in lines]


@pytest.mark.parametrize("split", ["train", "valid"])
def test_binary_data_hold_the_texts_and_labels_in_their_order(glue, split):
    for column, place in enumerate(["input0", "input1", "label"]):
        found = read_back(glue.data, place, split)
        expected = [row[column] for row in glue.rows[split]]
        assert len(found) == len(expected)
        known = [(one, text) for one, text in zip(found, expected) if "\u2047" not in one]  # no unknown character
        assert len(known) > len(found) / 2
        for one, text in known:
            whole = " ".join(text.split())
            assert one == whole or (column == 0 and whole.startswith(one) and len(one) > 50)  # cut to 100 tokens


def test_a_split_by_hash_loses_nothing_and_parts_no_premise(glue, tmp_path):
    lines = ["premise,hypothesis,label"]
    lines += [
        f"p{i // 3} {'x ' * (i // 3 % 7)},h{i},{('neutral', 'entailment', 'contradiction')[i % 3]}" for i in range(300)
    ]
    (tmp_path / "pairs.csv").write_text("\n".join(lines) + "\n")
    options = [
        "--columns",
        "premise",
        "hypothesis",
        "--label-column",
        "label",
        "--vocab-size",
        40,
        "--valid-percent",
        20,
    ]
    assert prepare("MNLI", tmp_path / "out", "--hash-split", tmp_path / "pairs.csv", *options) is None
    premises = {split: read_back(tmp_path / "out", "input0", split) for split in ("train", "valid")}
    assert not set(premises["train"]) & set(premises["valid"])
    assert len(premises["train"]) + len(premises["valid"]) == 300
    assert 20 <= len(premises["valid"]) <= 110


@pytest.mark.parametrize(
    "line, fault",
    [
        ("9\tone\ttwo\tmaybe", "label 'maybe'"),
        ("9\tone\t \tentailment", "'sentence2' is empty"),
        ("9\tone", "2 columns"),
    ],
)
def test_a_bad_line_is_named_and_leaves_nothing(glue, tmp_path, line, fault):
    text = (glue.folder / "train.tsv").read_text(encoding="utf-8")
    (tmp_path / "bad.tsv").write_text(text + line + "\n", encoding="utf-8")
    error = prepare("RTE", tmp_path / "out", "--train", tmp_path / "bad.tsv", "--valid", glue.folder / "valid.tsv")
    assert f"bad.tsv:{2 + 40}: " in error and fault in error and "\n" not in error
    assert [path.name for path in tmp_path.iterdir()] == ["bad.tsv"]


def test_somebody_elses_folder_is_not_replaced(glue, tmp_path):
    (tmp_path / "note").write_text("mine")
    error = prepare("RTE", tmp_path, "--train", glue.folder / "train.tsv", "--valid", glue.folder / "valid.tsv")
    assert "was not made by this script" in error
    assert [path.name for path in tmp_path.iterdir()] == ["note"]


def test_training_logs_scores_and_skip_rates_and_keeps_the_best(glue):
    valid = [json.loads(line[line.index("{") :]) for line in glue.log.splitlines() if '"valid_accuracy"' in line]
    assert valid and all(0 <= float(one["valid_accuracy"]) <= 100 for one in valid)
    assert {"valid_f1", "valid_matthews", "valid_sd_flops_generation", "valid_sd_skip_encoder_ffn"} <= set(valid[-1])
    assert (glue.folder / "save" / "checkpoint_best.pt").exists()


def predict(glue, *arguments, checkpoint=None):
    """Runs the batch command in this process; returns its exit code."""
    from sd_fairseq.plugin.predict_sentences import main

    return main([str(glue.data), "--path", str(checkpoint or glue.mixed), *map(str, arguments)])


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
    from sd_fairseq.plugin.models.switchable_bart import SwitchableBARTModel

    hub = SwitchableBARTModel.from_pretrained(
        str(glue.mixed.parent), "mixed.pt", str(glue.data), bpe=None, sentencepiece_model=None
    ).eval()
    dataset = hub.task.load_dataset("valid")
    sample = dataset.collater([dataset[index] for index in range(len(dataset))])
    with torch.no_grad():
        logits = hub.model(**sample["net_input"], classification_head_name="sentence_classification_head")[0]
    expected = torch.softmax(logits, dim=-1)
    assert len(torch.unique(expected, dim=0)) > 10
    for one, row in zip(predictions(glue, tmp_path), expected):
        assert list(one["probabilities"].values()) == pytest.approx(row.tolist(), rel=1e-4)


def test_dense_predictions_skip_nothing(glue, tmp_path, capsys):
    for one in predictions(glue, tmp_path, "--dense"):
        assert "0" not in "".join(one[site] for site in SITE_FIELDS) and one["token_strategy"] == "keep"
        assert one["flops_generation"] == one["flops_generation_dense"]


def test_the_hub_predicts_one_sentence_and_a_padded_batch_alike(glue):
    from sd_fairseq.plugin.models.switchable_bart import SwitchableBARTModel

    model = str(glue.data / "sentencepiece.model")
    hub = SwitchableBARTModel.from_pretrained(
        str(glue.mixed.parent), "mixed.pt", str(glue.data), bpe="sentencepiece", sentencepiece_model=model
    ).eval()
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
    from sd_fairseq.plugin.predict_sentences import main

    assert main([str(data), "--path", str(glue.mixed), "--input", str(tmp_path / "in.jsonl")]) == 1
    assert "in.jsonl:1: " in capsys.readouterr().err
