"""Names of the trade-off grid's rows, and their order."""

from __future__ import annotations

import re
from typing import Optional, Tuple

# The order of the table. A row is called after its family, or FAMILY-NUMBER.
FAMILIES = (
    "dense",
    "dense-plain-loss",
    "dense-trained-on",
    "recommended",
    "recommended-tracked",
    "paper",
    "any-budget",
    "tolerance",
    "tolerance-unbiased",
    "tolerance-kept",
    "lexicographic",
    "barrier",
    "budget",
    "budget-corpus",
    "as-printed",
    "fixed",
    "random",
    "random-deployed",
    "static",
    "fitted",
    "fitted-length",
    "encoder-only",
    "decoder-only",
    "token-only",
    "layerwise",
    "kept-layer-norm",
    "score-function-flops",
    "score-function",
    "score-function-unbiased",
    "score-function-kept",
    "straight-through",
    "reinmax",
    "samples",
    "start-dense",
    "no-distillation",
    "joint-tolerance",
    "joint-budget",
    "tokens-too",
    # examples/rivals: other methods on the same base
    "dense-beam",
    "hsd",
    "hsd-trained",
    "skipdecode",
    "uls",
    "exits-calm",
    "exits-calm-plain",
    "calm",
    "calm-plain",
    "exits-free",
    "free",
    "student-6",
    "student-3",
    "distilled-6",
    "distilled-3",
    "layerdrop",
    "layerdrop-6",
    "layerdrop-3",
    "int8",
    "dq-6",
    "recommended-int8",
    "recommended-6",
    "lead",
)


def split_row(row: str) -> Tuple[str, Optional[float]]:
    """Splits a row's name into its family and its number, if it has one.

    Raises:
        ValueError: a name of no family.
    """
    if row in FAMILIES:
        return row, None
    family, _, number = row.rpartition("-")
    if family in FAMILIES and re.fullmatch(r"\d+(\.\d+)?", number):
        return family, float(number)
    raise ValueError(f"row {row!r} is none of {', '.join(FAMILIES)}, nor one of these with a number (budget-0.7)")


def row_order(row: str) -> Tuple[int, float]:
    """Returns the place of a row in tables."""
    family, number = split_row(row)
    return FAMILIES.index(family), -1.0 if number is None else number
