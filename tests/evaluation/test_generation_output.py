"""Reading fairseq-generate's output."""

import pytest
from traces import make_texts, write_output

from sd_fairseq.evaluation.generation_output import read_generation


def test_texts_come_back_by_id(tmp_path):
    references, hypotheses = make_texts(7), make_texts(7, seed=5)
    hypotheses[3] = ""  # a search may end at once
    write_output(tmp_path / "out", hypotheses, references)
    output = read_generation([str(tmp_path / "out")])
    assert output.hypotheses == hypotheses and output.references == references and output.ids == list(range(7))
    assert output.sources == {index: "source" for index in range(7)}


def test_a_text_keeps_the_separators_within_it(tmp_path):
    (tmp_path / "out").write_bytes("T-0\tone\u2028two\rthree\tfour\nD-0\t-0.1\ta\tb \u00e9\r\n".encode())
    output = read_generation([str(tmp_path / "out")])
    assert output.references == {0: "one\u2028two\rthree\tfour"} and output.hypotheses == {0: "a\tb \u00e9"}
    assert output.sources == {}


def test_other_lines_of_the_output_are_passed_over(tmp_path):
    lines = ["INFO | loaded", "T-0\tgold", "H-0\t-0.1\tbest", "D-0\t-0.1\tbest", "P-0\t-0.1", "Generate test: R-1 9"]
    (tmp_path / "out").write_text("\n".join(lines) + "\n")
    assert read_generation([str(tmp_path / "out")]).hypotheses == {0: "best"}


def test_the_first_of_several_hypotheses_is_taken(tmp_path):
    lines = ["T-0\tgold", "H-0\t-0.1\tbest", "D-0\t-0.1\tbest", "H-0\t-0.9\tworse", "D-0\t-0.9\tworse"]
    (tmp_path / "out").write_text("\n".join(lines) + "\n")
    assert read_generation([str(tmp_path / "out")]).hypotheses == {0: "best"}


def test_shards_merge_and_must_not_overlap(tmp_path):
    texts = make_texts(6)
    first = {index: text for index, text in texts.items() if index < 3}
    second = {index: text for index, text in texts.items() if index >= 3}
    for name, part in (("a", first), ("b", second)):
        write_output(tmp_path / name, part, texts)
    assert read_generation([str(tmp_path / "a"), str(tmp_path / "b")]).hypotheses == texts
    with pytest.raises(ValueError, match="example 0 stands in another shard"):
        read_generation([str(tmp_path / "a"), str(tmp_path / "a")])


@pytest.mark.parametrize(
    "text, reason",
    [
        ("nothing here\n", "no hypotheses"),
        ("T-0\tgold\nH-0\t-0.1\tbest\nD-0\t-0.1\tbest\nT-1\tgold\n", "example 1 has no hypothesis"),
        ("D-0\t-0.1\tbest\n", "example 0 has no reference"),
        ("T-0\tgold\nD-0\t-0.1\n", "malformed"),
        ("T-0\tgold\nD-0\t-0.1\tbe", "out:2: the last line breaks off"),
        ("T-0\tgold\nD-0\t-0.1\tbest\n" * 2, "out:3: example 0 stands twice"),
        ("T-x\tgold\nD-0\t-0.1\tbest\n", "out:1: malformed"),
    ],
)
def test_a_broken_output_is_refused(tmp_path, text, reason):
    (tmp_path / "out").write_text(text)
    with pytest.raises(ValueError, match=reason):
        read_generation([str(tmp_path / "out")])


def test_bytes_that_are_no_text_are_named_by_line(tmp_path):
    (tmp_path / "out").write_bytes(b"T-0\tgold\nD-0\t-0.1\t\xff\n")
    with pytest.raises(ValueError, match="out:2: not UTF-8"):
        read_generation([str(tmp_path / "out")])
