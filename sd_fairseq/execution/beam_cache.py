"""Self-attention caches of a beam search that are written once and never copied.

A search that reorders its hypotheses would have to reorder their keys and values. Here the keys of all hypotheses of
a sentence stand side by side in the order they were made, and every hypothesis attends over all of them under a mask
that lets through its own ancestors' only: a reordering changes the mask, a few numbers, instead of the caches. The
keys read a step are the same many as before, since every hypothesis would have read its own copy.
"""

from __future__ import annotations

from typing import List, Optional

import torch
from torch import Tensor

FIRST_STEPS = 64  # steps that a cache has room for at first; it doubles when they are used up


class AncestryMask:
    """Which earlier positions are a hypothesis's own, for every sentence of a search.

    Args:
        sentences: B.
        beam: hypotheses a sentence.
        dtype, device: of the attention scores that the mask is added to.
    """

    def __init__(self, sentences: int, beam: int, dtype: torch.dtype, device: torch.device):
        self.beam = beam
        own = torch.full((beam, beam), float("-inf"), dtype=dtype, device=device).fill_diagonal_(0.0)
        self.own = own.view(1, beam, beam)
        self.mask = self.own.repeat(sentences, 1, FIRST_STEPS)  # [B, beam, steps * beam]

    def upto(self, step: int) -> Tensor:
        """Returns [B, 1, beam, (step + 1) * beam], 0 = an ancestor or the hypothesis itself, -inf = another's."""
        length = (step + 1) * self.beam
        if length > self.mask.size(2):
            more = self.own.repeat(self.mask.size(0), 1, self.mask.size(2) // self.beam)
            self.mask = torch.cat([self.mask, more], dim=2)
        return self.mask[:, :, :length].unsqueeze(1)

    def reorder(self, parents: Tensor, steps: int) -> None:
        """Lets every hypothesis take over the ancestors of its parent.

        Args:
            parents: LongTensor [B, beam], which hypothesis of the sentence each one continues.
            steps: steps done so far.
        """
        before = self.mask[:, :, : steps * self.beam]
        index = parents.unsqueeze(2).expand(-1, -1, before.size(2))
        self.mask[:, :, : steps * self.beam] = before.gather(1, index)

    def move(self, target: int, source: int, count: int) -> None:
        """Puts sentence ``source`` in the place of ``target`` and keeps the first ``count`` sentences."""
        if target != source:
            self.mask[target] = self.mask[source]
        self.mask = self.mask[:count]


class SelfAttentionCache:
    """Keys and values of the sentences that keep one layer's self-attention.

    Keys stand transposed, so that the product with the queries reads them along memory.

    Args:
        sentences: K, those that keep the layer.
        heads: H.
        head_dim: C / H.
        beam: hypotheses a sentence.
        like: a tensor of the wanted dtype and device.
    """

    def __init__(self, sentences: int, heads: int, head_dim: int, beam: int, like: Tensor):
        self.beam = beam
        room = FIRST_STEPS * beam
        self.keys = like.new_zeros(sentences, heads, head_dim, room)
        self.values = like.new_zeros(sentences, heads, room, head_dim)

    def append(self, keys: Tensor, values: Tensor, step: int) -> None:
        """Writes one step's keys and values, each [K, beam, H, C / H]."""
        start, end = step * self.beam, (step + 1) * self.beam
        if end > self.values.size(2):
            self.keys = torch.cat([self.keys, torch.zeros_like(self.keys)], dim=3)
            self.values = torch.cat([self.values, torch.zeros_like(self.values)], dim=2)
        self.keys[:, :, :, start:end] = keys.permute(0, 2, 3, 1)
        self.values[:, :, start:end] = values.transpose(1, 2)

    def attend(self, queries: Tensor, step: int, mask: Optional[Tensor]) -> Tensor:
        """Attends over everything up to ``step``.

        Args:
            queries: [K, beam, H, C / H], scaled.
            step: the step just appended.
            mask: [K or 1, 1, beam, (step + 1) * beam], added to the scores, or None.

        Returns:
            [K * beam, C].
        """
        length = (step + 1) * self.beam
        return attend(queries, self.keys[:, :, :, :length], self.values[:, :, :length], mask)

    def move(self, target: int, source: int, count: int) -> None:
        """Puts sentence ``source`` in the place of ``target`` and keeps the first ``count`` sentences."""
        if target != source:
            self.keys[target] = self.keys[source]
            self.values[target] = self.values[source]
        self.keys, self.values = self.keys[:count], self.values[:count]


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Optional[Tensor]) -> Tensor:
    """Attention of a few queries a sentence over many keys.

    Args:
        queries: [K, Q, H, D], scaled.
        keys: [K, H, D, N].
        values: [K, H, N, D].
        mask: [K or 1, 1, Q or 1, N], added to the scores, or None.

    Returns:
        [K * Q, H * D].
    """
    sentences, count, heads, dim = queries.size()
    queries = queries.transpose(1, 2).reshape(sentences * heads, count, dim)  # [K * H, Q, D]
    scores = torch.bmm(queries, keys.flatten(0, 1))  # [K * H, Q, N]
    if mask is not None:
        scores.view(sentences, heads, count, -1).add_(mask)
    weights = torch.softmax(scores, dim=-1)
    output = torch.bmm(weights, values.flatten(0, 1))  # [K * H, Q, D]
    return output.view(sentences, heads, count, dim).transpose(1, 2).reshape(sentences * count, heads * dim)


class Slots:
    """The sentences of a search that keep one sub-layer, in the order of that sub-layer's cache.

    Args:
        kept: their slots, or None = every sentence, in the order of the slots.
    """

    def __init__(self, kept: Optional[List[int]]):
        self.kept = kept

    def remove(self, slot: int, last: int) -> "tuple[int, int, int]":
        """Takes out sentence ``slot``; the sentence in slot ``last``, the highest, moves there.

        Returns:
            What a cache in this order has to move: (target, source, sentences left).
        """
        if self.kept is None:
            return slot, last, last
        target = source = len(self.kept)
        if slot in self.kept:
            target, source = self.kept.index(slot), len(self.kept) - 1
            self.kept[target] = self.kept[source]
            self.kept.pop()
        self.kept = [slot if one == last else one for one in self.kept]
        return target, source, len(self.kept)

    def rows(self, beam: int, device: torch.device) -> Optional[Tensor]:
        """Returns the beam rows of the kept sentences, LongTensor [K * beam]; None = all rows."""
        if self.kept is None:
            return None
        slots = torch.tensor(self.kept, dtype=torch.long, device=device)
        return (slots.unsqueeze(1) * beam + torch.arange(beam, device=device)).reshape(-1)
