"""ROUGE-N and ROUGE-L as ROUGE-1.5.5.pl computes them when files2rouge calls it (-c 95 -r 1000 -n 2 -a -m).

Source: C.-Y. Lin, ROUGE: A Package for Automatic Evaluation of Summaries, 2004. What the paper leaves open (words,
stemmer, rounding, random numbers) follows the observed behaviour of ROUGE-1.5.5 and files2rouge 2.1.0, so that every
printed digit agrees with theirs.
"""

from collections import Counter
from typing import Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from sd_fairseq.evaluation.rouge_words import Stem, add_exceptions, keep_word, split_sentences, split_words, stem_word

RESAMPLES = 1000
CONFIDENCE_PERCENT = 95
LOW_RANK = RESAMPLES * (100 - CONFIDENCE_PERCENT) // 200
HIGH_RANK = RESAMPLES - LOW_RANK - 1

# The generator behind Perl's rand: drand48 of the C library, on every platform since Perl 5.20.
DRAND48_MULTIPLIER = np.uint64(0x5DEECE66D)
DRAND48_INCREMENT = np.uint64(0xB)
DRAND48_LOW_SEED = np.uint64(0x330E)
DRAND48_MASK = np.uint64(2**48 - 1)

Sentences = List[List[str]]


class DocumentScore(NamedTuple):
    """Recall, precision and F1 of one document (0-1), each rounded to five digits."""

    recall: float
    precision: float
    f: float


def score_ngrams(hypothesis: Sequence[str], reference: Sequence[str], order: int) -> DocumentScore:
    """Compute ROUGE-N (Lin 2004, section 2) of one document.

    Args:
        hypothesis: words of the hypothesis.
        reference: words of the reference.
        order: n-gram length.

    Returns:
        The rounded score; zero where either side has no n-gram.
    """
    grams = Counter(zip(*(hypothesis[start:] for start in range(order))))
    reference_grams = Counter(zip(*(reference[start:] for start in range(order))))
    hits = sum(min(count, grams[gram]) for gram, count in reference_grams.items() if gram in grams)
    return _rate(hits, max(len(reference) - order + 1, 0), max(len(hypothesis) - order + 1, 0))


def score_lcs(hypothesis: Sentences, reference: Sentences) -> DocumentScore:
    """Compute summary-level ROUGE-L (Lin 2004, section 3.2) of one document.

    Every reference sentence counts the words that lie on a longest common subsequence with at least one hypothesis
    sentence. A word counts at most as often as it occurs in the hypothesis.

    Args:
        hypothesis: words of every sentence of the hypothesis.
        reference: words of every sentence of the reference.

    Returns:
        The rounded score; zero where either side is empty.
    """
    left = Counter(word for sentence in hypothesis for word in sentence)
    hypothesis_length = sum(left.values())
    hits = 0
    for sentence in reference:
        marked = [False] * len(sentence)
        for candidate in hypothesis:
            _mark_common(sentence, candidate, marked)
        for word, is_hit in zip(sentence, marked):
            if is_hit and left[word] > 0:
                left[word] -= 1
                hits += 1
    return _rate(hits, sum(map(len, reference)), hypothesis_length)


