"""Scores from confusion counts equal scikit-learn's from the lists of answers."""

import random

import pytest
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from sd_fairseq.evaluation.classification_score import count_confusions, score_confusions


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_scores_of_counts_are_scikit_learns_of_lists(classes):
    rng = random.Random(classes)
    for _ in range(20):
        truth = [rng.randrange(classes) for _ in range(30)]
        answers = [one if rng.random() < 0.6 else rng.randrange(classes) for one in truth]
        score = score_confusions(count_confusions(truth, answers), classes)
        average = {"average": "macro"} if classes > 2 else {}
        expected = f1_score(truth, answers, labels=list(range(classes)), zero_division=0, **average)
        assert score.examples == 30
        assert score.accuracy == pytest.approx(100 * accuracy_score(truth, answers))
        assert score.f1 == pytest.approx(100 * expected)
        assert score.matthews == pytest.approx(100 * matthews_corrcoef(truth, answers))


def test_counts_of_parts_add_up_to_the_whole():
    truth, answers = [0, 1, 1, 0, 1, 2, 2], [0, 1, 0, 0, 1, 1, 2]
    total = {}
    for part in (slice(0, 3), slice(3, 7)):
        for pair, count in count_confusions(truth[part], answers[part]).items():
            total[pair] = total.get(pair, 0) + count
    assert score_confusions(total, 3) == score_confusions(count_confusions(truth, answers), 3)


def test_one_answer_for_all_has_no_correlation_and_its_share_as_accuracy():
    score = score_confusions(count_confusions([0, 1, 1, 1], [1, 1, 1, 1]), 2)
    assert (score.accuracy, score.matthews) == (75.0, 0.0)


def test_what_cannot_be_scored_is_an_error():
    with pytest.raises(ValueError, match="2 true classes and 1 predicted"):
        count_confusions([0, 1], [0])
    with pytest.raises(ValueError, match="no examples"):
        score_confusions({(0, 0): 0}, 2)
    with pytest.raises(ValueError, match=r"\(0, 2\) are not in 0..1"):
        score_confusions({(0, 2): 1}, 2)
