"""The weights of a switchable T5 as generation reads them.

Choice: states between sub-layers stay float32 in every precision. Of a trained T5 they reach some hundred thousands,
where bfloat16 would round away what a sub-layer adds; products and attention are in the wanted precision.
"""

from __future__ import annotations

from typing import Any, List, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from sd_fairseq.families.t5 import T5Layer
from sd_fairseq.plugin.generation.fast_blocks import FastFeedForward, FastRMSNorm, head_of, residual_of
from sd_fairseq.plugin.generation.fast_weights import FastWeights, Precision, device_of, pack, take_fingerprint
from sd_fairseq.plugin.guards.errors import InputError


class T5LayerWeights:
    """One layer, ready to run.

    Args:
        layer: a T5 encoder or decoder layer.
        precision: see :class:`Precision`.
    """

    def __init__(self, layer: T5Layer, precision: Precision):
        attention, cross = layer.self_attn, getattr(layer, "encoder_attn", None)
        self.heads, self.head_dim = attention.heads, attention.head_dim
        self.attention_residual = residual_of(layer.self_attn_layer_norm, precision)
        self.qkv = pack([attention.q_proj, attention.k_proj, attention.v_proj], precision)
        self.attention_out = pack([attention.out_proj], precision)
        self.ffn_residual = residual_of(layer.final_layer_norm, precision)
        self.ffn = FastFeedForward(layer.ffn, precision)
        if cross is not None:
            self.cross_residual = residual_of(layer.encoder_attn_layer_norm, precision)
            self.cross_query = pack([cross.q_proj], precision)
            self.cross_keys_values = pack([cross.k_proj, cross.v_proj], precision)
            self.cross_out = pack([cross.out_proj], precision)


class FastT5Weights(FastWeights):
    """All of a T5's weights, packed.

    Args:
        model: a switchable T5.
        precision: see :class:`Precision`.

    Raises:
        InputError: float16, in which a T5 overflows.
    """

    runs_natively = False

    def __init__(self, model: Any, precision: Precision):
        if precision.dtype == torch.float16:
            raise InputError("--sd-generation-precision float16: a trained T5 overflows in it; use bfloat16 or float32")
        encoder, decoder = model.encoder, model.decoder
        self.model = model
        self.fingerprint = take_fingerprint(model)
        self.precision, self.stream, self.keeps_norm = precision, torch.float32, False
        self.device = device_of(model)
        self.encoder_layers = [T5LayerWeights(layer, precision) for layer in encoder.layers]
        self.decoder_layers = [T5LayerWeights(layer, precision) for layer in decoder.layers]
        self.encoder_norm = FastRMSNorm(encoder.layer_norm, precision.dtype)
        self.decoder_norm = FastRMSNorm(decoder.layer_norm, precision.dtype)
        self.embedding_norm = None
        self.head = pack([head_of(decoder, decoder.head_scale)], precision)

    def embed_source(self, src_tokens: Tensor) -> Tensor:
        """Embeds the source: [B, S] -> [B, S, C]."""
        return F.embedding(src_tokens, self.model.encoder.embed_tokens.weight)

    def embed_step(self, tokens: Tensor) -> Tensor:
        """Embeds the newest of [R, step + 1] tokens: [R, C]."""
        return self.model.decoder.embed_target(tokens, {}, {})[0].squeeze(0).to(self.stream)

    def source_bias(self, lengths: List[int], keep: Optional[Tensor] = None) -> Optional[List[Tensor]]:
        """Returns the bias of each sentence [H, S', S'], a view of one for all where no token is dropped."""
        longest = max(lengths) if keep is None else keep.size(1)
        places = torch.arange(longest, device=self.device).unsqueeze(0)
        bias = self.model.encoder.relative_bias(places, places).detach()[0]  # [H, S, S]
        if keep is None:
            return [bias[:, :length, :length] for length in lengths]
        kept = [row.nonzero().flatten() for row in keep]
        return [bias.index_select(1, one).index_select(2, one) for one in kept]

    def step_bias(self, step: int) -> Optional[Tensor]:
        """Returns the bias of a step, [H, step + 1]."""
        keys = torch.arange(step + 1, device=self.device).unsqueeze(0)
        return self.model.decoder.relative_bias(keys[:, step:], keys).detach()[0, :, 0].float()
