"""One short line an interval in fairseq's simple log format; the full set of figures stays in json and TensorBoard."""

from __future__ import annotations

import logging
import re
from typing import List

LOGGER = "fairseq.logging.progress_bar"  # fairseq's progress bars write through it, under the name of the moment
SHOWN = (
    *("loss", "nll_loss", "ppl", "accuracy", "sd_flops_generation", "sd_violation", "sd_multiplier"),
    *("sd_quality_mode", "sd_quality_dense", "num_updates", "lr", "ups", "wall"),
)
ONLY_IN = {"sd_quality_mode": "valid", "sd_quality_dense": "valid"}  # in training: dropout on and off, not to compare
HIDDEN = ("wps", "wpb", "bsz", "gnorm", "clip", "train_wall", "gb_free", "loss_scale")  # fairseq's own
OURS = "sd_flops_generation"


class ShortLines(logging.Filter):
    """Leaves the everyday figures of a simple progress bar's line; other lines pass as they are."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Shortens the record in place; always True."""
        message = record.getMessage()
        if OURS in message and not message.startswith("{"):
            record.msg, record.args = shorten(message, record.name), ()
        return True


def shorten(message: str, name: str) -> str:
    """Returns a line without the figures that are not everyday ones.

    Args:
        message: "prefix: i / n a=1, b=2" within an epoch, or "prefix | a 1 | b 2" at its end.
        name: train_inner, train or valid.
    """
    inner = re.fullmatch(r"(.*?: +\d+ / \d+ )(\w+=.*)", message, re.DOTALL)
    if inner:
        return inner.group(1) + ", ".join(part for part in inner.group(2).split(", ") if shows(part.split("="), name))
    parts = message.split(" | ")
    return " | ".join(part for part in parts if len(part.split(" ")) != 2 or shows(part.split(" "), name))


def shows(figure: List[str], name: str) -> bool:
    """Tells whether a figure, [name, value], is there and an everyday one; figures of heads, and best scores, are."""
    known = figure[0] in SHOWN or not figure[0].startswith("sd_") and figure[0] not in HIDDEN
    return known and ONLY_IN.get(figure[0], name) == name and figure[-1] != "None"


def install() -> None:
    """Adds the filter to fairseq's logger, once."""
    logger = logging.getLogger(LOGGER)
    if not any(isinstance(one, ShortLines) for one in logger.filters):
        logger.addFilter(ShortLines())
