"""The decoder of a search whose tokens leave early, with packed weights (rules by confidence)."""

from __future__ import annotations

from typing import Any, List, Tuple

import torch
from torch import Tensor

from sd_fairseq.execution.beam_cache import cache_dtype
from sd_fairseq.plugin.generation.fast_encoder import EncodedSource
from sd_fairseq.plugin.generation.fast_weights import FastWeights, LayerWeights, Precision, pack
from sd_fairseq.plugin.generation.source_cache import source_keys_values
from sd_fairseq.plugin.models.exit_layer import ExitLayer
from sd_fairseq.plugin.models.exit_search import ExitSearch


class PackedParts:
    """A layer's packed products behind the calls of :class:`~sd_fairseq.plugin.models.exit_layer.ModuleParts`.

    Args:
        layer: its weights.
        attention: fairseq's self-attention, whose keys and values alone need a product of their own.
        precision: of the products.
    """

    def __init__(self, layer: LayerWeights, attention: Any, precision: Precision):
        self.layer, self.heads, self.head_dim = layer, layer.heads, layer.head_dim
        self.attention, self.cross = layer.attention_residual, layer.cross_residual
        self.attention_out, self.cross_out = layer.attention_out, layer.cross_out
        if layer.keys_values is None:
            layer.keys_values = pack([attention.k_proj, attention.v_proj], precision)

    def ffn(self, x: Tensor) -> Tensor:
        """The whole feed-forward sub-layer: [N, C] -> [N, C]."""
        return self.layer.ffn_residual(x, self.layer.ffn)

    def project(self, x: Tensor) -> Tuple[Tensor, ...]:
        """Makes queries, scaled, keys and values of self-attention's input: [N, C] -> [N, H, D] each."""
        return self.layer.qkv(x).view(-1, 3, self.heads, self.head_dim).unbind(1)

    def keys_values(self, x: Tensor) -> Tuple[Tensor, ...]:
        """Makes keys and values alone, of states [N, C] before the layer: [N, H, D] each."""
        residual, product = self.layer.attention_residual, self.layer.keys_values
        assert product is not None, "packed when the search began"
        return product(residual.norm(x) if residual.before else x).view(-1, 2, self.heads, self.head_dim).unbind(1)

    def cross_query(self, x: Tensor) -> Tensor:
        """Makes the queries of cross-attention, scaled: [N, C] -> [N, H, D]."""
        return self.layer.cross_query(x).view(-1, self.heads, self.head_dim)

    def source(self, source: EncodedSource) -> Tuple[Tensor, Tensor]:
        """Makes the keys and values of the source, [B, H, S', D] each; tokens without padding run."""
        both, lengths = source_keys_values(self.layer, source, None)  # [N', 2C]
        both = torch.nn.utils.rnn.pad_sequence(list(both.split(lengths)), batch_first=True)  # [B, S', 2C]
        keys, values = both.unflatten(-1, (2, self.heads, self.head_dim)).permute(2, 0, 3, 1, 4).contiguous()
        return keys, values


class FastExitSearch:
    """The decoder's state during one search; the calls of :class:`~.fast_decoder.DecoderSearch`.

    Args:
        model: a switchable BART.
        weights: the model's, packed.
        source: the encoder's output.
        beam: hypotheses a sentence.
    """

    def __init__(self, model: Any, weights: FastWeights, source: EncodedSource, beam: int):
        self.weights, decoder = weights, model.decoder
        device, lengths = source.x.device, torch.tensor(source.lengths, device=source.x.device)
        padding = torch.arange(int(lengths.max()), device=device) >= lengths.unsqueeze(1)  # [B, S']
        hidden = padding.view(padding.size(0), 1, 1, -1) if bool(padding.any()) else None
        dtype = cache_dtype(source.x.dtype, device)
        layers: List[ExitLayer] = []
        for layer, module in zip(weights.decoder_layers, decoder.layers):
            parts = PackedParts(layer, module.self_attn, weights.precision)
            layers.append(ExitLayer(parts, *parts.source(source), hidden, beam, dtype))
        self.search = ExitSearch(decoder.rule, layers, self._head, source.decisions, beam, source.log)

    def _head(self, x: Tensor) -> Tensor:
        norm = self.weights.decoder_norm
        return self.weights.head(x if norm is None else norm(x))

    def step(self, tokens: Tensor) -> Tensor:
        """Decodes one step: LongTensor [R, step + 1] -> logits [R, V]."""
        x = self.weights.embed_step(tokens)
        if self.weights.embedding_norm is not None:
            x = self.weights.embedding_norm(x)
        return self.search.step(x, tokens.size(1) - 1)[1]

    def reorder(self, new_order: Tensor) -> None:
        """Follows the search; LongTensor [R'], the row before of every row after, sentence-major."""
        self.search.reorder(new_order)
