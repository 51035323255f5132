"""T5's encoder and decoder behind fairseq's interfaces: the flows of all families with T5's layers in them."""

from __future__ import annotations

from typing import Any, Dict, Optional, Tuple

import torch
import torch.nn.functional as F
from fairseq.models import FairseqEncoder, FairseqIncrementalDecoder
from torch import Tensor, nn

from sd_fairseq.decision.decisions import DecisionSpace
from sd_fairseq.execution.layer_rows import LayerRows
from sd_fairseq.families.attention import causal_scores, padding_scores
from sd_fairseq.families.norms import RMSNorm
from sd_fairseq.families.positions import RelativeBias
from sd_fairseq.families.t5 import T5DecoderLayer, T5EncoderLayer, T5Shape
from sd_fairseq.plugin.models.decoder_flow import IncrementalState
from sd_fairseq.plugin.models.text_stacks import TextDecoder, TextEncoder


class SwitchableT5Encoder(TextEncoder):
    """A T5 encoder that decides and skips.

    Args:
        shape: the model's sizes.
        dictionary: fairseq dictionary.
        embed_tokens: embedding that both stacks share.
        space: the decision space.
        policy: who decides; None = always dense.
        max_positions: longest source, in tokens.
    """

    def __init__(
        self,
        shape: T5Shape,
        dictionary: Any,
        embed_tokens: nn.Embedding,
        space: DecisionSpace,
        policy: Optional[nn.Module],
        max_positions: int,
    ):
        FairseqEncoder.__init__(self, dictionary)
        self.space, self.policy, self.longest = space, policy, max_positions
        self.padding_idx, self.eps = dictionary.pad(), shape.eps
        self.embed_tokens = embed_tokens
        self.dropout, self.num_layers = shape.dropout, shape.encoder_layers
        self.relative_bias = RelativeBias(shape.heads, shape.buckets, shape.farthest, both_ways=True)
        self.layers = nn.ModuleList(T5EncoderLayer(shape) for _ in range(shape.encoder_layers))
        self.layer_norm = RMSNorm(shape.dim, shape.eps)

    def embed_source(
        self, src_tokens: Tensor, token_embeddings: Optional[Tensor], padding_mask: Optional[Tensor]
    ) -> Tuple[Tensor, Tensor]:
        """T5 embeds tokens and no positions; padding is hidden by the masks."""
        embedded = self.embed_tokens(src_tokens) if token_embeddings is None else token_embeddings  # [B, S, C]
        return F.dropout(embedded, self.dropout, self.training).transpose(0, 1), embedded

    def describe_tokens(self, x: Tensor, padding_mask: Optional[Tensor], positions: Optional[Tensor]) -> Tensor:
        """Returns what is added to the scores, [B or 1, H, S', S']: bias by original positions, and padding."""
        if positions is None:
            positions = torch.arange(x.size(0), device=x.device).unsqueeze(0)  # [1, S']
        bias = self.relative_bias(positions, positions)
        return bias if padding_mask is None else bias + padding_scores(padding_mask, bias.dtype)

    def run_layer(self, index: int, x: Tensor, tokens: Tensor, rows: LayerRows) -> Tensor:
        """Runs a layer; ``tokens`` is what :meth:`describe_tokens` returned."""
        return self.layers[index](x, tokens, rows)

    def finish(self, x: Tensor) -> Tensor:
        """The stack's last norm."""
        return F.dropout(self.layer_norm(x), self.dropout, self.training)


class SwitchableT5Decoder(TextDecoder):
    """A T5 decoder that skips what the decisions in ``encoder_out`` say.

    fairseq begins a target with the end-of-sentence symbol, T5 with its padding row: the first is read as the second.

    Args:
        shape: the model's sizes.
        dictionary: fairseq dictionary.
        embed_tokens: embedding that both stacks share.
        attention_layer: layer (from 0) whose cross-attention is returned by default: the one that always runs.
        max_positions: longest target, in tokens.
    """

    def __init__(
        self, shape: T5Shape, dictionary: Any, embed_tokens: nn.Embedding, attention_layer: int, max_positions: int
    ):
        FairseqIncrementalDecoder.__init__(self, dictionary)
        self.attention_layer, self.longest = attention_layer, max_positions
        self.padding_idx, self.eos = dictionary.pad(), dictionary.eos()
        self.embed_tokens = embed_tokens
        self.dropout, self.num_layers = shape.dropout, shape.decoder_layers
        self.relative_bias = RelativeBias(shape.heads, shape.buckets, shape.farthest, both_ways=False)
        self.layers = nn.ModuleList(T5DecoderLayer(shape, index) for index in range(shape.decoder_layers))
        self.layer_norm = RMSNorm(shape.dim, shape.eps)
        self.head_scale = shape.dim**-0.5 if shape.tied_head else 1.0
        self.output_projection: Optional[nn.Linear] = None
        if not shape.tied_head:
            self.output_projection = nn.Linear(shape.dim, embed_tokens.num_embeddings, bias=False)

    def embed_target(
        self, tokens: Tensor, incremental_state: Optional[IncrementalState], encoder_out: Dict[str, list]
    ) -> Tuple[Tensor, Optional[Tensor]]:
        """As every flow's; the leading end-of-sentence symbol becomes T5's own beginning."""
        padding_mask = tokens.eq(self.padding_idx)  # [R, T]
        leading = tokens.eq(self.eos) & ((~padding_mask).cumsum(dim=1) == 1)
        tokens = tokens.masked_fill(leading, self.padding_idx)
        tokens = tokens if incremental_state is None else tokens[:, -1:]
        x = F.dropout(self.embed_tokens(tokens), self.dropout, self.training).transpose(0, 1)  # [T, R, C]
        hides = incremental_state is None and bool(padding_mask.any())
        return x, padding_mask if hides else None

    def self_attention_mask(self, x: Tensor, steps: int, causal: bool) -> Tensor:
        """Returns bias and causal mask, [1, H, T, tokens so far]."""
        keys = torch.arange(steps, device=x.device).unsqueeze(0)  # [1, tokens so far]
        bias = self.relative_bias(keys[:, steps - x.size(0) :], keys)
        return bias + causal_scores(steps, bias.dtype, x.device) if causal else bias

    def finish(self, x: Tensor) -> Tensor:
        """The stack's last norm: [T, R, C] -> [R, T, C]."""
        return F.dropout(self.layer_norm(x), self.dropout, self.training).transpose(0, 1)

    def output_layer(self, features: Tensor, **unused: Any) -> Tensor:
        """[R, T, C] -> [R, T, V]."""
        if self.output_projection is None:
            return F.linear(features * self.head_scale, self.embed_tokens.weight)
        return self.output_projection(features)
