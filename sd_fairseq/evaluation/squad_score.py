"""Exact match and F1 of answers, as SQuAD's official scripts have them: ``sd-squad-score DATA PREDICTIONS``.

Questions of SQuAD 2.0 get the figures of both kinds of question, and, where the probability of having no answer is
given for each, the threshold at which the score would be best.
Source: Rajpurkar et al. 2016 and 2018; the definitions are those of evaluate-v1.1.py and evaluate-v2.0.py.
"""

from __future__ import annotations

import argparse
import json
import re
import string
import sys
from collections import Counter
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

from sd_fairseq.errors import InputError, QuietParser, end_quietly, run
from sd_fairseq.evaluation.squad_data import Question, has_unanswerable, read_questions
from sd_fairseq.user_files import read_json_object
from sd_fairseq.version import __version__

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise_answer(text: str) -> str:
    """Returns the answer in lower case, without ASCII punctuation, articles and repeated white space."""
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(gold: str, predicted: str) -> float:
    """Returns 1 if both are the same answer, else 0."""
    return float(normalise_answer(gold) == normalise_answer(predicted))


def answer_f1(gold: str, predicted: str, empty_matches_empty: bool) -> float:
    """Returns the harmonic mean of precision and recall of the predicted words, 0..1.

    Args:
        gold, predicted: answers.
        empty_matches_empty: True = no words against no words is right (SQuAD 2.0), False = wrong (1.1).
    """
    gold_words, words = normalise_answer(gold).split(), normalise_answer(predicted).split()
    if not gold_words or not words:
        return float(empty_matches_empty and gold_words == words)
    common = sum((Counter(gold_words) & Counter(words)).values())
    return 2 * common / (len(gold_words) + len(words))


def score_question(question: Question, predicted: str, unanswerable: bool) -> Tuple[float, float]:
    """Returns exact match and F1 against the best of the annotators' answers, 0..1.

    Args:
        question: with its answers.
        predicted: the answer; empty = none.
        unanswerable: True = by SQuAD 2.0's rules, where no answer is an answer.
    """
    golds = [one.text for one in question.answers if not unanswerable or normalise_answer(one.text)]
    golds = golds or [""]
    return (
        max(exact_match(gold, predicted) for gold in golds),
        max(answer_f1(gold, predicted, unanswerable) for gold in golds),
    )


def score_answers(
    questions: Sequence[Question],
    predictions: Mapping[str, str],
    no_answer: Optional[Mapping[str, float]] = None,
    threshold: float = 1.0,
) -> Dict[str, float]:
    """Scores a system.

    Args:
        questions: with their answers.
        predictions: id -> answer, empty = none; a question without one counts as wrong.
        no_answer: id -> how much there seems to be no answer (a probability or any other score).
        threshold: with ``no_answer``: an answer counts as none given above it, as in the official script.

    Returns:
        ``exact`` and ``f1``, 0..100, ``total``, ``missing``; for SQuAD 2.0 ``HasAns_*`` and ``NoAns_*``; with
        ``no_answer`` also ``best_exact``, ``best_f1`` and their ``*_thresh``.
    """
    unanswerable = has_unanswerable(list(questions))
    raw = {
        one.id: score_question(one, predictions[one.id], unanswerable) if one.id in predictions else (0.0, 0.0)
        for one in questions
    }
    scores = raw
    if no_answer is not None:
        silent = {one.id: (float(not one.answers),) * 2 for one in questions}
        scores = {key: silent[key] if no_answer[key] > threshold else value for key, value in raw.items()}
    figures = {**_means(scores, [one.id for one in questions])}
    figures["missing"] = sum(one.id not in predictions for one in questions)
    if unanswerable:
        for name, wanted in (("HasAns", True), ("NoAns", False)):
            ids = [one.id for one in questions if bool(one.answers) == wanted]
            figures.update({f"{name}_{key}": value for key, value in _means(scores, ids).items()} if ids else {})
    if no_answer is not None:
        for index, name in enumerate(("exact", "f1")):
            best = best_threshold(questions, predictions, {key: value[index] for key, value in raw.items()}, no_answer)
            figures[f"best_{name}"], figures[f"best_{name}_thresh"] = best
    return figures


def _means(scores: Mapping[str, Tuple[float, float]], ids: List[str]) -> Dict[str, float]:
    exact, f1 = (100 * sum(scores[key][index] for key in ids) / len(ids) for index in (0, 1))
    return {"exact": exact, "f1": f1, "total": len(ids)}


def best_threshold(
    questions: Sequence[Question],
    predictions: Mapping[str, str],
    scores: Mapping[str, float],
    no_answer: Mapping[str, float],
) -> Tuple[float, float]:
    """Finds the threshold of ``no_answer`` up to which answers should be given; returns best score and threshold.

    Everything is silent at first; then the questions speak up, the surest first.
    """
    current = float(sum(not one.answers for one in questions))
    best, threshold = current, 0.0
    by_certainty = sorted(questions, key=lambda one: no_answer[one.id])
    for position, one in enumerate(by_certainty):
        if one.answers:
            current += scores[one.id]
        elif predictions.get(one.id):
            current -= 1
        follower = by_certainty[position + 1] if position + 1 < len(by_certainty) else None
        tied = follower is not None and no_answer[follower.id] == no_answer[one.id]
        if current > best and not tied:  # a threshold cannot tell equal scores apart
            best, threshold = current, no_answer[one.id]
    return 100 * best / len(questions), threshold


def read_mapping(path: str, kinds: Tuple[type, ...], ids: Sequence[str] = ()) -> Dict[str, object]:
    """Reads a JSON object of id -> value.

    Raises:
        InputError: unreadable, a value of another type, or one of ``ids`` is missing.
    """
    content = read_json_object(path)
    for key, value in content.items():
        if not isinstance(value, kinds) or isinstance(value, bool) or value != value:
            raise InputError(f"{path}: {key!r} has {value!r}, expected a {kinds[0].__name__}")
    missing = [key for key in ids if key not in content]
    if missing:
        raise InputError(f"{path}: no {missing[0]!r} ({len(missing)} such)")
    return content


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Runs the command; returns its exit code."""
    end_quietly()
    about, example = str(__doc__).split("\n\n", 1)[0], "example: sd-squad-score dev.json answers.json"
    parser = QuietParser(prog="sd-squad-score", description=about, epilog=example)
    parser.add_argument("--version", action="version", version="%(prog)s " + __version__)
    parser.add_argument("data", metavar="DATA", help="SQuAD 1.1 or 2.0 JSON (or JSON lines) with answers, also .gz")
    parser.add_argument("predictions", metavar="PREDICTIONS", help="JSON object of id -> answer, also .gz")
    parser.add_argument("--na-prob-file", metavar="FILE", help="JSON object of id -> probability of having no answer")
    parser.add_argument("--na-prob-thresh", type=float, default=1.0, metavar="P", help="above it an answer is none")
    return run(_work, parser.parse_args(arguments), "sd-squad-score")


def _work(options: argparse.Namespace) -> None:
    """Reads, scores and prints."""
    questions = read_questions(options.data)
    ids = [one.id for one in questions]
    predictions = read_mapping(options.predictions, (str,))
    if not set(ids) & set(predictions):
        raise InputError(f"{options.predictions}: answers none of the questions of {options.data}")
    no_answer = read_mapping(options.na_prob_file, (float, int), ids) if options.na_prob_file else None
    figures = score_answers(questions, predictions, no_answer, options.na_prob_thresh)  # type: ignore[arg-type]
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    sys.exit(main())
