"""The weights of a switchable LLaMA as generation reads them.

Choice: states between sub-layers stay float32 in every precision, as of every pre-norm family here.
"""

from __future__ import annotations

from typing import Any, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor, nn

from sd_fairseq.execution.rotation import Turns, pair_rows, turn
from sd_fairseq.families.llama import LlamaLayer
from sd_fairseq.plugin.generation.fast_blocks import FastFeedForward, FastRMSNorm, embed, head_of, residual_of
from sd_fairseq.plugin.generation.fast_weights import FastWeights, Precision, device_of, pack, take_fingerprint


class Paired(NamedTuple):
    """A linear layer whose outputs stand in another order."""

    weight: Tensor
    bias: Optional[Tensor]


class LlamaLayerWeights:
    """One layer, ready to run.

    Args:
        layer: a LLaMA's layer.
        precision: see :class:`Precision`.
    """

    def __init__(self, layer: LlamaLayer, precision: Precision):
        self.heads, self.key_heads, self.head_dim = layer.heads, layer.key_heads, layer.head_dim
        self.attention_residual = residual_of(layer.self_attn_layer_norm, precision)
        turned: List[Any] = [paired(layer.q_proj, self.head_dim), paired(layer.k_proj, self.head_dim)]
        self.qkv = pack([*turned, layer.v_proj], precision, scales=(self.head_dim**-0.5, 1.0, 1.0))
        self.attention_out = pack([layer.out_proj], precision)
        self.ffn_residual = residual_of(layer.final_layer_norm, precision)
        self.ffn = FastFeedForward(layer.ffn, precision)

    def project(self, x: Tensor, turns: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """Makes scaled queries [N, H, D], keys and values [N, H_kv, D] of [N, C]; queries and keys turned, float32.

        Args:
            x: normalised states.
            turns: complex [N, 1, D / 2], of the positions.
        """
        parts = self.qkv(x).view(x.size(0), -1, self.head_dim)  # [N, H + 2 * H_kv, D]
        both = self.heads + self.key_heads
        turned = turn(parts[:, :both], turns)
        return turned[:, : self.heads], turned[:, self.heads :], parts[:, both:]


class FastLlamaWeights(FastWeights):
    """All of a LLaMA's weights, packed.

    Args:
        model: a switchable LLaMA.
        precision: see :class:`Precision`.
    """

    runs_natively = False

    def __init__(self, model: Any, precision: Precision):
        decoder = model.decoder
        self.model = model
        self.fingerprint = take_fingerprint(model)
        self.precision, self.stream, self.keeps_norm = precision, torch.float32, False
        self.device = device_of(model)
        self.decoder_layers = [LlamaLayerWeights(layer, precision) for layer in decoder.layers]
        self.decoder_norm = FastRMSNorm(decoder.layer_norm, precision.dtype)
        self.embedding_norm = None
        self.turns = Turns(self.decoder_layers[0].head_dim, decoder.layers[0].theta, self.device)
        self.head = pack([head_of(decoder)], precision)

    def embed_tokens(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Embeds LongTensor [N] with positions LongTensor [N], which enter later here: [N, C]."""
        return embed(self.model.decoder.embed_tokens.weight, tokens).to(self.stream)

    def logits(self, x: Tensor) -> Tensor:
        """[R, C] -> [R, V]; an added symbol gets its row's smallest logit."""
        logits = self.head(x)
        added = len(self.model.decoder.dictionary) - logits.size(1)
        if added <= 0:
            return logits
        return torch.cat([logits, logits.min(dim=1, keepdim=True).values.expand(-1, added)], dim=1)


def paired(linear: nn.Linear, head_dim: int) -> Paired:
    """Returns a projection whose outputs stand as :func:`turn` reads them."""
    bias = None if linear.bias is None else pair_rows(linear.bias.detach(), head_dim)
    return Paired(pair_rows(linear.weight.detach(), head_dim), bias)
