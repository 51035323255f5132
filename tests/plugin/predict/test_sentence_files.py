"""What is read from GLUE's files is what stands there; every fault ends in one line naming file, line and fault."""

import csv
import gzip
import json

import pytest

from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.plugin.predict.sentence_files import TASKS, SentenceTask, read_examples, shorten

ROWS = [
    ("0", 'A "quoted" début', "It's 3\u00a0o'clock", "entailment"),
    ("7", '"', "a 'b", "not_entailment"),
    ("12", "plain", "text", "entailment"),
]
HEADER = ("index", "sentence1", "sentence2", "label")


def write(path, ending):
    """The same rows in every format."""
    if ending.startswith("jsonl"):
        text = "".join(json.dumps(dict(zip(HEADER, row))) + "\n" for row in ROWS)
    elif ending.startswith("tsv"):
        text = "".join("\t".join(row) + "\n" for row in [HEADER, *ROWS])
    else:
        with open(str(path), "w", encoding="utf-8", newline="") as stream:
            csv.writer(stream).writerows([HEADER, *ROWS])
        text = path.read_text(encoding="utf-8")
    data = text.encode("utf-8")
    path.write_bytes(gzip.compress(data) if ending.endswith("gz") else data)
    return str(path)


@pytest.mark.parametrize("ending", ["tsv", "csv", "jsonl", "tsv.gz", "csv.gz", "jsonl.gz"])
def test_every_format_gives_the_same_examples(tmp_path, ending):
    examples = read_examples(write(tmp_path / f"dev.{ending}", ending), TASKS["RTE"])
    assert [one.id for one in examples] == ["0", "7", "12"]
    assert [one.label for one in examples] == [row[3] for row in ROWS]
    assert examples[0].texts == ('A "quoted" début', "It's 3 o'clock")
    assert examples[1].texts == ('"', "a 'b")
    assert examples[1].place.endswith(f"dev.{ending}:{2 if ending.startswith('jsonl') else 3}")


def test_a_file_without_labels_is_read_where_labels_are_not_needed(tmp_path):
    path = tmp_path / "test.tsv"
    path.write_text("index\tsentence\n0\tfine\n")
    assert read_examples(str(path), TASKS["SST-2"], needs_labels=False)[0].label is None
    with pytest.raises(InputError, match=r"test.tsv:2: no column 'label' \(found: index, sentence\)"):
        read_examples(str(path), TASKS["SST-2"])


@pytest.mark.parametrize(
    "name, content, fault",
    [
        ("a.tsv", "text\tlabel\ngood\t1\n", "a.tsv:2: no column 'sentence' .found: text, label"),
        ("a.tsv", "sentence\tlabel\ngood\t1\nbad\t2\n", "a.tsv:3: label '2' is not one of 0, 1"),
        ("a.tsv", "sentence\tlabel\ngood\t1\n \t0\n", "a.tsv:3: column 'sentence' is empty"),
        ("a.tsv", "sentence\tlabel\ngood\n", "a.tsv:2: 1 columns, the header has 2"),
        ("a.tsv", "sentence\tlabel\n", "a.tsv: holds no examples"),
        ("a.tsv", b"sentence\tlabel\ngood\t1\n\xff\t1\n", "a.tsv:3: not UTF-8"),
        ("a.csv", 'sentence,label\n"open,1\n', "a.csv:"),
        ("a.jsonl", '{"sentence": "good", "label": 1}\n{"sentence"\n', "a.jsonl:2: not valid JSON"),
        ("a.jsonl", '["good", 1]\n', "a.jsonl:1: found a JSON list"),
        ("a.jsonl", '{"sentence": 5, "label": 1}\n', "a.jsonl:1: column 'sentence' is 5, expected a text"),
        ("a.jsonl", '{"label": 1}\n', "a.jsonl:1: no column 'sentence'"),
        ("a.jsonl.gz", b"not gzip", "a.jsonl.gz: cannot be read"),
        ("a.txt", "sentence\n", "expected a .tsv, .csv or .jsonl file"),
    ],
)
def test_a_fault_is_named_with_file_and_line(tmp_path, name, content, fault):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    with pytest.raises(InputError, match=fault):
        read_examples(str(path), TASKS["SST-2"])


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(InputError, match="no/such.tsv: cannot be read"):
        read_examples("no/such.tsv", SentenceTask(("a",), "b", ("c",)))


def test_the_longest_text_gives_way_until_all_fit():
    texts = [list("abc"), list("ABCDEFGH")]
    assert shorten(texts, 0) == shorten(texts, 14) == texts  # 11 pieces, <s> and two </s>
    assert shorten(texts, 11) == [list("abc"), list("ABCDE")]
    assert shorten(texts, 7) == [list("ab"), list("AB")]
    assert shorten(texts, 1) == [["a"], ["A"]]  # no text disappears


def test_labels_on_some_lines_only_are_refused(tmp_path):
    path = tmp_path / "some.jsonl"
    path.write_text('{"sentence": "a", "label": "1"}\n{"sentence": "b"}\n', encoding="utf-8")
    with pytest.raises(InputError, match="some.jsonl:2: no label"):
        read_examples(str(path), TASKS["SST-2"], needs_labels=False)


def test_a_column_of_labels_that_is_asked_for_must_be_there(tmp_path):
    path = tmp_path / "none.tsv"
    path.write_text("sentence\na\n", encoding="utf-8")
    assert read_examples(str(path), TASKS["SST-2"], needs_labels=False)[0].label is None
    with pytest.raises(InputError, match="no column 'label'"):
        read_examples(str(path), TASKS["SST-2"], needs_labels=True)
