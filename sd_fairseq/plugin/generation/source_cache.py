"""What a search keeps of the source: keys and values of cross-attention, for the sentences that keep a layer's."""

from __future__ import annotations

from typing import List, Optional, Tuple

import torch
from torch import Tensor

from sd_fairseq.execution.beam_cache import attend, for_heads
from sd_fairseq.plugin.generation.fast_encoder import EncodedSource, token_rows
from sd_fairseq.plugin.generation.fast_weights import LayerWeights


class CrossAttentionCache:
    """Keys and values of the source, for the sentences that keep one layer's cross-attention.

    Args:
        layer: its weights.
        source: the encoder's output.
        kept: the sentences, ascending, or None for all.
    """

    def __init__(self, layer: LayerWeights, source: EncodedSource, kept: Optional[List[int]]):
        both, lengths = source_keys_values(layer, source, kept)
        longest = max(lengths)
        self.mask: Optional[Tensor] = None
        if min(lengths) < longest:
            both = torch.nn.utils.rnn.pad_sequence(list(both.split(lengths)), batch_first=True)  # [K, S', 2C]
            padding = torch.arange(longest).unsqueeze(0) >= torch.tensor(lengths).unsqueeze(1)
            mask = torch.zeros(padding.size()).masked_fill(padding, float("-inf")).to(both)
            self.mask = mask.unsqueeze(1)  # [K, 1, S']
        both = both.view(len(lengths), longest, 2, layer.heads, layer.head_dim)
        self.values = both[:, :, 1].transpose(1, 2).contiguous()  # [K, H, S', D]
        if both.dtype == torch.float32:  # oneDNN and MKL each read the keys faster in another layout
            self.keys = both[:, :, 0].permute(0, 2, 3, 1).contiguous()  # [K, H, D, S']
        else:
            self.keys = both[:, :, 0].transpose(1, 2).contiguous().transpose(2, 3)  # [K, H, D, S']
        self.heads = layer.heads
        self._keep(len(lengths))

    def _keep(self, count: int) -> None:
        """Keeps the first ``count`` sentences."""
        self.keys, self.values = self.keys[:count], self.values[:count]
        self.mask = None if self.mask is None else self.mask[:count]
        self.head_keys, self.head_values = self.keys.flatten(0, 1), self.values.flatten(0, 1)
        self.head_mask = None if self.mask is None else for_heads(self.mask, self.heads)

    def attend(self, queries: Tensor) -> Tensor:
        """Attends over the source: [K, beam, H, D] -> [K * beam, C]."""
        return attend(queries, self.head_keys, self.head_values, self.head_mask)

    def move(self, target: int, source: int, count: int) -> None:
        """Puts sentence ``source`` in the place of ``target`` and keeps the first ``count`` sentences."""
        if target != source:
            for part in (self.keys, self.values, self.mask):
                if part is not None:
                    part[target] = part[source]
        self._keep(count)


def source_keys_values(
    layer: LayerWeights, source: EncodedSource, kept: Optional[List[int]]
) -> Tuple[Tensor, List[int]]:
    """Computes the keys and values of the kept sentences' tokens, [N', 2C]; returns them and the sentences' lengths."""
    sentences = torch.tensor(kept, dtype=torch.long) if kept is not None else None
    rows = token_rows(sentences, source.lengths)
    x = source.x if rows is None else source.x.index_select(0, rows.to(source.x.device))
    lengths = source.lengths if kept is None else [source.lengths[one] for one in kept]
    return layer.cross_keys_values(x), lengths
