"""The structures of the native decoder step, field by field as decoder_step.h has them."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_double, c_int64, c_void_p


class ProductPointers(ctypes.Structure):
    """Mirrors ``Product``."""

    _fields_ = [("weight", c_void_p), ("bias", c_void_p), ("outputs", c_int64), ("inputs", c_int64)]


class NormPointers(ctypes.Structure):
    """Mirrors ``Norm``."""

    _fields_ = [("weight", c_void_p), ("bias", c_void_p), ("eps", c_double)]


class SublayerPointers(ctypes.Structure):
    """Mirrors ``Sublayer``."""

    _fields_ = [
        ("first", ProductPointers),
        ("last", ProductPointers),
        ("norm", NormPointers),
        ("kept", c_int64),
        ("skipped", c_int64),
        ("kept_slots", c_void_p),
        ("skipped_slots", c_void_p),
    ]


class LayerPointers(ctypes.Structure):
    """Mirrors ``Layer``."""

    _fields_ = [
        ("attention", SublayerPointers),
        ("cross", SublayerPointers),
        ("ffn", SublayerPointers),
        ("self_keys", c_void_p),
        ("self_values", c_void_p),
        ("self_stride", c_int64),
        ("cross_keys", c_void_p),
        ("cross_values", c_void_p),
        ("source_lengths", c_void_p),
        ("source_padded", c_int64),
    ]


class DecoderPointers(ctypes.Structure):
    """Mirrors ``Decoder``."""

    _fields_ = [
        ("layers", POINTER(LayerPointers)),
        ("layer_count", c_int64),
        ("dim", c_int64),
        ("heads", c_int64),
        ("beam", c_int64),
        ("sentences", c_int64),
        ("activation", c_int64),
        ("norm_before", c_int64),
        ("skip_keeps_norm", c_int64),
        ("threads", c_int64),
        ("embedding_norm", NormPointers),
        ("final_norm", NormPointers),
        ("input", c_void_p),
        ("inner", c_void_p),
        ("projected", c_void_p),
    ]


# in the order of native.cpp's structure_sizes
STRUCTURES = (ProductPointers, NormPointers, SublayerPointers, LayerPointers, DecoderPointers)
