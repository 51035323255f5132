"""examples/glue/prepare.py: the binary data hold what the files say, and bad files leave nothing."""

import json
from types import SimpleNamespace

import pytest
from dropin.workers import ROOT
from glue import make_data, prepare, read_back

GPT2 = ROOT.parent / "shared" / "data" / "gpt2_bpe"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    pytest.importorskip("fairseq")
    folder = tmp_path_factory.mktemp("glue")
    return SimpleNamespace(folder=folder, rows=make_data(folder))


@pytest.mark.parametrize("split", ["train", "valid"])
def test_binary_data_hold_the_texts_and_labels_in_their_order(data, split):
    for column, place in enumerate(["input0", "input1", "label"]):
        found = read_back(data.folder / "data", place, split)
        expected = [row[column] for row in data.rows[split]]
        assert len(found) == len(expected)
        known = [(one, text) for one, text in zip(found, expected) if "\u2047" not in one]  # no unknown character
        assert len(known) > len(found) / 2
        for one, text in known:
            whole = " ".join(text.split())
            assert one == whole or (column == 0 and whole.startswith(one) and len(one) > 50)  # cut to 100 tokens


def test_a_split_by_hash_loses_nothing_and_parts_no_premise(data, tmp_path):
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
    held_out = [json.loads(line) for line in (tmp_path / "out" / "valid.jsonl").read_text().splitlines()]
    assert [" ".join(one["premise"].split()) for one in held_out] == premises["valid"]
    assert [one["label"] for one in held_out] == read_back(tmp_path / "out", "label", "valid")


@pytest.mark.parametrize(
    "line, fault",
    [
        ("9\tone\ttwo\tmaybe", "label 'maybe'"),
        ("9\tone\t \tentailment", "'sentence2' is empty"),
        ("9\tone", "2 columns"),
    ],
)
def test_a_bad_line_is_named_and_leaves_nothing(data, tmp_path, line, fault):
    text = (data.folder / "train.tsv").read_text(encoding="utf-8")
    (tmp_path / "bad.tsv").write_text(text + line + "\n", encoding="utf-8")
    error = prepare("RTE", tmp_path / "out", "--train", tmp_path / "bad.tsv", "--valid", data.folder / "valid.tsv")
    assert f"bad.tsv:{2 + 40}: " in error and fault in error and "\n" not in error
    assert [path.name for path in tmp_path.iterdir()] == ["bad.tsv"]


def test_a_failure_on_the_way_leaves_nothing_and_keeps_what_was_there(data, tmp_path):
    """And a good run leaves nothing but its folder."""
    files = ["--train", data.folder / "train.tsv", "--valid", data.folder / "valid.tsv"]
    assert prepare("RTE", tmp_path / "out", *files, "--vocab-size", 300) is None
    before = (tmp_path / "out" / "input0" / "dict.txt").read_text()
    error = prepare("RTE", tmp_path / "out", *files, "--vocab-size", 100000)
    assert "--vocab-size 100000" in error and "\n" not in error
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "input0" / "dict.txt").read_text() == before


@pytest.mark.skipif(not GPT2.exists(), reason=f"{GPT2} is not there")
def test_gpt2_bpe_gives_barts_own_symbols(tmp_path):
    from fairseq.data import Dictionary, data_utils
    from fairseq.data.encoders.gpt2_bpe_utils import get_encoder

    texts = ["A début, so to speak .", "it 's 3 o'clock"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"sentence": one, "label": 1}) + "\n" for one in texts))
    files = ["--train", tmp_path / "a.jsonl", "--valid", tmp_path / "a.jsonl", "--bpe", "gpt2", "--gpt2-folder", GPT2]
    assert prepare("SST-2", tmp_path / "out", *files) is None
    dictionary = Dictionary.load(str(tmp_path / "out" / "input0" / "dict.txt"))
    assert dictionary.add_symbol("<mask>") == 50264 and len(dictionary) == 50265  # bart.large's embedding
    bpe = get_encoder(str(GPT2 / "encoder.json"), str(GPT2 / "vocab.bpe"))
    dataset = data_utils.load_indexed_dataset(str(tmp_path / "out" / "input0" / "valid"), dictionary)
    for index, text in enumerate(texts):
        symbols = dictionary.string(dataset[index]).split(" ")
        assert [int(one) for one in symbols] == bpe.encode(text) and bpe.decode(bpe.encode(text)) == text


def test_somebody_elses_folder_is_not_replaced(data, tmp_path):
    (tmp_path / "note").write_text("mine")
    error = prepare("RTE", tmp_path, "--train", data.folder / "train.tsv", "--valid", data.folder / "valid.tsv")
    assert "was not made by this script" in error
    assert [path.name for path in tmp_path.iterdir()] == ["note"]
