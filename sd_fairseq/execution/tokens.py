"""Shortens a padded batch of sources to the tokens each example keeps (section 3.1, token candidate).

Choice: kept tokens keep the position embedding they got before; only layers after the cut see the shorter source.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ShortenedSource:
    """A batch after token skipping, S' = the longest kept source.

    Args:
        x: [S', B, C].
        padding_mask: BoolTensor [B, S'], True = padding; always on the right.
        positions: LongTensor [B, S'], where each token stood in the original [B, S] batch.
    """

    x: Tensor
    padding_mask: Tensor
    positions: Tensor


def shorten_source(x: Tensor, keep: Tensor) -> ShortenedSource:
    """Gathers the kept tokens.

    Args:
        x: [S, B, C].
        keep: BoolTensor [B, S], True = keep (padding False).
    """
    lengths = keep.sum(dim=1)  # [B]
    longest = int(lengths.max())
    positions = torch.argsort((~keep).to(torch.uint8), dim=1, stable=True)[:, :longest]  # [B, S']
    padding_mask = torch.arange(longest, device=keep.device) >= lengths.unsqueeze(1)  # [B, S']
    index = positions.t().unsqueeze(-1).expand(-1, -1, x.size(-1))  # [S', B, C]
    gathered = x.gather(0, index)  # [S', B, C]
    gathered = gathered.masked_fill(padding_mask.t().unsqueeze(-1), 0.0)
    return ShortenedSource(gathered, padding_mask, positions)


def restore_positions(attention: Tensor, positions: Tensor, source_length: int) -> Tensor:
    """Spreads attention over a shortened source back to the original positions; dropped tokens get 0.

    Args:
        attention: [B, T, S'].
        positions: LongTensor [B, S'].
        source_length: S.

    Returns:
        [B, T, S].
    """
    restored = attention.new_zeros(attention.size(0), attention.size(1), source_length)
    return restored.scatter_add(2, positions.unsqueeze(1).expand_as(attention), attention)
