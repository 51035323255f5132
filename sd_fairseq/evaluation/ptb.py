"""Penn Treebank tokens, one line in and one line out, as BART's summarization recipe wants before files2rouge.

Source: fairseq's examples/bart/README.summarization.md, which runs Stanford CoreNLP's PTBTokenizer. Here pysbd finds
the sentences and NLTK's Treebank tokenizer the tokens: sentences then end in " .", where ROUGE-L splits.
"""

from functools import lru_cache
from typing import Any


@lru_cache(maxsize=1)
def _load_words() -> Any:
    try:
        from nltk.tokenize.treebank import TreebankWordTokenizer  # seconds, which --help does not need
    except ImportError as error:
        raise ImportError("Treebank tokenisation needs nltk; install it with: pip install nltk") from error
    return TreebankWordTokenizer()


@lru_cache(maxsize=1)
def _load_segmenter() -> Any:
    try:
        import pysbd
    except ImportError as error:
        raise ImportError("Treebank tokenisation needs pysbd; install it with: pip install pysbd") from error
    return pysbd.Segmenter(language="en", clean=False)


def tokenize(text: str) -> str:
    """Tokenise one line of English text.

    Args:
        text: one document.

    Returns:
        Its tokens, separated by single spaces; brackets become -LRB- and so on, double quotes become `` and ''.

    Raises:
        ImportError: pysbd or nltk is not installed.
    """
    words = _load_words()
    sentences = _load_segmenter().segment(text) if text.strip() else []
    return " ".join(" ".join(words.tokenize(sentence.strip(), convert_parentheses=True)) for sentence in sentences)
