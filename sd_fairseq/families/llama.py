"""LLaMA (Touvron et al., 2023): rotary positions, norms without mean and bias, a gated feed-forward, no biases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict

from torch import Tensor, nn

from sd_fairseq.families.norms import RMSNorm
from sd_fairseq.families.positions import rotate
from sd_fairseq.families.prompt_layer import DecoderShape, PromptLayer


@dataclass(frozen=True)
class LlamaShape(DecoderShape):
    """The sizes of a LLaMA.

    Args:
        theta: base of the rotation; the others are :class:`DecoderShape`'s.
    """

    theta: float = 10000.0

    @property
    def ffn_kind(self) -> str:
        """See :class:`DecoderShape`."""
        return "gated-silu"

    def make_norm(self) -> nn.Module:
        """See :class:`DecoderShape`."""
        return RMSNorm(self.dim, self.eps)

    def make_layer(self, index: int) -> LlamaLayer:
        """See :class:`DecoderShape`."""
        return LlamaLayer(self, index)


SIZES: Dict[str, LlamaShape] = {
    "7b": LlamaShape(4096, 32, 32, 128, 11008, 32),
    "135m": LlamaShape(576, 9, 3, 64, 1536, 30, theta=100000.0, tied_head=True),  # SmolLM2
    "tiny": LlamaShape(64, 4, 2, 16, 128, 4),
}


class LlamaLayer(PromptLayer):
    """One layer; arguments as :class:`PromptLayer`'s."""

    def __init__(self, shape: LlamaShape, index: int):
        super().__init__(shape, index)
        self.theta = shape.theta

    def place(self, x: Tensor, positions: Tensor) -> Tensor:
        """Turns queries or keys by their positions."""
        return rotate(x, positions, self.theta)
