"""Refuses data that a model cannot take, or of which nothing can be said: too long or empty lines."""

from __future__ import annotations

import logging
from typing import Any, List

import numpy as np

from sd_fairseq.plugin.guards.errors import InputError

logger = logging.getLogger(__name__)


def check_lengths(dataset: Any, max_positions: Any) -> None:
    """Refuses a data set with a sentence longer than the model takes.

    Args:
        dataset: a pair data set with ``src_sizes`` and ``tgt_sizes``.
        max_positions: (source, target) limits, or None.

    Raises:
        InputError: naming the first such sentence, its length and the limit.
    """
    if not isinstance(max_positions, (tuple, list)):
        return
    for name, limit in zip(("src", "tgt"), max_positions):
        sizes = getattr(dataset, f"{name}_sizes", None)
        if sizes is None or limit is None:
            continue
        too_long = (sizes > limit).nonzero()[0]
        if too_long.size:
            index = int(too_long[0])
            side, help_ = ("source", "--truncate-source or ") if name == "src" else ("target", "")
            raise InputError(
                f"{side} of sentence {index} has {int(sizes[index])} tokens, the model takes {int(limit)}; use "
                f"{help_}--skip-invalid-size-inputs-valid-test ({too_long.size} such sentences)"
            )


def check_not_empty(dataset: Any, split: str) -> None:
    """Refuses a data set with an empty source line (only an end-of-sentence symbol).

    Raises:
        InputError: naming the split and the first such line, from 1.
    """
    empty = find_empty(dataset)
    if empty:
        raise InputError(f"source line {empty[0] + 1} of {split!r} is empty ({len(empty)} such lines)")


def find_empty(dataset: Any) -> List[int]:
    """Returns the indices of the empty source lines, ascending."""
    sizes = getattr(dataset, "src_sizes", None)
    if sizes is None:
        return []
    # --truncate-source takes the last symbol off and puts it on again, and counts it twice in the sizes
    return [int(index) for index in (sizes <= 2).nonzero()[0] if len(dataset.src[int(index)]) <= 1]


def leave_out_empty(dataset: Any, lines_before: int) -> None:
    """Lets the lines of fairseq-interactive that hold nothing go unanswered, and says which they are.

    Args:
        dataset: of one buffer.
        lines_before: lines of the buffers before it.
    """
    empty = find_empty(dataset)
    for index in empty:
        logger.warning("line %d of the input is empty and gets no answer", lines_before + index + 1)
    if empty:
        order = dataset.ordered_indices()
        dataset.ordered_indices = lambda: order[~np.isin(order, empty)]
