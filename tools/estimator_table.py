"""How noisy an estimator of the policy's gradient is, beside what its row of the trade-off grid came to.

Source: :mod:`sd_fairseq.study.gradient_noise` measures the noise; nothing of this is in the paper.
"""

from __future__ import annotations

import json
from typing import Any, Dict, List

from learning_results import ResultError
from learning_rows import GridRow
from tabulate import tabulate

# Estimator, as gradient_noise calls it -> the row that learns by it.
ROWS = {
    "score-function": "score-function",
    "leave-one-out-4": "samples-4",
    "straight-through": "straight-through",
    "reinmax": "tolerance-0.25",
}
FIGURES = ("noise_to_signal", "cosine", "seconds")


def read_noise(path: str) -> List[Dict[str, Any]]:
    """Reads what gradient_noise wrote.

    Raises:
        ResultError: it cannot be read, or an estimator lacks a figure.
    """
    try:
        with open(path, encoding="utf-8") as text:
            found: List[Dict[str, Any]] = json.load(text)["estimators"]
        for one in found:
            for name in FIGURES:
                one[name] = float(one[name])
            str(one["estimator"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ResultError(f"{path}: not what gradient_noise writes ({type(error).__name__}: {error})") from error
    return found


def render_estimators(rows: Dict[str, GridRow], cells: Dict[str, List[str]], header: List[str], noise: str) -> str:
    """Renders one line an estimator, Markdown.

    Args:
        rows: of the grid.
        cells: row -> its figures, as strings.
        header: of these figures.
        noise: JSON of gradient_noise.

    Raises:
        ResultError: see :func:`read_noise`.
    """
    lines = []
    for one in read_noise(noise):
        price = one["noise_to_signal"] * one["seconds"]
        row = ROWS.get(one["estimator"], "")
        known = cells[row] if row in rows and rows[row].runs else [""] * len(header)
        figures = [f"{one['noise_to_signal']:.2f}", f"{one['cosine']:.2f}", f"{one['seconds']:.2f}", f"{price:.2f}"]
        lines.append([one["estimator"], *figures, row, *known])
    first = ["estimator", "noise / signal", "cosine to the unbiased mean", "seconds", "noise / signal x seconds", "row"]
    return tabulate(lines, [*first, *header], tablefmt="github", disable_numparse=True)
