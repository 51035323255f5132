"""T5's layers (Raffel et al., 2020; v1.1 has a gate), cut into sub-layers that run for the rows that keep them.

Every sub-layer normalises its input and adds its output to what it was given, so skipping is the identity. Keys, values
and scores are as in the original: no biases, no scaling by the head's size, a score bias from relative positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Optional, Tuple

import torch.nn.functional as F
from torch import Tensor, nn

from sd_fairseq.execution.layer_rows import LayerRows
from sd_fairseq.execution.sublayers import KeptRows, select_rows
from sd_fairseq.families.attention import Attention, Cache, padding_scores
from sd_fairseq.families.feed_forward import FeedForward
from sd_fairseq.families.norms import RMSNorm

BUCKETS, FARTHEST = 32, 128  # of every published T5
FEED_FORWARDS = ("relu", "gated-gelu")  # of T5 1.0 and v1.1


@dataclass(frozen=True)
class T5Shape:
    """The sizes of a T5.

    Args:
        dim: C.
        heads, head_dim: H and D; A = H * D need not be C.
        ffn_dim: F.
        encoder_layers, decoder_layers: layers of each stack.
        feed_forward: one of :data:`FEED_FORWARDS`; v1.1 ``gated-gelu``, 1.0 ``relu``.
        tied_head: True = the head is the embedding, its input times C^-1/2 (1.0).
        dropout: everywhere where the original has it.
        eps: of the norms.
        buckets, farthest: of the relative positions.
    """

    dim: int
    heads: int
    head_dim: int
    ffn_dim: int
    encoder_layers: int
    decoder_layers: int
    feed_forward: str = "gated-gelu"
    tied_head: bool = False
    dropout: float = 0.0
    eps: float = 1e-6
    buckets: int = BUCKETS
    farthest: int = FARTHEST

    @property
    def attention_dim(self) -> int:
        """A."""
        return self.heads * self.head_dim


# C, H, D, F, layers of each stack, feed-forward, tied head; as published
SIZES: Dict[str, T5Shape] = {
    "small": T5Shape(512, 6, 64, 1024, 8, 8),
    "base": T5Shape(768, 12, 64, 2048, 12, 12),
    "large": T5Shape(1024, 16, 64, 2816, 24, 24),
    "1_0_small": T5Shape(512, 8, 64, 2048, 6, 6, "relu", True),
    "1_0_base": T5Shape(768, 12, 64, 3072, 12, 12, "relu", True),
    "tiny": T5Shape(64, 3, 16, 128, 4, 4),
}


class T5Layer(nn.Module):
    """What the layers of both stacks share.

    Args:
        shape: the model's.
    """

    def __init__(self, shape: T5Shape):
        super().__init__()
        self.dropout = shape.dropout
        self.self_attn = Attention(shape.dim, shape.heads, shape.head_dim, dropout=shape.dropout)
        self.self_attn_layer_norm = RMSNorm(shape.dim, shape.eps)
        self.ffn = FeedForward(shape.dim, shape.ffn_dim, shape.feed_forward, shape.dropout)
        self.final_layer_norm = RMSNorm(shape.dim, shape.eps)

    def add(self, x: Tensor, change: Tensor) -> Tensor:
        """Adds a sub-layer's output to its input, both [T, K, C]."""
        return x + F.dropout(change, self.dropout, self.training)

    def run_attention(self, x: Tensor, mask: Optional[Tensor], cache: Optional[Cache] = None) -> Tensor:
        """Self-attention with its norm and residual: [T, K, C] -> [T, K, C]."""
        normed = self.self_attn_layer_norm(x)
        return self.add(x, self.self_attn(normed, normed, mask, cache)[0])

    def run_ffn(self, x: Tensor, _: KeptRows = None) -> Tensor:
        """Feed-forward with its norm and residual: [T, K, C] -> [T, K, C]."""
        return self.add(x, self.ffn(self.final_layer_norm(x)))


class T5EncoderLayer(T5Layer):
    """A layer whose two sub-layers run for the rows that keep them; arguments as :class:`T5Layer`'s."""

    def forward(self, x: Tensor, mask: Tensor, rows: LayerRows = LayerRows()) -> Tensor:
        """Runs the layer.

        Args:
            x: [S, B, C].
            mask: [B or 1, H, S, S], bias and padding, added to the scores.
            rows: who keeps what.

        Returns:
            [S, B, C].
        """

        def attention(part: Tensor, kept: KeptRows) -> Tensor:
            return self.run_attention(part, select_masks(mask, kept))

        x = rows.run("encoder_attention", attention, x, rows.attention, None)
        return rows.run("encoder_ffn", self.run_ffn, x, rows.ffn, None)


