"""The shipped pairs are the ones that their README describes, and what results were made of."""

import gzip
import hashlib
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "examples" / "data" / "debian"
LINE = re.compile(r"\| `(\w+)\.jsonl\.gz` \| ([\d,]+) \| ([\d,]+) \| `(\w+)` \|")


@pytest.fixture(scope="module")
def described():
    found = LINE.findall((FOLDER / "README.md").read_text(encoding="utf-8"))
    return {name: (int(pairs.replace(",", "")), int(size.replace(",", "")), sha) for name, pairs, size, sha in found}


def read(name):
    with gzip.open(str(FOLDER / (name + ".jsonl.gz")), "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def test_the_files_are_those_of_the_readme(described):
    assert (
        set(described) == {path.name[: -len(".jsonl.gz")] for path in FOLDER.glob("*.jsonl.gz")} == {"train", "valid"}
    )
    for name, (pairs, size, sha) in described.items():
        content = (FOLDER / (name + ".jsonl.gz")).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (size, sha)
        assert len(read(name)) == pairs


def test_no_source_package_is_on_both_sides_and_every_text_names_its_package():
    train, valid = read("train"), read("valid")
    sources = [{pair["source"] for pair in side} for side in (train, valid)]
    assert not sources[0] & sources[1]
    for pair in train + valid:
        assert pair["package"] and pair["document"].strip() and pair["summary"].strip()


def test_the_vocabulary_of_the_base_covers_the_shipped_texts():
    sentencepiece = pytest.importorskip("sentencepiece")
    base = ROOT / "results" / "debian" / "base"
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(base / "sentencepiece.model"))
    known = {line.split(" ")[0] for line in (base / "dict.txt").read_text(encoding="utf-8").splitlines()}
    texts = [pair[side] for pair in read("valid")[:200] for side in ("document", "summary")]
    found = [piece for text in texts for piece in pieces.encode(text, out_type=str)]
    assert len(found) > 10000 and sum(piece not in known for piece in found) < 0.002 * len(found)
