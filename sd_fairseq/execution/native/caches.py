"""What a search keeps beside the weights, as the native decoder step reads it."""

from __future__ import annotations

from ctypes import c_int64, c_void_p
from typing import Any, Sequence

import torch
from torch import Tensor

from sd_fairseq.execution.beam_cache import FIRST_STEPS

LANES = 16  # numbers in a register, as in vectors.h


class SourceCache:
    """Keys and values of the source, for the sentences that keep one layer's cross-attention.

    Args:
        library: the native one.
        both: [N', 2C], keys and values of the kept sentences' tokens, one sentence after the other.
        lengths: of the kept sentences.
        heads: H.
    """

    def __init__(self, library: Any, both: Tensor, lengths: Sequence[int], heads: int):
        size = both.size(1) // 2 // heads
        width = -(-size // LANES) * LANES
        self.padded = -(-max(lengths) // LANES) * LANES
        self.lengths = torch.tensor(lengths)
        self.keys = both.new_zeros(len(lengths), heads, self.padded * size)
        self.values = both.new_zeros(len(lengths), heads, self.padded * width)
        both = both.contiguous()
        library.pack_source(
            *(is_bf16(both), c_void_p(both.data_ptr()), c_void_p(self.lengths.data_ptr())),
            *(c_int64(number) for number in (len(lengths), heads, size, self.padded)),
            *(c_void_p(self.keys.data_ptr()), c_void_p(self.values.data_ptr()), c_int64(torch.get_num_threads())),
        )

    def move(self, target: int, source: int, count: int) -> None:
        """Puts sentence ``source`` in the place of ``target``; the first ``count`` sentences are left."""
        if target != source:
            for part in (self.keys, self.values, self.lengths):
                part[target] = part[source]


class Ancestors:
    """Which hypothesis every hypothesis of a sentence continues, at every step; the counterpart of AncestryMask.

    Args:
        sentences: B.
        beam: hypotheses a sentence.
    """

    def __init__(self, sentences: int, beam: int):
        self.own = torch.arange(beam, dtype=torch.int32).view(1, beam, 1)
        self.table = self.own.repeat(sentences, 1, FIRST_STEPS)  # [B, beam, steps]

    def upto(self, step: int) -> Tensor:
        """Returns the table with room for ``step``."""
        if step >= self.table.size(2):
            self.table = torch.cat([self.table, self.own.expand_as(self.table)], dim=2)
        return self.table

    def reorder(self, parents: Tensor, steps: int) -> None:
        """Lets every hypothesis take over the ancestors of its parent; as :meth:`AncestryMask.reorder`."""
        before = self.table[:, :, :steps]
        self.table[:, :, :steps] = before.gather(1, parents.unsqueeze(2).expand_as(before))

    def move(self, target: int, source: int, count: int) -> None:
        """Puts sentence ``source`` in the place of ``target``; the first ``count`` sentences are left."""
        if target != source:
            self.table[target] = self.table[source]
        self.table = self.table[:count]


def is_bf16(value: Tensor) -> int:
    """1 for bfloat16, 0 for float32: the native calls' choice between their two precisions."""
    return int(value.dtype == torch.bfloat16)
