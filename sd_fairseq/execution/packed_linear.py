"""A linear layer whose weights stand in memory the way the CPU's matrix kernel reads them.

A decoding step multiplies a handful of rows by every weight of the decoder, so its time is the time to read them.
Stored as PyTorch stores them they are read at a third of the memory's speed; packed once by oneDNN, at its speed.
Choice: one packing serves every number of rows; oneDNN picks the same layout for 4 and for 1,024.
Choice: weights that the native decoder step may read row by row are packed at their first product here, and unpacked
for that step's next; they are never held in both layouts, and a generation that goes from one to the other pays a copy.
"""

from __future__ import annotations

import warnings
from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS_HINT = 64  # rows that oneDNN chooses the layout for; measured the same from 4 to 1,024, another one for 1
ROWS_ROUNDED = 32  # more rows are rounded up to a multiple
PACK_FROM = 2**18  # float32 weights; fewer stay in the cache anyway, and oneDNN's call takes longer than the product
FUSED_ACTIVATIONS = ("gelu", "relu")


def can_pack(weight: Tensor) -> bool:
    """Tells whether oneDNN can pack ``weight`` in this build of PyTorch and on this machine, to its advantage."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    operators = torch.ops.mkldnn
    if not hasattr(operators, "_reorder_linear_weight") or not hasattr(operators, "_linear_pointwise"):
        return False
    if weight.dtype == torch.bfloat16:
        return bool(operators._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32 and weight.numel() >= PACK_FROM


def multiply_packed(*arguments: Any) -> Tensor:
    """oneDNN's product, which PyTorch looks up when it is first called."""
    return torch.ops.mkldnn._linear_pointwise(*arguments)  # type: ignore[no-any-return]


def round_up(rows: int) -> int:
    """Returns how many rows are multiplied for ``rows``: a multiple of 32 above 32.

    oneDNN compiles a kernel for every number of rows and keeps it, up to half a MiB each: texts of all lengths would
    fill hundreds of MiB.
    """
    return rows if rows <= ROWS_ROUNDED else -(-rows // ROWS_ROUNDED) * ROWS_ROUNDED


class PackedLinear:
    """``activation(x @ weight.T + bias)`` with a packed copy of the weights where the machine can pack.

    The copy does not follow later changes of the weights.

    Args:
        weight: [N, K].
        bias: [N] or None.
        activation: ``gelu`` or ``relu``, fused into the product where packed; None = none.
        late: pack at the first product only.
    """

    def __init__(
        self, weight: Tensor, bias: Optional[Tensor] = None, activation: Optional[str] = None, late: bool = False
    ):
        if activation is not None and activation not in FUSED_ACTIVATIONS:
            raise ValueError(f"activation {activation!r} is not one of {', '.join(FUSED_ACTIVATIONS)}")
        self.activation = activation
        self.bias = None if bias is None else bias.detach()
        self.is_packed = can_pack(weight)
        self.weight = weight.detach()
        if not late:
            self._pack()

    def _pack(self) -> None:
        """Packs the weights where they can be and are not."""
        if self.is_packed and not self.weight.is_mkldnn:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight.contiguous(), ROWS_HINT)

    def row_major(self) -> Tensor:
        """Returns the weights [N, K] as PyTorch stores them; a packed copy is given up for them."""
        if self.weight.is_mkldnn:
            self.weight = self.weight.to_dense()
        return self.weight

    def __call__(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., N]."""
        if self.is_packed:
            self._pack()
            attribute = "none" if self.activation is None else self.activation
            shape, x = x.shape[:-1], x.flatten(0, -2) if x.dim() > 1 else x.unsqueeze(0)  # [R, K]
            rows = x.size(0)
            padded = round_up(rows)
            x = x if padded == rows else F.pad(x, (0, 0, 0, padded - rows))
            out = multiply_packed(x, self.weight, self.bias, attribute, [], "none")
            return out[:rows].view(*shape, out.size(-1))
        x = F.linear(x, self.weight, self.bias)
        return x if self.activation is None else getattr(F, self.activation)(x)


class Int8Linear:
    """``activation(x @ weight.T + bias)`` with 8-bit weights, a scale for each output.

    Choice: activations are quantised on the fly with one scale for all rows, PyTorch's kernel for it; so an example's
    output depends a little on its batch mates, which the other precisions' do not.

    Args:
        weight: [N, K], float32.
        bias: [N] or None.
        activation: as :class:`PackedLinear`'s.

    Raises:
        ValueError: this build of PyTorch has no 8-bit kernel for the weight's device.
    """

    def __init__(self, weight: Tensor, bias: Optional[Tensor] = None, activation: Optional[str] = None):
        if weight.device.type != "cpu" or torch.backends.quantized.engine == "none":
            raise ValueError(f"8-bit weights need a CPU and a quantised engine, found {weight.device}")
        self.activation = activation
        weight = weight.detach().float()
        scales = weight.abs().amax(dim=1).clamp(min=1e-12) / 127  # [N]
        zeros = torch.zeros(weight.size(0), dtype=torch.long)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # quantised tensors are announced to go; their products have no successor
            quantised = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
        self.weight = torch.ops.quantized.linear_prepack(quantised, None if bias is None else bias.detach().float())

    def __call__(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., N], float32."""
        x = torch.ops.quantized.linear_dynamic(x, self.weight, True)
        return x if self.activation is None else getattr(F, self.activation)(x)
