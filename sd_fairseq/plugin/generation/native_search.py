"""The decoder of a search whose steps run natively: few rows on a CPU that the native library is made for."""

from __future__ import annotations

from typing import Any, List, Optional, Sequence

import torch
from torch import Tensor

from sd_fairseq.execution.native import decoder as native
from sd_fairseq.execution.native import library
from sd_fairseq.execution.native.caches import Ancestors, SourceCache
from sd_fairseq.plugin.generation.fast_decoder import DecoderSearch, LayerSearch
from sd_fairseq.plugin.generation.fast_encoder import EncodedSource
from sd_fairseq.plugin.generation.fast_exits import FastExitSearch
from sd_fairseq.plugin.generation.fast_weights import FastWeights, LayerWeights, Norm, Product
from sd_fairseq.plugin.generation.source_cache import source_keys_values

# Choice: of BART-large in bfloat16 with 800 source tokens, native steps take 0.61 to 0.66 of PyTorch's time for 4 to 16
# rows and 0.73 for 32; in float32 0.9 for 32. oneDNN's kernel gains with every row more, and on shorter sources.
MOST_ROWS = 32


def start_search(model: Any, weights: FastWeights, source: EncodedSource, beam: int) -> Any:
    """Begins a search in the way that is fastest for it; arguments as :class:`DecoderSearch`'s."""
    if model.decoder.rule.by_confidence:
        return FastExitSearch(model, weights, source, beam)
    is_native = runs_natively(model, weights, source, beam)
    return (NativeSearch if is_native else DecoderSearch)(model, weights, source, beam)


def runs_natively(model: Any, weights: FastWeights, source: EncodedSource, beam: int) -> bool:
    """Tells whether a search's steps run natively."""
    if (
        not weights.runs_natively
        or weights.precision.int8
        or source.x.device.type != "cpu"
        or len(source.lengths) * beam > MOST_ROWS
    ):
        return False
    return native.can_run(shape_of(model, weights)) and library.load() is not None


def shape_of(model: Any, weights: FastWeights) -> native.Shape:
    """Describes a model's decoder."""
    decoder, layer = model.decoder, weights.decoder_layers[0]
    inner = decoder.layers[0].fc1.weight.size(0)
    before = layer.ffn_residual.before
    return native.Shape(
        *(layer.heads * layer.head_dim, inner, layer.heads, layer.ffn.name),
        *(before, bool(decoder.skip_keeps_layer_norm), weights.precision.dtype),
    )


def sublayers_of(layer: LayerWeights) -> List[native.Sublayer]:
    """Returns a layer's weights, row by row."""
    return [
        native.Sublayer(linear_of(first), linear_of(last), norm_of(residual.norm))
        for first, last, residual in (
            (layer.qkv, layer.attention_out, layer.attention_residual),
            (layer.cross_query, layer.cross_out, layer.cross_residual),
            (layer.ffn.first, layer.ffn.second, layer.ffn_residual),
        )
    ]


def linear_of(product: Product) -> native.Linear:
    """Returns a product's weights, row by row."""
    return native.Linear(product.row_major(), product.bias)


def norm_of(norm: Norm) -> native.LayerNorm:
    """Returns a LayerNorm's weights."""
    return native.LayerNorm(norm.weight, norm.bias, norm.eps)


class NativeLayerSearch(LayerSearch):
    """A layer's caches, with the source as the native attention reads it."""

    @staticmethod
    def source_cache(layer: LayerWeights, source: EncodedSource, kept: Optional[List[int]]) -> SourceCache:
        """Makes the keys and values of the source."""
        return SourceCache(library.load(), *source_keys_values(layer, source, kept), layer.heads)


class NativeSearch(DecoderSearch):
    """As :class:`DecoderSearch`, for what :func:`runs_natively` admits."""

    layer_search = NativeLayerSearch

    def __init__(self, model: Any, weights: FastWeights, source: EncodedSource, beam: int):
        super().__init__(model, weights, source, beam)
        norms = (None if one is None else norm_of(one) for one in (weights.embedding_norm, weights.decoder_norm))
        self.native = native.NativeDecoder(
            *(library.load(), shape_of(model, weights)),
            [sublayers_of(layer) for layer in weights.decoder_layers],
            *(linear_of(weights.head), *norms, len(source.lengths) * beam, beam),
        )
        self._point()

    def _build_ancestry(self, sentences: int) -> Ancestors:
        return Ancestors(sentences, self.beam)

    def _point(self) -> None:
        """Tells the native decoder where everything is now."""
        self.native.point(
            len(self.slot_of),
            [layer.slots for layer in self.layers],
            [layer.self_cache for layer in self.layers],
            [layer.cross_cache for layer in self.layers],
        )

    def _run_layers(self, x: Tensor, step: int) -> Tensor:
        grown = [layer.self_cache.make_room(step) for layer in self.layers if layer.self_cache is not None]
        if any(grown):
            self._point()
        x = x.detach().to(torch.float32).contiguous()
        self.native.run(x, step, self.ancestry.upto(step))
        return x

    def _run_head(self, x: Tensor) -> Tensor:
        return self.native.logits(x)

    def _end_layers(self, ending: Sequence[int]) -> None:
        super()._end_layers(ending)
        self._point()

    def _keep_sentences(self, kept: List[int]) -> None:
        super()._keep_sentences(kept)
        self._point()
