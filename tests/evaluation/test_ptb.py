"""Penn Treebank tokens by line."""

import sys

import pytest

from sd_fairseq.evaluation import ptb
from sd_fairseq.evaluation.rouge_words import split_sentences

SENTENCES = pytest.importorskip("pysbd", reason="needs the package pysbd") and [
    ("He left. She didn't.", "He left . She did n't ."),
    ('"Stop," said Mr. Smith (42).', "`` Stop , '' said Mr. Smith -LRB- 42 -RRB- ."),
    ("It cost $3.5 million! Why?", "It cost $ 3.5 million ! Why ?"),
    ("", ""),
    ("  ", ""),
]


@pytest.mark.parametrize("text, tokens", SENTENCES)
def test_tokens_are_those_of_the_penn_treebank(text, tokens):
    assert ptb.tokenize(text) == tokens


def test_every_sentence_ends_where_rouge_l_splits():
    text = "It rained all day. We stayed at home. Nobody called."
    assert len(split_sentences(text, " .")) == 1
    assert len(split_sentences(ptb.tokenize(text), " .")) == 3


def test_tokenised_text_stays():
    tokens = "Rain fell , she said . We left ."
    assert ptb.tokenize(tokens) == tokens


def test_a_missing_pysbd_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pysbd", None)
    ptb._load_segmenter.cache_clear()
    with pytest.raises(ImportError, match="pip install pysbd"):
        ptb.tokenize("a")
    ptb._load_segmenter.cache_clear()
