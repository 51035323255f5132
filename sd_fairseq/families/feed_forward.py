"""The feed-forward sub-layer, plain or with a gate (Shazeer, "GLU Variants Improve Transformer")."""

from __future__ import annotations

from functools import partial
from typing import Callable, Dict, Optional

import torch.nn.functional as F
from torch import Tensor, nn

TANH_GELU = partial(F.gelu, approximate="tanh")
KINDS: Dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu-tanh": TANH_GELU,
    "gated-gelu": TANH_GELU,  # T5's
    "gated-silu": F.silu,
}


class FeedForward(nn.Module):
    """``fc2(activation(fc1(x)))``, or ``fc2(activation(gate(x)) * fc1(x))``.

    Args:
        dim: C.
        ffn_dim: F.
        kind: activation, and ``gated-`` before it for a gate; see :data:`KINDS`.
        dropout: of the inner states.
        biases: of every product.

    Raises:
        ValueError: another kind.
    """

    def __init__(self, dim: int, ffn_dim: int, kind: str, dropout: float = 0.0, biases: bool = False):
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"feed-forward kind {kind!r} is not one of {', '.join(KINDS)}")
        self.activation, self.dropout = KINDS[kind], dropout
        self.fc1 = nn.Linear(dim, ffn_dim, bias=biases)
        gated = kind.startswith("gated-")
        self.gate: Optional[nn.Linear] = nn.Linear(dim, ffn_dim, bias=biases) if gated else None
        self.fc2 = nn.Linear(ffn_dim, dim, bias=biases)

    def forward(self, x: Tensor) -> Tensor:
        """[T, B, C] -> [T, B, C]."""
        inner = self.fc1(x)  # [T, B, F]
        inner = self.activation(inner) if self.gate is None else self.activation(self.gate(x)) * inner
        return self.fc2(F.dropout(inner, self.dropout, self.training))
