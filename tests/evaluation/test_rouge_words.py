"""How ROUGE-1.5.5 finds sentences, words and stems."""

import pytest

from sd_fairseq.evaluation.rouge_words import (
    add_exceptions,
    keep_word,
    read_exceptions,
    read_lines,
    split_sentences,
    split_words,
    stem_word,
)


@pytest.mark.parametrize(
    "text, words",
    [
        ("State-of-the-art", ["state", "of", "the", "art"]),
        ("the 2nd U.S. $5.30pm", ["the", "2nd", "u", "s", "5", "30pm"]),
        ("caf\u00e9's na\u00efve", ["caf", "s", "na", "ve"]),
        ("\u212aelvin \u0130stanbul", ["elvin", "stanbul"]),  # both become ASCII letters in lower case
        ("-LRB- `` _ ''", ["lrb"]),
        ("", []),
    ],
)
def test_words_are_runs_of_ascii_letters_and_digits(text, words):
    assert split_words(text, keep_word) == words


@pytest.mark.parametrize(
    "text, sentences",
    [
        ("a b . c d .", ["a b .", " c d ."]),
        ("a b.c d", ["a b.c d"]),
        ("a .b", ["a .", "b"]),
        ("a < b . c", ["a ", " c"]),
        ("<t> a . b", [" b"]),
        ("", []),
    ],
)
def test_a_sentence_ends_after_eos_and_before_a_tag(text, sentences):
    assert split_sentences(text, " .") == sentences


def test_an_empty_end_of_sentence_is_refused():
    with pytest.raises(ValueError, match="must not be empty"):
        split_sentences("a b", "")


@pytest.mark.parametrize(
    "word, stem",
    [
        ("was", "was"),  # three letters stay
        ("relational", "relat"),
        ("departmental", "depart"),  # "al", then "ment"
        ("replacement", "replac"),
        ("adoption", "adopt"),
        ("happily", "happili"),
        ("flying", "fly"),
        ("pyyed", "pyi"),  # Porter's own program drops one y
        ("cats", "cat"),
        ("1990s", "1990"),
    ],
)
def test_stems_are_those_of_the_perl_program(word, stem):
    assert stem_word(word) == stem


def test_irregular_forms_replace_stems_of_words_longer_than_three_letters():
    stem = add_exceptions({"better": "good", "was": "be", "houses": "houses"})
    assert [stem(word) for word in ("better", "was", "houses", "goods")] == ["good", "was", "houses", "good"]


def test_later_lists_of_irregular_forms_win(tmp_path):
    (tmp_path / "adj.exc").write_text("best good\nolder old\n", encoding="utf-8")
    (tmp_path / "adv.exc").write_text("best well\nlone\n", encoding="utf-8")
    assert read_exceptions(str(tmp_path)) == {"best": "well", "older": "old"}


def test_a_folder_without_irregular_forms_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no \*\.exc files"):
        read_exceptions(str(tmp_path))


def test_unreadable_text_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="absent: cannot be read .No such file"):
        read_lines(str(tmp_path / "absent"))
    (tmp_path / "latin").write_bytes(b"caf\xe9\n")
    with pytest.raises(ValueError, match="latin:1: not UTF-8 text"):
        read_lines(str(tmp_path / "latin"))
