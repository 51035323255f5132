"""FLOPs of one sub-layer, per example, from its own lengths (1 multiply-accumulate = 2 FLOPs).

Counted: every matrix product, as ``torch.utils.flop_counter`` counts them. Not counted: softmax, LayerNorm,
activations, embeddings look-ups, masks, sampling. Lengths may be tensors of any one shape; results have that shape.
"""

from __future__ import annotations

from typing import Sequence

from torch import Tensor


def self_attention_flops(tokens: Tensor, dim: int, attention_dim: int = 0) -> Tensor:
    """Full self-attention of S tokens: four projections (4CA S) and two products (2 S^2 A), in MACs.

    Here and below ``attention_dim`` is A, heads times their size; 0 = C.
    """
    inner = attention_dim or dim
    return 2 * (4 * dim * inner * tokens + 2 * tokens * tokens * inner)


def cached_self_attention_flops(tokens: Tensor, dim: int, attention_dim: int = 0) -> Tensor:
    """Self-attention of T tokens decoded one by one with a cache: 4CA + 2tA MACs at position t = 1..T."""
    inner = attention_dim or dim
    return 2 * (4 * dim * inner * tokens + inner * tokens * (tokens + 1))


def cross_attention_query_flops(
    target_tokens: Tensor, source_tokens: Tensor, dim: int, attention_dim: int = 0
) -> Tensor:
    """Query side of cross-attention: 2CA + 2S'A MACs a target token."""
    inner = attention_dim or dim
    return 2 * target_tokens * (2 * dim * inner + 2 * source_tokens * inner)


def cross_attention_cache_flops(source_tokens: Tensor, attention_dim: int, source_dim: int) -> Tensor:
    """Keys and values of cross-attention, once a sentence: 2CA S' MACs."""
    return 2 * 2 * attention_dim * source_dim * source_tokens


def ffn_flops(tokens: Tensor, dim: int, ffn_dim: int, products: int = 2) -> Tensor:
    """Feed-forward sub-layer: CF MACs a token for each of its products; 2, with a gate 3."""
    return 2 * products * dim * ffn_dim * tokens


def lm_head_flops(tokens: Tensor, dim: int, vocabulary: int) -> Tensor:
    """Output projection: CV MACs a token."""
    return 2 * dim * vocabulary * tokens


def linear_layers_flops(tokens: Tensor, widths: Sequence[int]) -> Tensor:
    """A head of linear layers between ``widths``, such as (C, C, classes): their products' MACs a token."""
    return 2 * sum(before * after for before, after in zip(widths, widths[1:])) * tokens


def policy_flops(dim: int, hidden: int, outputs: int) -> int:
    """The policy network, once a sentence: C * hidden + hidden * outputs MACs."""
    return 2 * (dim * hidden + hidden * outputs)
