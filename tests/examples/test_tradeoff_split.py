"""The halves of a validation set: disjoint, whole, and the same bytes for everyone."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "tradeoff" / "split.py"


def split(data, out):
    """Runs the command; returns the finished process."""
    command = [sys.executable, str(SCRIPT), str(data), str(out)]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)


def write_pairs(path, count, ending="\n"):
    """Writes pairs and returns their lines."""
    lines = [json.dumps({"document": f"text {i}", "summary": f"word {i}"}) for i in range(count)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(("\n".join(lines) + ending).encode()))
    return lines


def read_pairs(path):
    return gzip.decompress(path.read_bytes()).decode().splitlines()


@pytest.mark.parametrize("count, ending", [(7, "\n"), (8, ""), (2, "\n")])
def test_the_halves_are_disjoint_and_together_the_whole_in_a_fixed_order(tmp_path, count, ending):
    train = write_pairs(tmp_path / "data" / "train.jsonl.gz", 3)
    whole = write_pairs(tmp_path / "data" / "valid.jsonl.gz", count, ending)
    finished = split(tmp_path / "data", tmp_path / "out")
    assert finished.returncode == 0, finished.stderr
    valid, test = (read_pairs(tmp_path / "out" / f"{name}.jsonl.gz") for name in ("valid", "test"))
    assert valid == [line for number, line in enumerate(whole, start=1) if number % 2 == 1]
    assert not set(valid) & set(test) and sorted(valid + test) == sorted(whole)
    assert read_pairs(tmp_path / "out" / "train.jsonl.gz") == train


def test_the_split_gives_the_same_bytes_for_the_same_lines(tmp_path):
    for name in ("one", "two"):
        for part in ("train", "valid"):
            path = tmp_path / name / f"{part}.jsonl.gz"
            write_pairs(path, 6)
            if name == "two":  # packed at another time, under another name, by another level
                with gzip.GzipFile(str(path), "wb", compresslevel=1, mtime=12345) as packed:
                    packed.write(gzip.decompress((tmp_path / "one" / path.name).read_bytes()))
        assert split(tmp_path / name, tmp_path / f"{name}-out").returncode == 0
    for part in ("train", "valid", "test"):
        one, two = ((tmp_path / f"{name}-out" / f"{part}.jsonl.gz").read_bytes() for name in ("one", "two"))
        assert one == two and one[4:8] == bytes(4)  # no time in the header


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "valid.jsonl.gz: no such file"),
        (b"not gzip", "valid.jsonl.gz: cannot be read as gzip"),
        (gzip.compress(b"{}\n{}\n", mtime=0)[:-9], "valid.jsonl.gz: cannot be read as gzip"),
        (gzip.compress(b"", mtime=0), "valid.jsonl.gz: holds no pairs"),
        (gzip.compress(b"{}\n\n{}\n", mtime=0), "valid.jsonl.gz:2: empty line"),
        (gzip.compress(b"{}\n", mtime=0), "one pair cannot be halved"),
    ],
)
def test_a_file_that_cannot_be_split_is_named_in_one_line_and_nothing_is_written(tmp_path, content, message):
    write_pairs(tmp_path / "data" / "train.jsonl.gz", 3)
    if content is not None:
        (tmp_path / "data" / "valid.jsonl.gz").write_bytes(content)
    finished = split(tmp_path / "data", tmp_path / "out")
    assert finished.returncode == 1 and message in finished.stderr and finished.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_split_never_halves_a_folder_in_place(tmp_path):
    for part in ("train", "valid"):
        write_pairs(tmp_path / f"{part}.jsonl.gz", 4)
    finished = split(tmp_path, str(tmp_path) + "/.")
    assert finished.returncode == 1 and "OUT is DATA" in finished.stderr
    assert len(read_pairs(tmp_path / "valid.jsonl.gz")) == 4
