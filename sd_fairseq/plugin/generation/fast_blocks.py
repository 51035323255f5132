"""Norms, feed-forward products and heads of pre-norm families, as generation runs them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd_fairseq.families.norms import divide_by_rms
from sd_fairseq.plugin.generation.fast_weights import Precision, Residual, pack


class FastRMSNorm:
    """The norm, from float32 states to the precision of the products.

    Args:
        module: the model's norm.
        dtype: of what it returns.
    """

    def __init__(self, module: Any, dtype: torch.dtype):
        self.weight, self.eps, self.dtype = module.weight.detach().float(), module.eps, dtype

    def __call__(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., C]."""
        return (divide_by_rms(x, self.eps) * self.weight).to(self.dtype)


def residual_of(norm: nn.Module, precision: Precision) -> Residual:
    """Returns ``x + f(norm(x))`` of float32 states."""
    return Residual(FastRMSNorm(norm, precision.dtype), before=True)  # type: ignore[arg-type]


class FastFeedForward:
    """A layer's feed-forward products; those of gate and input are one.

    Args:
        module: the model's sub-layer.
        precision: see :class:`Precision`.
    """

    name = "families"

    def __init__(self, module: Any, precision: Precision):
        self.gated, self.activation = module.gate is not None, module.activation
        inputs = [module.gate, module.fc1] if self.gated else [module.fc1]
        self.first, self.second = pack(inputs, precision), pack([module.fc2], precision)

    def __call__(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., C]."""
        x = self.first(x)
        if not self.gated:
            return self.second(self.activation(x))
        gate, x = x.chunk(2, dim=-1)  # [..., F] each
        return self.second(self.activation(gate) * x)


def head_of(decoder: Any, scale: float = 1.0) -> nn.Module:
    """Returns the head as a linear layer; a tied one is the embedding times a scale."""
    if decoder.output_projection is not None:
        return decoder.output_projection
    weight = decoder.embed_tokens.weight
    head = nn.Linear(weight.size(1), weight.size(0), bias=False, device="meta")
    scaled = weight.detach() if scale == 1.0 else weight.detach() * scale
    head.weight = nn.Parameter(scaled, requires_grad=False)
    return head


def embed(weight: Tensor, tokens: Tensor) -> Tensor:
    """Looks tokens up; a symbol behind the rows, which is padding, as the first one, and nobody sees it."""
    return F.embedding(tokens.masked_fill(tokens >= weight.size(0), 0), weight)
