"""FLOPs of one sub-layer, per example, from its own lengths (1 multiply-accumulate = 2 FLOPs).

Counted: every matrix product, as ``torch.utils.flop_counter`` counts them. Not counted: softmax, LayerNorm,
activations, embeddings look-ups, masks, sampling. Lengths may be tensors of any one shape; results have that shape.
"""

from __future__ import annotations

from typing import Sequence

from torch import Tensor


def self_attention_flops(tokens: Tensor, dim: int) -> Tensor:
    """Full self-attention of S tokens: four projections (4C^2 S) and two products (2 S^2 C), in MACs."""
    return 2 * (4 * dim * dim * tokens + 2 * tokens * tokens * dim)


def cached_self_attention_flops(tokens: Tensor, dim: int) -> Tensor:
    """Self-attention of T tokens decoded one by one with a cache: 4C^2 + 2tC MACs at position t = 1..T."""
    return 2 * (4 * dim * dim * tokens + dim * tokens * (tokens + 1))


def cross_attention_query_flops(target_tokens: Tensor, source_tokens: Tensor, dim: int) -> Tensor:
    """Query side of cross-attention: 2C^2 + 2S'C MACs a target token."""
    return 2 * target_tokens * (2 * dim * dim + 2 * source_tokens * dim)


def cross_attention_cache_flops(source_tokens: Tensor, dim: int, source_dim: int) -> Tensor:
    """Keys and values of cross-attention, once a sentence: 2C^2 S' MACs."""
    return 2 * 2 * dim * source_dim * source_tokens


def ffn_flops(tokens: Tensor, dim: int, ffn_dim: int) -> Tensor:
    """Feed-forward sub-layer: 2CF MACs a token."""
    return 2 * 2 * dim * ffn_dim * tokens


def lm_head_flops(tokens: Tensor, dim: int, vocabulary: int) -> Tensor:
    """Output projection: CV MACs a token."""
    return 2 * dim * vocabulary * tokens


def linear_layers_flops(tokens: Tensor, widths: Sequence[int]) -> Tensor:
    """A head of linear layers between ``widths``, such as (C, C, classes): their products' MACs a token."""
    return 2 * sum(before * after for before, after in zip(widths, widths[1:])) * tokens


def policy_flops(dim: int, hidden: int, outputs: int) -> int:
    """The policy network, once a sentence: C * hidden + hidden * outputs MACs."""
    return 2 * (dim * hidden + hidden * outputs)
