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
    ],
)
def test_a_broken_output_is_refused(tmp_path, text, reason):
    (tmp_path / "out").write_text(text)
    with pytest.raises(ValueError, match=reason):
        read_generation([str(tmp_path / "out")])
