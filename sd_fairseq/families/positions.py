"""Positions that enter the scores as distances of two tokens: buckets (T5) and rotation (LLaMA).

A distance is that of the text as it came: a token keeps its position when others are dropped. Padding on either side
changes no distance.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def relative_bucket(distance: Tensor, buckets: int, farthest: int, both_ways: bool) -> Tensor:
    """Sorts distances into buckets: exact up to half of them, then logarithmic up to ``farthest``.

    Args:
        distance: LongTensor, position of the key minus position of the query.
        buckets: how many there are.
        farthest: distance from which on all share the last bucket.
        both_ways: True = half of the buckets for keys before the query and half for those behind (encoder); False =
            keys behind it count as distance 0 (decoder).

    Returns:
        LongTensor, 0 to ``buckets`` - 1.
    """
    first = torch.zeros_like(distance)
    if both_ways:
        buckets //= 2
        first = (distance > 0).long() * buckets
        distance = distance.abs()
    else:
        distance = (-distance).clamp(min=0)
    exact = buckets // 2
    scale = (buckets - exact) / math.log(farthest / exact)
    far = exact + (torch.log(distance.clamp(min=1).float() / exact) * scale).long()
    return first + torch.where(distance < exact, distance, far.clamp(max=buckets - 1))


class RelativeBias(nn.Module):
    """The bias that all layers of a stack share.

    Args:
        heads: H.
        buckets, farthest, both_ways: see :func:`relative_bucket`.
    """

    def __init__(self, heads: int, buckets: int, farthest: int, both_ways: bool):
        super().__init__()
        self.buckets, self.farthest, self.both_ways = buckets, farthest, both_ways
        self.embedding = nn.Embedding(buckets, heads)

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Returns what is added to the scores.

        Args:
            queries: LongTensor [B, T], positions; B = 1 where all examples have the same.
            keys: LongTensor [B, S].

        Returns:
            [B, H, T, S].
        """
        distance = keys.unsqueeze(1) - queries.unsqueeze(2)  # [B, T, S]
        bucket = relative_bucket(distance, self.buckets, self.farthest, self.both_ways)
        return self.embedding(bucket).permute(0, 3, 1, 2)  # [B, H, T, S]


def rotate(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """Turns queries or keys by their positions (rotary embedding), so that their product depends on the distance.

    Args:
        x: [B, H, T, D]; the first half of D is paired with the second, as Hugging Face pairs them.
        positions: LongTensor [B or 1, T].
        theta: base of the wavelengths.

    Returns:
        [B, H, T, D].
    """
    half = x.size(-1) // 2
    rates = theta ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)  # [D / 2]
    angles = positions.unsqueeze(-1).float() * rates  # [B, T, D / 2]
    cosine, sine = angles.cos().unsqueeze(1).to(x.dtype), angles.sin().unsqueeze(1).to(x.dtype)  # [B, 1, T, D / 2]
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)
