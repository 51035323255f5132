"""Normalisation by the root mean square, without mean and bias (T5, LLaMA)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def divide_by_rms(x: Tensor, eps: float) -> Tensor:
    """Divides the states [..., C] by their root mean square; float32 inside, whatever ``x`` is."""
    wide = x.float()
    return wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)


class RMSNorm(nn.Module):
    """``weight * x / rms(x)``.

    Args:
        dim: C.
        eps: added to the mean square.
    """

    def __init__(self, dim: int, eps: float = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., C]."""
        return self.weight * divide_by_rms(x, self.eps).to(self.weight.dtype)
