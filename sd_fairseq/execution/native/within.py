"""Attention of sentences over themselves, natively."""

from __future__ import annotations

from ctypes import c_int64, c_void_p
from functools import lru_cache
from typing import Any, Optional, Sequence

import torch
from torch import Tensor

from sd_fairseq.execution.native import library


def kernel_for(qkv: Tensor, heads: int) -> Optional[Any]:
    """Returns the native library where it attends faster than PyTorch: on a CPU, in bfloat16; otherwise None.

    Choice: only on processors that multiply bfloat16 pairs in AVX-512 and have nothing wider. Where there is AMX,
    PyTorch's products of this size use it; float32 has a fused kernel in PyTorch.
    """
    if qkv.dtype != torch.bfloat16 or qkv.device.type != "cpu" or (qkv.size(1) // 3 // heads) % 2:
        return None
    native = library.load()
    return native if native is not None and multiplies_pairs() else None


@lru_cache(maxsize=None)
def multiplies_pairs() -> bool:
    """Tells whether AVX-512 is the widest way in which the processor multiplies bfloat16."""
    flags = library.processor_flags()
    return "avx512_bf16" in flags and "amx_bf16" not in flags


def attend_within(kernel: Any, qkv: Tensor, lengths: Sequence[int], heads: int) -> Tensor:
    """Attends inside every sentence.

    Args:
        kernel: :func:`kernel_for`'s.
        qkv: [N, 3C], queries scaled; the tokens of all sentences, one after the other.
        lengths: of the sentences, summing to N.
        heads: H.

    Returns:
        [N, C].
    """
    qkv = qkv.contiguous()
    out = qkv.new_empty(qkv.size(0), qkv.size(1) // 3)
    sizes = torch.tensor(lengths, dtype=torch.long)
    kernel.attend_within(
        *(c_void_p(qkv.data_ptr()), c_void_p(sizes.data_ptr())),
        *(c_int64(number) for number in (len(lengths), heads, out.size(1) // heads)),
        *(c_void_p(out.data_ptr()), c_int64(torch.get_num_threads())),
    )
    return out
