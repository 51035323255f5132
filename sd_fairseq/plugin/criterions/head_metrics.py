"""What is logged where a head answers and nothing is generated: loss an example, accuracy, F1, Matthews correlation.

F1 and the correlation are no means over batches: the confusion counts are summed, and the figures derived from the sums
whenever they are shown.
"""

from __future__ import annotations

import math
import re
from typing import Any, Callable, Dict, List, Tuple

from fairseq.logging import metrics
from fairseq.logging.meters import SumMeter

from sd_fairseq.evaluation.classification_score import score_confusions

COUNT = re.compile(r"confusion_(\d+)_(\d+)")


def reduce_head_metrics(logging_outputs: List[Dict[str, Any]]) -> None:
    """Logs the figures of a head, summed over workers and micro-batches.

    The loss is in bits an example, as fairseq's ``sentence_prediction`` has it.
    """
    loss = sum(float(output.get("loss", 0)) for output in logging_outputs)
    size = sum(float(output.get("sample_size", 0)) for output in logging_outputs)
    if size:
        metrics.log_scalar("loss", loss / size / math.log(2), size, round=3)
    counts: Dict[str, int] = {}
    for output in logging_outputs:
        for key, value in output.items():
            if COUNT.fullmatch(key):
                counts[key] = counts.get(key, 0) + int(value)
    for key, value in counts.items():
        metrics.log_custom(SumMeter, "_" + key, value)  # fairseq shows no key that starts with "_"
    if counts:
        for name in ("accuracy", "f1", "matthews"):
            metrics.log_derived(name, derived_figure(name))


def derived_figure(name: str) -> Callable[[Any], float]:
    """Returns what computes one field of :class:`ClassificationScore` from a dictionary of fairseq's meters."""

    def compute(meters: Any) -> float:
        counts = {pair: int(meters[key].sum) for key, pair in confusion_keys(meters)}
        if not sum(counts.values()):
            return 0.0
        classes = 1 + max(true for true, _ in counts)
        return round(getattr(score_confusions(counts, classes), name), 2)

    return compute


def confusion_keys(meters: Any) -> List[Tuple[str, Tuple[int, int]]]:
    """Lists the meters of confusion counts with their (true, predicted) classes."""
    found = [(key, COUNT.fullmatch(key[1:])) for key in meters if key.startswith("_confusion_")]
    return [(key, (int(match.group(1)), int(match.group(2)))) for key, match in found if match]
