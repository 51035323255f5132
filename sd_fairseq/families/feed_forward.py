"""The feed-forward sub-layer, plain or with a gate (Shazeer, "GLU Variants Improve Transformer")."""

from __future__ import annotations

from functools import partial
from typing import Callable, Dict, Optional

import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS: Dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
}
KINDS = ("relu", "gated-gelu", "gated-silu")  # as Hugging Face's configurations name them


class FeedForward(nn.Module):
    """``fc2(activation(fc1(x)))``, or ``fc2(activation(gate(x)) * fc1(x))``; no biases.

    Args:
        dim: C.
        ffn_dim: F.
        kind: activation, and ``gated-`` before it for a gate; see :data:`KINDS`.
        dropout: of the inner states.

    Raises:
        ValueError: another kind.
    """

    def __init__(self, dim: int, ffn_dim: int, kind: str, dropout: float = 0.0):
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"feed-forward kind {kind!r} is not one of {', '.join(KINDS)}")
        self.activation, self.dropout = ACTIVATIONS[kind.replace("gated-", "")], dropout
        self.fc1 = nn.Linear(dim, ffn_dim, bias=False)
        self.gate: Optional[nn.Linear] = nn.Linear(dim, ffn_dim, bias=False) if kind.startswith("gated-") else None
        self.fc2 = nn.Linear(ffn_dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[T, B, C] -> [T, B, C]."""
        inner = self.fc1(x)  # [T, B, F]
        inner = self.activation(inner) if self.gate is None else self.activation(self.gate(x)) * inner
        return self.fc2(F.dropout(inner, self.dropout, self.training))
