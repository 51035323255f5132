"""GPT-2 (Radford et al., 2019): learned positions, LayerNorm before each sub-layer, biases everywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Dict

from torch import nn

from sd_fairseq.families.prompt_layer import DecoderShape

FEED_FORWARDS = ("gelu-tanh", "gelu", "relu")  # GPT-2's own, and what fairseq's transformer_lm has


@dataclass(frozen=True)
class GPT2Shape(DecoderShape):
    """The sizes of a GPT-2; every head has its own keys, and heads times their size is C.

    Args:
        positions: that prompt and answer have together.
        feed_forward: one of :data:`FEED_FORWARDS`.
        embed_scale: factor of the token embeddings before positions are added; fairseq's transformer_lm: C^1/2.
    """

    positions: int = 1024
    feed_forward: str = FEED_FORWARDS[0]
    embed_scale: float = 1.0
    biases: ClassVar[bool] = True

    @property
    def ffn_kind(self) -> str:
        """See :class:`DecoderShape`."""
        return self.feed_forward

    def make_norm(self) -> nn.Module:
        """See :class:`DecoderShape`."""
        return nn.LayerNorm(self.dim, self.eps)

    @classmethod
    def of(cls, dim: int, heads: int, layers: int, positions: int = 1024) -> GPT2Shape:
        """Returns the shape of a published size."""
        return cls(dim, heads, heads, dim // heads, 4 * dim, layers, tied_head=True, positions=positions)


SIZES: Dict[str, GPT2Shape] = {
    "small": GPT2Shape.of(768, 12, 12),
    "medium": GPT2Shape.of(1024, 16, 24),
    "large": GPT2Shape.of(1280, 20, 36),
    "xl": GPT2Shape.of(1600, 25, 48),
    "tiny": GPT2Shape.of(64, 4, 4, positions=128),
}
