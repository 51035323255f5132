"""How .jsonl.gz pairs become fairseq's format."""

import gzip
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from warm import python

pytest.importorskip("sentencepiece")
pytest.importorskip("fairseq")

QUICKSTART = Path(__file__).resolve().parents[2] / "examples" / "quickstart"
PAIRS = QUICKSTART.parent / "data" / "debian"
FILES = {"train": ("train", 0), "valid": ("valid", 0), "test": ("valid", 100)}  # split -> shipped file, first pair


def load_script(name):
    """Import a script of the quick start as a module."""
    spec = importlib.util.spec_from_file_location("quickstart_" + name, str(QUICKSTART / (name + ".py")))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


prepare = load_script("prepare")


def read_committed(split):
    name, first = FILES[split]
    with gzip.open(str(PAIRS / (name + ".jsonl.gz")), "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines][first : first + 140]


def write_split(folder, split, lines):
    with gzip.open(str(folder / (split + ".jsonl.gz")), "wt", encoding="utf-8") as text:
        text.writelines(line + "\n" for line in lines)


@pytest.fixture(autouse=True)
def warm_processes(monkeypatch):
    """What prepare.py starts need not import torch again."""
    monkeypatch.setattr(sys, "executable", python())


@pytest.fixture
def small(tmp_path):
    """A folder with 60 + 5 + 5 of the committed pairs."""
    folder = tmp_path / "small"
    folder.mkdir()
    for split, count in (("train", 60), ("valid", 5), ("test", 5)):
        write_split(folder, split, [json.dumps(pair) for pair in read_committed(split)[:count]])
    return folder


def test_prepares_what_fairseq_reads_and_only_once(small, tmp_path, capsys):
    from fairseq.data import Dictionary, indexed_dataset

    out = tmp_path / "out"
    prepare.prepare(str(small), str(out), 200, "unigram")
    dictionary = Dictionary.load(str(out / "data-bin" / "dict.source.txt"))
    assert dictionary == Dictionary.load(str(out / "data-bin" / "dict.target.txt"))
    assert len(dictionary) == 201  # SentencePiece's <unk> <s> </s> gave way to fairseq's four
    assert dictionary.count[dictionary.unk()] == 1
    for split, count in (("train", 60), ("valid", 5), ("test", 5)):
        for side, key in (("source", "document"), ("target", "summary")):
            raw = (out / "raw" / "{}.{}".format(split, side)).read_text(encoding="utf-8").splitlines()
            assert raw == [" ".join(pair[key].split()) for pair in read_committed(split)[:count]]
            prefix = str(out / "data-bin" / "{}.source-target.{}".format(split, side))
            rows = indexed_dataset.make_dataset(prefix, "mmap")
            pieces = (out / "pieces" / "{}.{}".format(split, side)).read_text(encoding="utf-8").splitlines()
            assert len(rows) == count
            if split == "train":
                assert dictionary.string(rows[0]) == pieces[0]
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    capsys.readouterr()
    prepare.prepare(str(small), str(out), 200, "unigram")
    assert "up to date" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert sorted(os.listdir(str(tmp_path))) == ["out", "small"]


def make_quickly(monkeypatch):
    """Leave out fairseq-preprocess, whose start takes seconds."""

    def write_empty_files(folder, texts, splits, destination):
        os.mkdir(os.path.join(folder, destination))
        for split in splits:
            for name in ("source.bin", "source.idx", "target.bin", "target.idx"):
                open(os.path.join(folder, destination, "{}.source-target.{}".format(split, name)), "w").close()

    monkeypatch.setattr(prepare, "binarise", write_empty_files)


def test_other_input_or_options_or_damage_make_it_anew(small, tmp_path, monkeypatch):
    make_quickly(monkeypatch)
    out = tmp_path / "out"
    prepare.prepare(str(small), str(out), 200, "unigram")
    prepare.prepare(str(small), str(out), 210, "bpe")
    assert len((out / "dict.txt").read_text(encoding="utf-8").splitlines()) == 207
    (out / "raw" / "test.source").unlink()
    prepare.prepare(str(small), str(out), 210, "bpe")
    assert (out / "raw" / "test.source").exists()
    write_split(small, "test", ['{"document": "another text", "summary": "text"}'])
    prepare.prepare(str(small), str(out), 210, "bpe")
    assert (out / "raw" / "test.source").read_text(encoding="utf-8") == "another text\n"


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_sentencepiece_is_the_same_every_time(tmp_path, model_type):
    texts = [pair["document"] for pair in read_committed("train")[:80]]
    models = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        processor = prepare.train_sentencepiece(texts, str(tmp_path / name), 300, model_type)
        models.append([processor.id_to_piece(i) for i in range(len(processor))])
        assert processor.decode(processor.encode(texts[0], out_type=str)) == texts[0]
    assert models[0] == models[1] and len(models[0]) == 300


BAD_LINES = {
    "empty line": ("", "empty line, expected a JSON object"),
    "malformed": ('{"document": "a", ', "not valid JSON"),
    "list": ("[1]", "found a JSON list, expected an object"),
    "missing key": ('{"document": "a text", "name": "x"}', "no key 'summary', found document, name"),
    "not a string": ('{"document": 3, "summary": "x"}', "'document' is a int, expected a string"),
    "blank text": ('{"document": "a", "summary": " \\n "}', "'summary' is empty"),
}


@pytest.mark.parametrize("bad", sorted(BAD_LINES))
def test_bad_line_is_named_and_leaves_nothing(small, tmp_path, bad):
    line, expected = BAD_LINES[bad]
    write_split(small, "valid", ['{"document": "a text", "summary": "text"}', line])
    with pytest.raises(prepare.DataError) as caught:
        prepare.prepare(str(small), str(tmp_path / "out"), 200, "unigram")
    assert str(caught.value).startswith("{}:2: ".format(small / "valid.jsonl.gz")) and expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert os.listdir(str(tmp_path)) == ["small"]


def test_damaged_missing_or_empty_file_is_named(small, tmp_path):
    packed = small / "train.jsonl.gz"
    packed.write_bytes(packed.read_bytes()[:-20])
    with pytest.raises(prepare.DataError, match=r"train.jsonl.gz:\d+: cannot be read as gzipped UTF-8 text"):
        prepare.prepare(str(small), str(tmp_path / "out"), 200, "unigram")
    write_split(small, "train", [])
    with pytest.raises(prepare.DataError, match="train.jsonl.gz: holds no pairs"):
        prepare.prepare(str(small), str(tmp_path / "out"), 200, "unigram")
    packed.unlink()
    with pytest.raises(prepare.DataError, match="train.jsonl.gz: No such file"):
        prepare.prepare(str(small), str(tmp_path / "out"), 200, "unigram")


def test_impossible_vocabulary_is_refused(small, tmp_path):
    for size in (5, 100000):
        with pytest.raises(prepare.DataError, match="--vocab-size {}: ".format(size)):
            prepare.prepare(str(small), str(tmp_path / "out"), size, "unigram")
    assert os.listdir(str(tmp_path)) == ["small"]


def test_folder_of_somebody_else_is_left_alone(small, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(prepare.DataError, match="mine: was not made by this script"):
        prepare.prepare(str(small), str(tmp_path / "mine"), 200, "unigram")
    assert os.listdir(str(tmp_path / "mine")) == ["thesis.txt"]


def test_failed_preprocessing_leaves_what_was_there(small, tmp_path, monkeypatch):
    make_quickly(monkeypatch)
    out = tmp_path / "out"
    prepare.prepare(str(small), str(out), 200, "unigram")

    def fail(*_):
        raise prepare.DataError("fairseq-preprocess failed with exit code 1")

    monkeypatch.setattr(prepare, "binarise", fail)
    with pytest.raises(prepare.DataError, match="exit code 1"):
        prepare.prepare(str(small), str(out), 210, "unigram")
    assert json.loads((out / "stamp.json").read_text(encoding="utf-8"))["vocab_size"] == 200
    assert sorted(os.listdir(str(tmp_path))) == ["out", "small"]


def test_command_line_ends_with_one_line(small, tmp_path):
    write_split(small, "train", ["", "{}"])
    command = [sys.executable, str(QUICKSTART / "prepare.py"), str(tmp_path / "out"), "--data", str(small)]
    outcome = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")
    expected = "prepare.py: error: {}:1: empty line, expected a JSON object\n".format(small / "train.jsonl.gz")
    assert (outcome.returncode, outcome.stdout, outcome.stderr) == (1, "", expected)


def test_the_vocabulary_of_a_folder_made_before_reads_other_data(small, tmp_path):
    prepare.prepare(str(small), str(tmp_path / "first"), 300, "unigram")
    lines = [json.dumps(pair) for pair in read_committed("train")[100:140]]
    write_split(small, "train", lines)
    prepare.prepare(str(small), str(tmp_path / "second"), 300, "unigram", str(tmp_path / "first"))
    for name in ("sentencepiece.model", "dict.txt"):
        assert (tmp_path / "second" / name).read_bytes() == (tmp_path / "first" / name).read_bytes()
    pieces = (tmp_path / "second" / "pieces" / "train.source").read_text(encoding="utf-8").splitlines()
    assert len(pieces) == 40
    with pytest.raises(prepare.DataError, match="--vocabulary|No such file"):
        prepare.prepare(str(small), str(tmp_path / "third"), 300, "unigram", str(tmp_path / "nowhere"))
    assert not (tmp_path / "third").exists()


def test_spans_are_consecutive_pieces_of_their_document_from_the_beginning_of_a_word(small, tmp_path):
    prepare.prepare(str(small), str(tmp_path / "out"), 300, "unigram", span=True)
    read = lambda end: (tmp_path / "out" / end).read_text(encoding="utf-8").splitlines()  # noqa: E731
    documents, spans = read("pieces/train.source"), read("span/train.target")
    assert documents == read("span/train.source") and len(spans) == 60
    starts = set()
    for document, span in zip(documents, spans):
        assert span.startswith("\u2581") and f" {span} " in f" {document} " and len(span.split()) <= 16
        starts.add(len(document[: f" {document} ".index(f" {span} ")].split()))
    assert len(starts) > 20 and (tmp_path / "out" / "span-bin" / "train.source-target.source.bin").is_file()
