"""The native decoder step's side in Python: what its structures point to, and its calls.

Everything that a structure points to is held beside it, so that a search may outlive the weights it began with.
"""

from __future__ import annotations

import ctypes
from ctypes import c_int64, c_void_p
from typing import Any, List, NamedTuple, Optional, Sequence

import torch
from torch import Tensor

from sd_fairseq.execution.beam_cache import SelfAttentionCache, Slots
from sd_fairseq.execution.native.caches import SourceCache, is_bf16
from sd_fairseq.execution.native.structures import (
    DecoderPointers,
    LayerPointers,
    NormPointers,
    ProductPointers,
)

ACTIVATIONS = {"gelu": 0, "relu": 1}


class Linear(NamedTuple):
    """A product's weights: [N, K] as PyTorch stores them, and bias [N] or None."""

    weight: Tensor
    bias: Optional[Tensor]


class LayerNorm(NamedTuple):
    """A LayerNorm's weights [C]."""

    weight: Tensor
    bias: Tensor
    eps: float


class Sublayer(NamedTuple):
    """A residual sub-layer: q/k/v, cross-attention's queries or the first feed-forward product; the last; its norm."""

    first: Linear
    last: Linear
    norm: LayerNorm


class Shape(NamedTuple):
    """What all layers of a decoder share."""

    dim: int
    inner: int  # of the feed-forward sub-layers
    heads: int
    activation: str
    norm_before: bool
    skip_keeps_norm: bool
    dtype: torch.dtype


def can_run(shape: Shape) -> bool:
    """Tells whether a decoder can run natively; products read 32 inputs at once, attention pairs of a head's."""
    whole = shape.dim % 32 == 0 and shape.inner % 32 == 0 and shape.dim // shape.heads % 2 == 0
    return whole and shape.activation in ACTIVATIONS and shape.dtype in (torch.float32, torch.bfloat16)


class NativeDecoder:
    """A decoder's weights and one search's caches, behind the native library's calls.

    Args:
        library: the native one.
        shape: of the decoder, one that :func:`can_run`.
        layers: self-attention, cross-attention and feed-forward sub-layer of each.
        head: the product that makes logits.
        embedding_norm, final_norm: before and after the layers, or None.
        rows: R, at most.
        beam: hypotheses a sentence.
    """

    def __init__(
        self,
        library: Any,
        shape: Shape,
        layers: Sequence[Sequence[Sublayer]],
        head: Linear,
        embedding_norm: Optional[LayerNorm],
        final_norm: Optional[LayerNorm],
        rows: int,
        beam: int,
    ):
        self.calls, self.shape = library, shape
        self.held: List[Tensor] = []  # what pointers point to
        self.slots: List[Tensor] = []
        self.layers = (LayerPointers * len(layers))()
        for pointers, sublayers in zip(self.layers, layers):
            for one, sublayer in zip((pointers.attention, pointers.cross, pointers.ffn), sublayers):
                one.first, one.last = self._product(sublayer.first), self._product(sublayer.last)
                one.norm = self._norm(sublayer.norm)
        self.head = self._product(head)
        self.input = torch.empty(rows, shape.dim, dtype=shape.dtype)
        inner = torch.empty(rows, max(shape.dim, shape.inner), dtype=shape.dtype)
        projected = torch.empty(rows, 3 * shape.dim)
        self.pointers = DecoderPointers(
            layers=self.layers,
            layer_count=len(layers),
            dim=shape.dim,
            heads=shape.heads,
            beam=beam,
            activation=ACTIVATIONS[shape.activation],
            norm_before=shape.norm_before,
            skip_keeps_norm=shape.skip_keeps_norm,
            embedding_norm=self._norm(embedding_norm),
            final_norm=self._norm(final_norm),
            input=self._hold(self.input),
            inner=self._hold(inner),
            projected=self._hold(projected),
        )

    def _hold(self, value: Optional[Tensor]) -> Optional[int]:
        """Returns a tensor's address and keeps it there."""
        if value is None:
            return None
        self.held.append(value.contiguous())
        return int(self.held[-1].data_ptr())

    def _product(self, linear: Linear) -> ProductPointers:
        bias = None if linear.bias is None else linear.bias.float()
        return ProductPointers(self._hold(linear.weight), self._hold(bias), *linear.weight.size())

    def _norm(self, norm: Optional[LayerNorm]) -> NormPointers:
        if norm is None:
            return NormPointers()
        return NormPointers(self._hold(norm.weight.float()), self._hold(norm.bias.float()), norm.eps)

    def point(
        self,
        sentences: int,
        slots: Sequence[Sequence[Slots]],
        self_caches: Sequence[Optional[SelfAttentionCache]],
        cross_caches: Sequence[Optional[SourceCache]],
    ) -> None:
        """Follows the search where its sentences or its caches' memory change.

        Args:
            sentences: B, those that are not finished.
            slots: of every layer's three sub-layers.
            self_caches, cross_caches: of every layer, None where no sentence keeps the sub-layer.
        """
        self.pointers.sentences = sentences
        self.slots = []
        for layer, three, own, source in zip(self.layers, slots, self_caches, cross_caches):
            for sublayer, one in zip((layer.attention, layer.cross, layer.ffn), three):
                skipped = [] if one.kept is None else sorted(set(range(sentences)) - set(one.kept))
                sublayer.kept, sublayer.skipped = sentences - len(skipped), len(skipped)
                sublayer.kept_slots = None if one.kept is None else self._numbers(one.kept)
                sublayer.skipped_slots = self._numbers(skipped)
            if own is not None:
                layer.self_keys, layer.self_values = own.both[0].data_ptr(), own.both[1].data_ptr()
                layer.self_stride = own.both.stride(1)
            if source is not None:
                layer.cross_keys, layer.cross_values = source.keys.data_ptr(), source.values.data_ptr()
                layer.source_lengths, layer.source_padded = source.lengths.data_ptr(), source.padded

    def _numbers(self, numbers: List[int]) -> int:
        self.slots.append(torch.tensor(numbers, dtype=torch.long))
        return int(self.slots[-1].data_ptr())

    def run(self, x: Tensor, step: int, ancestors: Tensor) -> None:
        """Runs all layers on x [R, C], float32, in place; ``ancestors`` is [B, beam, steps], int32."""
        self.pointers.threads = torch.get_num_threads()
        address = c_void_p(ancestors.data_ptr())
        arguments = c_void_p(x.data_ptr()), c_int64(step), address, c_int64(ancestors.stride(1))
        self.calls.decoder_step(ctypes.byref(self.pointers), is_bf16(self.input), *arguments)

    def logits(self, x: Tensor) -> Tensor:
        """[R, C] -> [R, V], float32."""
        out = torch.empty(x.size(0), self.head.outputs)
        x_at, input_at, out_at = (c_void_p(one.data_ptr()) for one in (x, self.input, out))
        rows, threads = c_int64(x.size(0)), c_int64(torch.get_num_threads())
        self.calls.multiply_head(ctypes.byref(self.head), is_bf16(self.input), x_at, rows, input_at, out_at, threads)
        return out
