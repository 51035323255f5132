"""Whatever a file holds, its reader gives a value or one line that names it; the file stays as it was."""

import os
import random
import zipfile

import pytest
from broken_files import RIGHT, broken, compressed, damage, damaged
from hypothesis import given, settings
from hypothesis import strategies as st

from sd_fairseq.decision.trace import read_trace
from sd_fairseq.errors import InputError
from sd_fairseq.evaluation.generation_output import read_generation
from sd_fairseq.evaluation.rouge_words import read_lines
from sd_fairseq.evaluation.squad_data import read_questions
from sd_fairseq.evaluation.squad_score import read_mapping

pytest.importorskip("fairseq")
import torch  # noqa: E402

from sd_fairseq.plugin.guards.dictionaries import read_dictionary  # noqa: E402
from sd_fairseq.plugin.guards.preflight import check_checkpoint  # noqa: E402
from sd_fairseq.plugin.predict.sentence_files import TASKS, read_examples  # noqa: E402
from sd_fairseq.plugin.predict.sentences import read_prepared  # noqa: E402
from sd_fairseq.study.path_analysis import read_pairs  # noqa: E402

LONG = os.environ.get("SD_FUZZ") == "long"
VARIANTS = 24 if LONG else 3  # more made of each file that is drawn


def examples(path):
    return read_examples(path, TASKS["SST-2"], needs_labels=False)


READERS = {  # kind -> name of the file, reader
    "jsonl": ("x.jsonl", examples),
    "tsv": ("x.tsv", examples),
    "csv": ("x.csv", examples),
    "squad": ("x.json", lambda path: read_questions(path, needs_answers=False)),
    "squad.jsonl": ("x.jsonl", read_questions),
    "predictions": ("x.json", lambda path: read_mapping(path, (str,))),
    "trace": ("x.jsonl", read_trace),
    "generation": ("x.txt", lambda path: read_generation([path])),
    "texts": ("x.txt", read_lines),
    "pairs": ("x.jsonl.gz", read_pairs),
    "dictionary": ("dict.source.txt", read_dictionary),
    "prepared": ("prepared.json", lambda path: read_prepared(os.path.dirname(path))),
}


def outcome(reader, path, content):
    """Reads a file of that content; returns the value, or None after one line."""
    path.write_bytes(content)
    try:
        value = reader(str(path))
    except InputError as error:
        assert str(path.parent) in str(error) and str(error).count("\n") == 0, str(error)
        assert len(str(error)) < 2000
        value = None
    assert path.read_bytes() == content and os.listdir(str(path.parent)) == [path.name]
    return value


def test_the_right_files_are_read(tmp_path):
    for kind, (name, reader) in READERS.items():
        content = RIGHT[kind]
        if name.endswith(".gz"):
            import gzip

            content = gzip.compress(content)
        (tmp_path / kind).mkdir()
        assert outcome(reader, tmp_path / kind / name, content), kind
        blanks = content + b"\n \n\n" if not name.endswith(".gz") else content
        if kind not in ("generation", "texts"):
            assert outcome(reader, tmp_path / kind / name, b"\xef\xbb\xbf" + blanks if blanks != content else content)


@pytest.mark.parametrize("kind", READERS)
def test_any_file_is_a_value_or_one_line(tmp_path, given_files, kind):
    name, reader = READERS[kind]
    contents = broken(kind)

    @given(compressed(contents) if name.endswith(".gz") else contents, st.integers(0, 2**32))
    def check(content, seed):
        generator = random.Random(seed)
        for some in {content, *(damage(content, generator) for _ in range(VARIANTS))}:
            given_files[kind] += 1
            outcome(reader, tmp_path / name, some)

    check()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A small checkpoint of fairseq, in both of torch.save's formats."""
    import argparse

    folder = tmp_path_factory.mktemp("checkpoint")
    model = {"encoder.embed_tokens.weight": torch.randn(5, 4), "decoder.bias": torch.arange(3)}
    options = argparse.Namespace(arch="bart_base", task="translation")
    state = {"args": options, "model": model, "extra_state": {"a": [1]}}
    found = {}
    for name, new in (("zip", True), ("legacy", False)):
        torch.save(state, str(folder / name), _use_new_zipfile_serialization=new)
        found[name] = (folder / name).read_bytes()
        check_checkpoint(str(folder / name), "--path")
    return found


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_a_checkpoint_cut_at_any_byte_is_refused(tmp_path, given_files, checkpoint, form):
    content, path = checkpoint[form], tmp_path / "c.pt"

    sizes = range(len(content)) if LONG else [*range(0, len(content), 41), *range(len(content) - 30, len(content))]
    for size in sizes:
        given_files["checkpoint cut, " + form] += 1
        path.write_bytes(content[:size])
        with pytest.raises(InputError, match="truncated or not a checkpoint"):
            check_checkpoint(str(path), "--path")
    assert os.listdir(str(tmp_path)) == ["c.pt"]


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_a_damaged_checkpoint_is_taken_or_one_line_and_runs_nothing(tmp_path, given_files, checkpoint, form):
    @settings(max_examples=settings.default.max_examples // 2)
    @given(damaged(checkpoint[form]))
    def check(content):
        given_files["checkpoint damaged, " + form] += 1
        outcome(lambda path: check_checkpoint(path, "--path"), tmp_path / "c.pt", content)

    check()


def test_a_checkpoint_s_pickle_may_be_anything(tmp_path, given_files, checkpoint):
    """The archive is whole, what it holds is not."""
    import io

    with zipfile.ZipFile(io.BytesIO(checkpoint["zip"])) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    table = next(name for name in files if name.endswith("data.pkl"))

    @settings(max_examples=max(15, settings.default.max_examples // 10))  # torch looks at each, which takes longest
    @given(damaged(files[table]))
    def check(pickle_bytes):
        given_files["checkpoint's pickle"] += 1
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, pickle_bytes if name == table else content)
        outcome(lambda path: check_checkpoint(path, "--path"), tmp_path / "c.pt", packed.getvalue())

    check()
