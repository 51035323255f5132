"""Runs a residual sub-layer for the rows that keep it: gather -> compute -> scatter (section 3.1).

A row that skips a sub-layer passes through unchanged and costs nothing; a sub-layer that no row keeps is not called.
Choice: skipping is the identity, LayerNorm included (BART is post-norm, so both switches off equal a pruned layer);
passing ``skipped`` applies another function, such as the sub-layer's LayerNorm, to the rows that skip.
"""

from __future__ import annotations

from typing import Callable, List, Optional

import torch
from torch import Tensor

# Indices of the rows that run: None = every row (no gather), an empty tensor = no row (no work).
KeptRows = Optional[Tensor]


def find_kept_rows(keep: Tensor) -> List[KeptRows]:
    """Finds the rows that keep each layer's sub-layer, once a batch.

    Args:
        keep: BoolTensor [B, L], True = keep.

    Returns:
        One entry a layer, on ``keep``'s device.
    """
    host = keep.cpu()  # one copy to the host for the whole stack, instead of one per layer
    rows: List[KeptRows] = []
    for layer in range(host.size(1)):
        column = host[:, layer]
        rows.append(None if bool(column.all()) else column.nonzero().squeeze(1).to(keep.device, non_blocking=True))
    return rows


def run_kept_rows(
    sublayer: Callable[[Tensor, KeptRows], Tensor],
    x: Tensor,
    rows: KeptRows,
    skipped: Optional[Callable[[Tensor], Tensor]] = None,
    dim: int = 1,
) -> Tensor:
    """Runs ``sublayer`` for the kept rows of ``x``.

    Args:
        sublayer: called with the gathered rows [T, K, C] and their indices; returns [T, K, C].
        x: [T, B, C].
        rows: see :data:`KeptRows`.
        skipped: applied to the rows that skip; None = identity.
        dim: where ``x`` has its rows; 0 for [B, C].

    Returns:
        [T, B, C]; ``x`` itself where no row keeps the sub-layer.
    """
    if rows is None:
        return sublayer(x, None)
    passed = x if skipped is None else skipped(x)
    if rows.numel() == 0:
        return passed
    computed = sublayer(x.index_select(dim, rows), rows)  # [T, K, C]
    return passed.index_copy(dim, rows, computed.to(passed.dtype))


def run_gated(
    sublayer: Callable[[Tensor, KeptRows], Tensor],
    x: Tensor,
    gate: Tensor,
    skipped: Optional[Callable[[Tensor], Tensor]] = None,
) -> Tensor:
    """Runs ``sublayer`` for every row and mixes its output with what a skipping row passes on.

    Saves nothing; it lets gradients reach the decisions in training. With gates of 0 and 1 the values are those of
    :func:`run_kept_rows`.

    Args:
        sublayer, x, skipped: as :func:`run_kept_rows`'s.
        gate: [B], 1 = keep, 0 = skip.

    Returns:
        [T, B, C].
    """
    passed = x if skipped is None else skipped(x)
    return passed + gate.to(x.dtype).view(1, -1, 1) * (sublayer(x, None) - passed)


def select_rows(tensor: Optional[Tensor], rows: KeptRows, dim: int = 0) -> Optional[Tensor]:
    """Selects the kept rows of an optional tensor along ``dim``."""
    return tensor if tensor is None or rows is None else tensor.index_select(dim, rows)


def expand_rows(rows: KeptRows, beam: int) -> KeptRows:
    """Maps sentence indices [K] to the indices of their beam rows [K * beam]."""
    if rows is None or beam == 1:
        return rows
    return (rows.unsqueeze(1) * beam + torch.arange(beam, device=rows.device)).reshape(-1)
