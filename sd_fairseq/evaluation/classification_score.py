"""Accuracy, F1 and Matthews correlation of a classifier, from its confusion counts.

Counts add up over batches and workers, lists of predictions do not; scikit-learn takes the counts as sample weights, so
the figures are its own. GLUE reports accuracy (SST-2, RTE, MNLI), F1 (MRPC, QQP) and Matthews correlation (CoLA).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, List, Mapping, Sequence, Tuple


@dataclass(frozen=True)
class ClassificationScore:
    """Figures of one system.

    Args:
        examples: number of examples.
        accuracy: share of right answers, 0..100.
        f1: 0..100; of class 1 where there are two classes, else the mean over all classes (macro).
        matthews: correlation of answers and truth, -100..100; 0 where either is constant.
    """

    examples: int
    accuracy: float
    f1: float
    matthews: float


def count_confusions(truth: Sequence[int], predicted: Sequence[int]) -> Dict[Tuple[int, int], int]:
    """Counts (true class, predicted class) pairs.

    Raises:
        ValueError: unequal numbers of examples.
    """
    if len(truth) != len(predicted):
        raise ValueError(f"{len(truth)} true classes and {len(predicted)} predicted ones")
    counts: Dict[Tuple[int, int], int] = {}
    for pair in zip(truth, predicted):
        counts[pair] = counts.get(pair, 0) + 1
    return counts


def score_confusions(counts: Mapping[Tuple[int, int], int], classes: int) -> ClassificationScore:
    """Scores (true class, predicted class) counts.

    Args:
        counts: class pairs, from 0, and how often each occurred.
        classes: number of classes K.

    Raises:
        ValueError: no examples, or a class outside 0..K-1.
        ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
    except ImportError as error:
        message = "accuracy, F1 and Matthews correlation need scikit-learn; install it with: pip install scikit-learn"
        raise ImportError(message) from error

    outside = [pair for pair in counts if not all(0 <= one < classes for one in pair)]
    if outside:
        raise ValueError(f"classes (true, predicted) {outside[0]} are not in 0..{classes - 1}")
    pairs: List[Tuple[int, int]] = [pair for pair, count in counts.items() if count > 0]
    examples = sum(counts.values())
    if examples == 0:
        raise ValueError("no examples to score")
    truth, predicted = [list(side) for side in zip(*pairs)]
    weights = [counts[pair] for pair in pairs]
    average = {"average": "binary", "pos_label": 1} if classes == 2 else {"average": "macro"}
    f1 = f1_score(truth, predicted, labels=list(range(classes)), sample_weight=weights, zero_division=0, **average)
    return ClassificationScore(
        examples=int(examples),
        accuracy=100 * float(accuracy_score(truth, predicted, sample_weight=weights)),
        f1=100 * float(f1),
        matthews=100 * float(matthews_corrcoef(truth, predicted, sample_weight=weights)),
    )
