"""Rotary positions as one complex product: the two numbers of a pair stand side by side.

The first half of a head's numbers is paired with the second, see :func:`~sd_fairseq.families.positions.rotate`. Queries
and keys whose numbers are put in another order, both in the same, have the products that they had.
"""

from __future__ import annotations

import torch
from torch import Tensor

FIRST_POSITIONS = 512  # that a table has at first; it doubles when they are used up


def pair_order(head_dim: int) -> Tensor:
    """Returns the order, LongTensor [D], in which number i of the first half stands beside number i of the second."""
    return torch.arange(head_dim).view(2, -1).t().reshape(-1)


def pair_rows(weight: Tensor, head_dim: int) -> Tensor:
    """Puts the outputs of every head in :func:`pair_order`: [H * D, ...] -> [H * D, ...]."""
    order = pair_order(head_dim).to(weight.device)
    return weight.unflatten(0, (-1, head_dim)).index_select(1, order).flatten(0, 1)


class Turns:
    """The rotation of every position, computed once.

    Args:
        head_dim: D.
        theta: base of the wavelengths.
        device: of the table.
    """

    def __init__(self, head_dim: int, theta: float, device: torch.device):
        half = head_dim // 2
        self.rates = theta ** (-torch.arange(half, device=device, dtype=torch.float32) / half)  # [D / 2]
        self.table = self._make(FIRST_POSITIONS)

    def _make(self, positions: int) -> Tensor:
        places = torch.arange(positions, device=self.rates.device, dtype=torch.float32)
        angles = places.unsqueeze(1) * self.rates  # [P, D / 2]
        return torch.polar(torch.ones_like(angles), angles)

    def of(self, positions: Tensor, last: int) -> Tensor:
        """Returns the turns of LongTensor [N], complex [N, 1, D / 2], one for all heads.

        Args:
            positions: what is turned.
            last: none of them is larger.
        """
        if last >= self.table.size(0):
            self.table = self._make(max(last + 1, 2 * self.table.size(0)))
        return self.table.index_select(0, positions).unsqueeze(1)


def turn(x: Tensor, turns: Tensor) -> Tensor:
    """Turns the pairs of [N, H, D] by complex [N, 1, D / 2]; float32."""
    pairs = torch.view_as_complex(x.float().unflatten(2, (-1, 2)))  # [N, H, D / 2]
    return torch.view_as_real(pairs * turns).flatten(2)