class T5DecoderLayer(T5Layer):
    """A layer whose three sub-layers run for the rows that keep them, with caches of those rows only.

    Args:
        shape: the model's.
        index: of the layer, from 0: its caches' name.
    """

    def __init__(self, shape: T5Shape, index: int):
        super().__init__(shape)
        self.encoder_attn = Attention(shape.dim, shape.heads, shape.head_dim, dropout=shape.dropout)
        self.encoder_attn_layer_norm = RMSNorm(shape.dim, shape.eps)
        self.index = index

    def cache_of(self, site: str, incremental_state: Optional[Dict[str, Cache]]) -> Optional[Cache]:
        """Returns the cache of ``decoder_attention`` or ``decoder_cross_attention``; None in teacher forcing."""
        return None if incremental_state is None else incremental_state.setdefault(f"layer {self.index} {site}", {})

    def forward(
        self,
        x: Tensor,
        encoder_out: Tensor,
        encoder_padding_mask: Optional[Tensor],
        incremental_state: Optional[Dict[str, Cache]] = None,
        self_attn_mask: Optional[Tensor] = None,
        self_attn_padding_mask: Optional[Tensor] = None,
        need_attn: bool = False,
        rows: LayerRows = LayerRows(),
    ) -> Tuple[Tensor, Optional[Tensor]]:
        """Runs the layer.

        Args:
            x: [T, R, C]; R = sentences * beam rows.
            encoder_out: [S', B, C], one row a sentence.
            encoder_padding_mask: BoolTensor [B, S'], True = padding, or None.
            incremental_state: caches of a search, or None in teacher forcing.
            self_attn_mask: [1, H, T, tokens so far], bias and causal mask.
            self_attn_padding_mask: BoolTensor [R, T], True = padding, or None; not in a search.
            need_attn: return cross-attention weights.
            rows: who keeps what.

        Returns:
            Output [T, R, C]; weights [H, K, T, S'] of the rows that keep cross-attention, or None.
        """
        weights: Optional[Tensor] = None

        def attention(part: Tensor, kept: KeptRows) -> Tensor:
            mask, padding = self_attn_mask, select_rows(self_attn_padding_mask, kept)
            if padding is not None and mask is not None and incremental_state is None:
                mask = mask + padding_scores(padding, mask.dtype) / 2  # half: two lowest numbers would add up to -inf
            return self.run_attention(part, mask, self.cache_of("decoder_attention", incremental_state))

        def cross(part: Tensor, _: KeptRows) -> Tensor:
            nonlocal weights
            output, weights = self.run_cross_attention(
                part,
                encoder_out,
                encoder_padding_mask,
                self.cache_of("decoder_cross_attention", incremental_state),
                rows,
            )
            return output

        x = rows.run("decoder_attention", attention, x, rows.attention, None)
        x = rows.run("decoder_cross_attention", cross, x, rows.cross_rows, None)
        x = rows.run("decoder_ffn", self.run_ffn, x, rows.ffn, None)
        return x, weights if need_attn else None

    def run_cross_attention(
        self, x: Tensor, source: Tensor, padding_mask: Optional[Tensor], cache: Optional[Cache], rows: LayerRows
    ) -> Tuple[Tensor, Tensor]:
        """Cross-attention with its norm and residual: [T, K, C] -> [T, K, C] and weights [H, K, T, S'].

        The hypotheses of a sentence share its keys and values: they stand side by side as query positions of one
        sentence, [T * beam, K / beam, C].
        """
        steps, kept, dim = x.size()
        beam = rows.beam
        query = self.encoder_attn_layer_norm(x)
        query = query.view(steps, kept // beam, beam, dim).transpose(1, 2).reshape(steps * beam, kept // beam, dim)
        if cache is not None and cache.get("keys") is not None:  # then its rows are the search's, the source's are not
            key, mask = None, cache["mask"]
        else:
            key, padding = select_rows(source, rows.cross, dim=1), select_rows(padding_mask, rows.cross)
            mask = None if padding is None else padding_scores(padding, x.dtype)
            if cache is not None:
                cache["mask"] = mask
        change, weights = self.encoder_attn(query, key, mask, cache)
        change = change.view(steps, beam, kept // beam, dim).transpose(1, 2).reshape(steps, kept, dim)
        weights = weights.transpose(0, 1).view(
            weights.size(1), kept // beam, steps, beam, -1
        )  # [H, K/beam, T, beam, S']
        return self.add(x, change), weights.transpose(2, 3).reshape(weights.size(0), kept, steps, -1)


def select_masks(mask: Tensor, rows: KeptRows) -> Tensor:
    """Selects the kept rows of a mask [B, H, T, S]; one that all rows share [1, H, T, S] stays."""
    return mask if rows is None or mask.size(0) == 1 else mask.index_select(0, rows)
