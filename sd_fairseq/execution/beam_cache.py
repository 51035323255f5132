"""Self-attention caches of a beam search that are written once and never copied.

A search that reorders its hypotheses would have to reorder their keys and values. Here the keys of all hypotheses of
a sentence stand side by side in the order they were made, and every hypothesis attends over all of them under a mask
that lets through its own ancestors' only: a reordering changes the mask, a few numbers, instead of the caches. The
keys read a step are as many as before, since every hypothesis would have read its own copy.
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
        """Returns [B, beam, (step + 1) * beam], 0 = an ancestor or the hypothesis itself, -inf = another's."""
        length = (step + 1) * self.beam
        if length > self.mask.size(2):
            more = self.own.repeat(self.mask.size(0), 1, self.mask.size(2) // self.beam)
            self.mask = torch.cat([self.mask, more], dim=2)
        return self.mask[:, :, :length]

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

    Args:
        sentences: K, those that keep the layer.
        heads: H, of keys and values; queries may have a multiple of it.
        head_dim: D.
        beam: hypotheses a sentence.
        dtype, device: of the cache, see :func:`cache_dtype`.
        prefix: keys and values [2, K, H, S, D] that all hypotheses of a sentence see, such as a prompt's.
    """

    def __init__(
        self,
        sentences: int,
        heads: int,
        head_dim: int,
        beam: int,
        dtype: torch.dtype,
        device: torch.device,
        prefix: Optional[Tensor] = None,
    ):
        self.beam = beam
        self.before = 0 if prefix is None else prefix.size(3)  # keys before the first step's
        size = (2, sentences, heads, self.before + FIRST_STEPS * beam, head_dim)
        self.both = torch.zeros(size, dtype=dtype, device=device)  # keys and values
        if prefix is not None:
            self.both[:, :, :, : self.before] = prefix

    def append(self, keys_values: Tensor, step: int) -> None:
        """Writes one step's keys and values, [2, K, H, beam, D]."""
        self.make_room(step)
        start = self.before + step * self.beam
        self.both[:, :, :, start : start + self.beam] = keys_values

    def make_room(self, step: int) -> bool:
        """Grows where there is no room for ``step``; tells whether it did."""
        if self.before + (step + 1) * self.beam <= self.both.size(3):
            return False
        self.both = torch.cat([self.both, torch.zeros_like(self.both)], dim=3)
        return True

    def attend(self, queries: Tensor, step: int, mask: Optional[Tensor]) -> Tensor:
        """Attends over everything up to ``step``.

        Args:
            queries: [K, beam, H, D], scaled; H of the queries.
            step: the step just appended.
            mask: see :func:`attend`; N = prefix + (step + 1) * beam.

        Returns:
            [K * beam, H * D], in the precision of ``queries``.
        """
        length = self.before + (step + 1) * self.beam
        keys, values = self.both[:, :, :, :length].flatten(1, 2).unbind(0)  # [K * H, N, D] each
        return attend(queries.to(keys.dtype), keys.transpose(1, 2), values, mask).to(queries.dtype)

    def move(self, target: int, source: int, count: int) -> None:
        """Puts sentence ``source`` in the place of ``target`` and keeps the first ``count`` sentences."""
        if target != source:
            self.both[:, target] = self.both[:, source]
        self.both = self.both[:, :count]


def cache_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Returns the precision of self-attention in a search.

    Choice: a CPU attends over the few hundred keys of a search faster in float32 than in bfloat16, whose kernels are
    made anew for every length.
    """
    return torch.float32 if device.type == "cpu" else dtype


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Optional[Tensor]) -> Tensor:
    """Attention of a few queries a sentence over many keys; heads may share keys and values in groups.

    Args:
        queries: [K, Q, H, D], scaled.
        keys: [K * H', D, N]; H' divides H.
        values: [K * H', N, D].
        mask: [K * H, Q, N], added to the scores, or None; see :func:`for_heads`. [K * H, 1, N] where H' is H.

    Returns:
        [K * Q, H * D].
    """
    sentences, count, heads, dim = queries.size()
    queries = queries.transpose(1, 2).reshape(keys.size(0), -1, dim)  # [K * H', H / H' * Q, D]
    if mask is not None and mask.size(0) != keys.size(0):
        mask = mask.reshape(keys.size(0), -1, mask.size(2))  # [K * H', H / H' * Q, N]
    scores = torch.bmm(queries, keys) if mask is None else torch.baddbmm(mask, queries, keys)
    output = torch.bmm(torch.softmax(scores, dim=-1), values)  # [K * H', H / H' * Q, D]
    return output.view(sentences, heads, count, dim).transpose(1, 2).reshape(sentences * count, heads * dim)


def for_heads(mask: Tensor, heads: int) -> Tensor:
    """Repeats a mask for every head: [K, Q, N] -> [K * H, Q, N]; a view for one sentence."""
    sentences, count, length = mask.size()
    return mask.unsqueeze(1).expand(-1, heads, -1, -1).reshape(sentences * heads, count, length)


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
