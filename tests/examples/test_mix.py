"""Mixed sources: every pair is somebody's, no document is in two splits, the same bytes every time."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "examples" / "tradeoff" / "mix.py"


def write(path, pairs):
    with gzip.open(str(path), "wt", encoding="utf-8") as text:
        text.writelines((pair if isinstance(pair, str) else json.dumps(pair)) + "\n" for pair in pairs)


def mix(*arguments):
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)


@pytest.fixture
def sources(tmp_path):
    """30 pairs of texts, one of them twice, and 12 of sentences with several references."""
    texts = [{"document": f"text  {i}", "summary": f"t{i}"} for i in range(30)]
    write(tmp_path / "texts.jsonl.gz", [*texts, texts[0]])
    papers = [{"source": [f"Sentence {i}.", "Two."], "target": [f"first {i}", "other"]} for i in range(12)]
    write(tmp_path / "papers.jsonl.gz", papers)
    return [f"--source=texts={tmp_path}/texts.jsonl.gz:20", f"--source=papers={tmp_path}/papers.jsonl.gz:10"]


def read(folder):
    found = {}
    for split in ("train", "valid", "test"):
        with gzip.open(str(folder / (split + ".jsonl.gz")), "rt", encoding="utf-8") as lines:
            found[split] = [json.loads(line) for line in lines]
    return found


def test_every_source_is_in_every_split_and_no_document_in_two(sources, tmp_path):
    process = mix(tmp_path / "out", *sources)
    assert process.returncode == 0, process.stderr
    assert process.stdout == "train 24, valid 3, test 3\n"
    splits = read(tmp_path / "out")
    for split, pairs in splits.items():
        assert {pair["domain"] for pair in pairs} == {"texts", "papers"}, split
    documents = [pair["document"] for pairs in splits.values() for pair in pairs]
    assert len(set(documents)) == len(documents) == 30
    pairs = {pair["document"]: pair["summary"] for part in splits.values() for pair in part}
    assert any(summary == "first 3" and document == "Sentence 3. Two." for document, summary in pairs.items())
    assert all("  " not in document for document in documents)


def test_the_same_bytes_every_time_and_in_no_order_of_the_files(sources, tmp_path):
    assert mix(tmp_path / "a", *sources).returncode == mix(tmp_path / "b", *reversed(sources)).returncode == 0
    for split in ("train", "valid", "test"):
        name = split + ".jsonl.gz"
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    domains = [pair["domain"] for pair in read(tmp_path / "a")["train"]]
    assert domains != sorted(domains) and domains != sorted(domains, reverse=True)


@pytest.mark.parametrize(
    "source,said",
    [
        ("texts", "expected NAME=FILE:LIMIT"),
        ("a={folder}/none.jsonl.gz:10", "none.jsonl.gz:1: cannot be read"),
        ("a={folder}/texts.jsonl.gz:40", "30 different pairs, 40 wanted"),
        ("a={folder}/broken.jsonl.gz:10", "broken.jsonl.gz:2: cannot be read as gzipped JSON lines"),
        ("a={folder}/other.jsonl.gz:10", "other.jsonl.gz:1: expected an object with document and summary"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(sources, tmp_path, source, said):
    write(tmp_path / "broken.jsonl.gz", [{"document": "a", "summary": "b"}, "{"])
    write(tmp_path / "other.jsonl.gz", [{"text": "a"}])
    process = mix(tmp_path / "out", "--source", source.format(folder=tmp_path))
    assert process.returncode == 1 and process.stderr.count("\n") == 1
    assert process.stderr.startswith("mix.py: error: ") and said in process.stderr
    assert not (tmp_path / "out").exists()
