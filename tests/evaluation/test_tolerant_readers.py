"""Blank lines and a mark of byte order say nothing, in every reader."""

import pytest
from traces import make_record

from sd_fairseq.decision.trace import read_trace, to_json_line
from sd_fairseq.evaluation.squad_score import read_mapping

MARK = b"\xef\xbb\xbf"


def test_a_trace_with_a_mark_and_blank_lines(tmp_path):
    record = make_record(3)
    (tmp_path / "trace").write_bytes(MARK + b"\n\n" + to_json_line(record).encode() + b"\n \n")
    assert read_trace(str(tmp_path / "trace")) == [record]


def test_predictions_with_a_mark(tmp_path):
    (tmp_path / "answers.json").write_bytes(MARK + b'{"a": "b"}\n\n')
    assert read_mapping(str(tmp_path / "answers.json"), (str,)) == {"a": "b"}


@pytest.mark.parametrize("name", ["x.csv", "x.tsv"])
def test_a_cell_may_hold_a_book(tmp_path, name):
    """Python's csv module takes 131,072 characters unless told otherwise."""
    from sd_fairseq.user_files import read_table

    mark = "," if name == "x.csv" else "\t"
    (tmp_path / name).write_text(f"a{mark}label\n{'word ' * 100000}{mark}yes\n", encoding="utf-8")
    ((_, row),) = read_table(str(tmp_path / name), mark)
    assert len(row["a"]) == 500000 and row["label"] == "yes"


@pytest.mark.parametrize("name, lines", [
    ("x.tsv", ["a\tlabel", "", "one\tyes", "", ""]),
    ("x.csv", ["a,label", "", "one,yes", "", ""]),
    ("x.jsonl", ['{"a": "one", "label": "yes"}', "", " ", ""]),
])  # fmt: skip
def test_tables_with_a_mark_and_blank_lines(tmp_path, name, lines):
    pytest.importorskip("fairseq")
    from sd_fairseq.plugin.predict.sentence_files import _read_rows

    (tmp_path / name).write_bytes(MARK + "\n".join(lines).encode())
    assert [row for _, row in _read_rows(str(tmp_path / name))] == [{"a": "one", "label": "yes"}]


@pytest.mark.parametrize("text", ['{"a": "\\ud800"}', '{"\\uDFFF": 1}', '["x", {"a": ["\\udc00 b"]}]'])
def test_half_a_surrogate_pair_is_refused_where_it_is_read(text):
    """JSON can say it, no file can hold it: it would end the writing of a result."""
    from sd_fairseq.errors import InputError
    from sd_fairseq.user_files import parse_json

    with pytest.raises(InputError, match="x:3: holds half of a surrogate pair"):
        parse_json(text, "x:3")
    assert parse_json('"\\ud83d\\ude00 \\\\ud800"', "x") == "\U0001f600 \\ud800"
