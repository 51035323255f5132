"""The native decoder step's side in Python: its structures, what they point to, and its calls.

Everything that a structure points to is held beside it, so that a search may outlive the weights it began with.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_double, c_int64, c_void_p
from typing import Any, List, NamedTuple, Optional, Sequence

import torch
from torch import Tensor

from sd_fairseq.execution.beam_cache import FIRST_STEPS, SelfAttentionCache, Slots

LANES = 16  # numbers in a register, as in vectors.h
ACTIVATIONS = {"gelu": 0, "relu": 1}


class ProductPointers(ctypes.Structure):
    """Mirrors ``Product``."""

    _fields_ = [("weight", c_void_p), ("bias", c_void_p), ("outputs", c_int64), ("inputs", c_int64)]


class NormPointers(ctypes.Structure):
    """Mirrors ``Norm``."""

    _fields_ = [("weight", c_void_p), ("bias", c_void_p), ("eps", c_double)]


class SublayerPointers(ctypes.Structure):
    """Mirrors ``Sublayer``."""

    _fields_ = [
        *[("first", ProductPointers), ("last", ProductPointers), ("norm", NormPointers)],
        *[("kept", c_int64), ("skipped", c_int64), ("kept_slots", c_void_p), ("skipped_slots", c_void_p)],
    ]


class LayerPointers(ctypes.Structure):
    """Mirrors ``Layer``."""

    _fields_ = [
        *[("attention", SublayerPointers), ("cross", SublayerPointers), ("ffn", SublayerPointers)],
        *[("self_keys", c_void_p), ("self_values", c_void_p), ("self_stride", c_int64)],
        *[("cross_keys", c_void_p), ("cross_values", c_void_p)],
        *[("source_lengths", c_void_p), ("source_padded", c_int64)],
    ]


class DecoderPointers(ctypes.Structure):
    """Mirrors ``Decoder``."""

    _fields_ = [
        ("layers", POINTER(LayerPointers)),
        *[(name, c_int64) for name in ("layer_count", "dim", "heads", "beam", "sentences", "activation")],
        *[(name, c_int64) for name in ("norm_before", "skip_keeps_norm", "threads")],
        *[("embedding_norm", NormPointers), ("final_norm", NormPointers)],
        *[("input", c_void_p), ("inner", c_void_p), ("projected", c_void_p)],
    ]


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


def why_not(shape: Shape) -> Optional[str]:
    """Tells why a decoder cannot run natively; None = it can."""
    if shape.dtype not in (torch.float32, torch.bfloat16):
        return f"{shape.dtype}"
    if shape.activation not in ACTIVATIONS:
        return f"activation {shape.activation}"
    if shape.dim % 32 or shape.inner % 32 or (shape.dim // shape.heads) % 2:
        return f"sizes {shape.dim}, {shape.inner}, {shape.dim // shape.heads} are no multiples of 32, 32 and 2"
    return None


class SourceCache:
    """Keys and values of the source, for the sentences that keep one layer's cross-attention.

    Args:
        library: the native one.
        both: [N', 2C], keys and values of the kept sentences' tokens, one sentence after the other.
        lengths: of the kept sentences.
        heads: H.
    """

    def __init__(self, library: Any, both: Tensor, lengths: Sequence[int], heads: int):
        size = both.size(1) // 2 // heads
        width = -(-size // LANES) * LANES
        self.padded = -(-max(lengths) // LANES) * LANES
        self.lengths = torch.tensor(lengths)
        self.keys = both.new_zeros(len(lengths), heads, self.padded * size)
        self.values = both.new_zeros(len(lengths), heads, self.padded * width)
        both = both.contiguous()
        library.pack_source(
            *(is_bf16(both), c_void_p(both.data_ptr()), c_void_p(self.lengths.data_ptr())),
            *(c_int64(number) for number in (len(lengths), heads, size, self.padded)),
            *(c_void_p(self.keys.data_ptr()), c_void_p(self.values.data_ptr()), c_int64(torch.get_num_threads())),
        )

    def move(self, target: int, source: int, count: int) -> None:
        """Puts sentence ``source`` in the place of ``target``; the first ``count`` sentences are left."""
        if target != source:
            for part in (self.keys, self.values, self.lengths):
                part[target] = part[source]


class Ancestors:
    """Which hypothesis every hypothesis of a sentence continues, at every step; the counterpart of AncestryMask.

    Args:
        sentences: B.
        beam: hypotheses a sentence.
    """

    def __init__(self, sentences: int, beam: int):
        own = torch.arange(beam, dtype=torch.int32).view(1, beam, 1)
        self.table = own.repeat(sentences, 1, FIRST_STEPS)  # [B, beam, steps]

    def upto(self, step: int) -> Tensor:
        """Returns the table with room for ``step``."""
        if step >= self.table.size(2):
            own = self.table[:, :, -1:]  # not reached yet, so every hypothesis's own
            self.table = torch.cat([self.table, own.expand_as(self.table)], dim=2)
        return self.table

    def reorder(self, parents: Tensor, steps: int) -> None:
        """Lets every hypothesis take over the ancestors of its parent; as :meth:`AncestryMask.reorder`."""
        before = self.table[:, :, :steps]
        self.table[:, :, :steps] = before.gather(1, parents.unsqueeze(2).expand_as(before))

    def move(self, target: int, source: int, count: int) -> None:
        """Puts sentence ``source`` in the place of ``target``; the first ``count`` sentences are left."""
        if target != source:
            self.table[target] = self.table[source]
        self.table = self.table[:count]


class NativeDecoder:
    """A decoder's weights and one search's caches, behind the native library's calls.

    Args:
        library: see :func:`sd_fairseq.execution.native.library.load`.
        shape: of the decoder, one that :func:`why_not` has nothing against.
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
        self.library, self.shape = library, shape
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
            **{"layer_count": len(layers), "dim": shape.dim, "heads": shape.heads, "beam": beam},
            **{"activation": ACTIVATIONS[shape.activation], "norm_before": shape.norm_before},
            skip_keeps_norm=shape.skip_keeps_norm,
            **{"embedding_norm": self._norm(embedding_norm), "final_norm": self._norm(final_norm)},
            **{"input": self._hold(self.input), "inner": self._hold(inner), "projected": self._hold(projected)},
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
        self.library.decoder_step(ctypes.byref(self.pointers), is_bf16(self.input), *arguments)

    def logits(self, x: Tensor) -> Tensor:
        """[R, C] -> [R, V], float32."""
        out = torch.empty(x.size(0), self.head.outputs)
        pointers = (c_void_p(one.data_ptr()) for one in (x, self.input, out))
        rows, threads = c_int64(x.size(0)), c_int64(torch.get_num_threads())
        x_at, input_at, out_at = pointers
        self.library.multiply_head(ctypes.byref(self.head), is_bf16(self.input), x_at, rows, input_at, out_at, threads)
        return out


def is_bf16(value: Tensor) -> int:
    """1 for bfloat16, 0 for float32: the native calls' choice between their two precisions."""
    return int(value.dtype == torch.bfloat16)
