"""Classification heads on the decoder's state at the final end-of-sentence symbol, as BART classifies."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sd_fairseq.cost.path_flops import HeadShape
from sd_fairseq.plugin.guards.errors import InputError


def state_of_last_end(x: Tensor, tokens: Tensor, eos: int) -> Tensor:
    """Takes each row's state at its last end-of-sentence symbol.

    fairseq's BART reshapes the states at all such symbols and so needs the same number of them in every row of a batch;
    rows of one and of two sentences, or one with ``</s>`` typed into it, may stand side by side here.

    Args:
        x: [B, T, C], states over ``tokens``.
        tokens: LongTensor [B, T].
        eos: index of the end-of-sentence symbol.

    Returns:
        [B, C].

    Raises:
        InputError: a row without the symbol.
    """
    is_end = tokens.eq(eos)  # [B, T]
    if not bool(is_end.any(dim=1).all()):
        row = int((~is_end.any(dim=1)).nonzero()[0])
        raise InputError(f"row {row} of the batch has no end-of-sentence symbol for the head to read")
    position = torch.arange(tokens.size(1), device=tokens.device).expand_as(tokens)  # [B, T]
    last = position.masked_fill(~is_end, -1).max(dim=1).values  # [B]
    return x[torch.arange(x.size(0), device=x.device), last]  # [B, C]


def classification_head_shape(model: Any, name: str) -> HeadShape:
    """Returns the dimensions of a registered classification head.

    Raises:
        InputError: no such head; names those that there are.
    """
    if name not in model.classification_heads:
        found = ", ".join(model.classification_heads) or "none"
        raise InputError(f"the model has no classification head {name!r} (found: {found})")
    head = model.classification_heads[name]
    return HeadShape((head.dense.in_features, head.dense.out_features, head.out_proj.out_features))