def _mark_common(reference: List[str], hypothesis: List[str], marked: List[bool]) -> None:
    """Mark the reference words on one longest common subsequence.

    Of several the backtracking picks the one ROUGE-1.5.5 picks; which one matters for the union over sentences.

    A row of the usual table is one integer: a bit a hypothesis word, 0 where the length grows by one (Hyyro 2004). One
    row in so many is kept, and those between are made again on the way back: 2 sqrt(rows) bits a hypothesis word.
    """
    places: Dict[str, int] = {}
    for column, word in enumerate(hypothesis):
        places[word] = places.get(word, 0) | 1 << column
    # A reference word that the hypothesis lacks changes no entry of the table, and backtracking passes over it.
    rows = [row for row, word in enumerate(reference) if word in places]
    every = (1 << len(hypothesis)) - 1
    block = int(len(rows) ** 0.5) + 1

    def walk(bits: int, start: int, end: int) -> Iterator[int]:
        for row in rows[start:end]:
            same = bits & places[reference[row]]
            bits = ((bits + same) | (bits - same)) & every
            yield bits

    kept = [every]  # before row 0, block, 2 * block, ...
    for start in range(0, len(rows), block):
        for bits in walk(kept[-1], start, start + block):
            last = bits
        kept.append(last)
    i, j, base = len(rows), len(hypothesis), len(rows)
    table: List[int] = []
    while i and j:
        if i <= base:  # rows base .. i of the block that row i - 1 is in
            base = (i - 1) // block * block
            table = [kept[base // block], *walk(kept[base // block], base, i)]
        row, above, below = i, table[i - 1 - base], table[i - base]
        longer = _count(above, j) - _count(below, j)  # what row i adds to the length up to column j: 0 or 1
        while j and row == i:
            if reference[rows[i - 1]] == hypothesis[j - 1]:
                i, j = i - 1, j - 1
                marked[rows[i]] = True
            elif longer == 0:
                i -= 1
            else:
                j -= 1
                longer += (below >> j & 1) - (above >> j & 1)


def _count(bits: int, columns: int) -> int:
    """Return how many of the first bits are 1."""
    return bin(bits & ((1 << columns) - 1)).count("1")


def _rate(hits: int, reference_count: int, hypothesis_count: int) -> DocumentScore:
    recall = round(hits / reference_count, 5) if reference_count else 0.0
    precision = round(hits / hypothesis_count, 5) if hypothesis_count else 0.0
    mean = 0.5 * precision + 0.5 * recall
    return DocumentScore(recall, precision, round(precision * recall / mean, 5) if mean > 0 else 0.0)


def score_documents(
    hypotheses: Sequence[str],
    references: Sequence[str],
    eos: str,
    max_order: int = 2,
    rouge_l: bool = True,
    stem: Stem = stem_word,
) -> Dict[str, np.ndarray]:
    """Score every document.

    Args:
        hypotheses: one text a document.
        references: one text a document, as many.
        eos: end of sentence, with the space before it.
        max_order: longest n-gram.
        rouge_l: whether to add ROUGE-L.
        stem: maps a lower-case word to its stem.

    Returns:
        "rouge1" ... "rouge{max_order}" and "rougeL", each [documents, 3]: recall, precision, F1 (0-1).
    """
    rows: Dict[str, List[DocumentScore]] = {"rouge{}".format(order): [] for order in range(1, max_order + 1)}
    if rouge_l:
        rows["rougeL"] = []
    for pair in zip(hypotheses, references):
        hypothesis, reference = (
            [split_words(sentence, stem) for sentence in split_sentences(text, eos)] for text in pair
        )
        hypothesis_words, reference_words = sum(hypothesis, []), sum(reference, [])
        for order in range(1, max_order + 1):
            rows["rouge{}".format(order)].append(score_ngrams(hypothesis_words, reference_words, order))
        if rouge_l:
            rows["rougeL"].append(score_lcs(hypothesis, reference))
    return {name: np.array(scores, dtype=np.float64).reshape(-1, 3) for name, scores in rows.items()}


def score_lines(
    hypotheses: Sequence[str],
    references: Sequence[str],
    eos: str = " .",
    ignore_empty_reference: bool = False,
    ignore_empty_summary: bool = False,
    count_empty: bool = False,
    max_order: int = 2,
    rouge_l: bool = True,
    stemming: bool = True,
    exceptions: Optional[Mapping[str, str]] = None,
) -> Tuple[List[int], Dict[str, np.ndarray]]:
    """Score every document after files2rouge's checks.

    Args:
        hypotheses: one text a document.
        references: one text a document, as many.
        eos: end of sentence, with the space before it.
        ignore_empty_reference: leave out documents without reference.
        ignore_empty_summary: leave out documents without hypothesis.
        count_empty: score 0 where a side is empty. files2rouge has no such choice.
        max_order: longest n-gram.
        rouge_l: whether to add ROUGE-L.
        stemming: whether to stem.
        exceptions: irregular forms (`read_exceptions`). files2rouge has none, published ROUGE-1.5.5 reports often do.

    Returns:
        The 0-based numbers of the documents scored, and for every metric [documents, 3]: recall, precision, F1 (0-1).

    Raises:
        ValueError: unequal lengths, an empty line, nothing to score, or an impossible option.
    """
    if len(hypotheses) != len(references):
        counts = (len(references), len(hypotheses))
        raise ValueError("Model and System line counts must match, {} != {} (references, summaries)".format(*counts))
    if max_order < 1:
        raise ValueError("the longest n-gram must have at least 1 word, not {}".format(max_order))
    lines = []
    for line, (hypothesis, reference) in enumerate(zip(hypotheses, references)):
        if not reference.strip() and not count_empty:
            _refuse_empty("reference", line, ignore_empty_reference)
        elif not hypothesis.strip() and not count_empty:
            _refuse_empty("summary", line, ignore_empty_summary)
        else:
            lines.append(line)
    if not lines:
        raise ValueError("nothing to score: no document has both a reference and a summary")
    stem: Stem = keep_word
    if stemming:
        stem = add_exceptions(exceptions) if exceptions else stem_word
    kept, kept_references = ([texts[line] for line in lines] for texts in (hypotheses, references))
    return lines, score_documents(kept, kept_references, eos, max_order, rouge_l, stem)


def _refuse_empty(side: str, line: int, ignored: bool) -> None:
    if not ignored:
        message = "Empty {0} at line {1}. Use `--ignore_empty_{0}` to ignore it"
        raise ValueError(message.format(side, line + 1))


def order_documents(lines: Sequence[int]) -> List[int]:
    """Find the order in which ROUGE-1.5.5 draws from the documents, which decides what a random number picks.

    Args:
        lines: 0-based line number of every document. files2rouge names files after it.

    Returns:
        Positions within `lines`: file names sorted as strings, then their ranks sorted as strings.
    """
    by_name = sorted(range(len(lines)), key=lambda position: "s.{}.txt".format(lines[position]))
    return [by_name[rank] for rank in sorted(range(len(lines)), key=lambda rank: "{}.1".format(rank + 1))]


def resample(scores: np.ndarray) -> np.ndarray:
    """Draw the bootstrap means of ROUGE-1.5.5: resample b is drawn after Perl's srand(b).

    Args:
        scores: [documents, columns], documents in the order of `order_documents`.

    Returns:
        [columns, RESAMPLES], each row in ascending order.
    """
    documents, columns = scores.shape
    table = np.ascontiguousarray(scores.T)
    state = (np.arange(RESAMPLES, dtype=np.uint64) << np.uint64(16)) + DRAND48_LOW_SEED
    sums = np.zeros((columns, RESAMPLES))
    # All resamples advance together, so that every sum adds up in Perl's order and rounds as Perl's does.
    for _ in range(documents):
        state = (state * DRAND48_MULTIPLIER + DRAND48_INCREMENT) & DRAND48_MASK
        picked = (state.astype(np.float64) * 2.0**-48 * documents).astype(np.intp)
        sums += table[:, picked]
    return np.sort(sums / documents, axis=1)
