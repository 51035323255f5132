"""FLOPs of a decoder-only model: one stack of layers reads the prompt once and writes the answer step by step.

The prompt's last token is the answer's first input. Layer 1 sees the whole prompt, also from the answer; the layers
above see what the token strategy has left. Grouped queries: the keys and values of a layer are K wide, K <= A.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict

from torch import Tensor

from sd_fairseq.cost.path_flops import ModelShape
from sd_fairseq.cost.sublayer_flops import ffn_flops


@dataclass(frozen=True)
class PromptShape(ModelShape):
    """The dimensions of a decoder-only model; both stacks of :class:`ModelShape` are its one.

    Args:
        key_dim: K, heads of keys and values times their size; 0 = A.
        tokens_apart: tokens of a source that the prompt's run leaves out: its last, and the end-of-sentence symbol.
    """

    key_dim: int = 0
    tokens_apart: int = 2

    def encoded_tokens(self, source: Tensor) -> Tensor:
        """See :class:`ModelShape`."""
        return (source - self.tokens_apart).clamp(min=0)

    def projections(self, tokens: Tensor) -> Tensor:
        """Queries, keys, values and output: 2CA + 2CK MACs a token."""
        inner = self.attention_dim or self.encoder_dim
        return 2 * self.encoder_dim * (2 * inner + 2 * (self.key_dim or inner)) * tokens

    def encoder_sites(self, tokens: Tensor) -> Dict[str, Tensor]:
        """The prompt's sub-layers: the projections and two products (2 S^2 A MACs), and the feed-forward."""
        inner = self.attention_dim or self.encoder_dim
        return {
            "encoder_attention": self.projections(tokens) + 2 * 2 * tokens * tokens * inner,
            "encoder_ffn": ffn_flops(tokens, self.encoder_dim, self.encoder_ffn_dim, self.ffn_products),
        }

    def decoder_sites_of_paper(self, tokens: Tensor) -> Dict[str, Tensor]:
        """As the prompt's; there is no cross-attention."""
        sites = self.encoder_sites(tokens)
        return {
            "decoder_attention": sites["encoder_attention"],
            "decoder_cross_attention": 0 * tokens,
            "decoder_ffn": sites["encoder_ffn"],
        }

    def decoder_sites(self, target: Tensor, kept: Tensor, beam: int) -> Dict[str, Tensor]:
        """The answer's sub-layers: at step t its token reads s' of the prompt and t of the answer, 2A (s' + t) MACs."""
        inner = self.attention_dim or self.encoder_dim
        products = 2 * inner * (2 * kept * target + target * (target + 1))
        return {
            "decoder_attention": beam * (self.projections(target) + products),
            "decoder_cross_attention": 0 * target,
            "decoder_ffn": beam * ffn_flops(target, self.encoder_dim, self.encoder_ffn_dim, self.ffn_products),
        }

    def first_layer(self, target: Tensor, full: Tensor, kept: Tensor, beam: int) -> Tensor:
        """Layer 1 over the whole prompt, and what the answer reads there of dropped tokens."""
        inner = self.attention_dim or self.encoder_dim
        sites = self.encoder_sites(full)
        return sites["encoder_attention"] + sites["encoder_ffn"] + beam * 2 * inner * 2 * (full - kept) * target
