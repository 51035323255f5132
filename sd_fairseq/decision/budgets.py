"""A range of budgets that one policy serves: the budget is an input of the policy, chosen anew for every generation.

The policy has a set of heads for each of a few budgets, its knots, and learns only these: one for all examples of an
update while the policy learns (its constraint is one number then), one for each document afterwards.

Choice: a budget between two knots is shared out. Of its documents some take the one knot and some the other, drawn by
what stands in them, so that FLOPs are the budget in the mean and a document's path does not depend on its batch. Logits
between two knots would not do: decisions are steps, so that FLOPs would be no straight line between the knots.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sd_fairseq.decision.noise import Noise

KNOTS = 4
PREFERRED = 0.7  # what is served where nobody says a budget, if the range holds it
_GOLDEN = 0.6180339887498949  # multiples of it, without their whole part, fill an interval evenly at any length
EDGE = 1e-6  # of rounding: a budget is stored in float32


class BudgetRange(NamedTuple):
    """Budgets from ``low`` to ``high``, as shares of the dense FLOPs; 0 < low < high <= 1."""

    low: float
    high: float

    @classmethod
    def parse(cls, text: str) -> "BudgetRange":
        """Reads ``LOW,HIGH``.

        Raises:
            ValueError: not two numbers in order, in (0, 1].
        """
        parts = text.split(",")
        try:
            low, high = (float(part) for part in parts)
        except ValueError:
            low = high = 0.0
        if not 0 < low < high <= 1:
            raise ValueError(f"budget range {text!r} is not LOW,HIGH with 0 < LOW < HIGH <= 1, such as 0.5,0.8")
        return cls(low, high)

    @property
    def default(self) -> float:
        """The budget that is served where nobody says one."""
        return PREFERRED if self.holds(PREFERRED) else self.high

    def holds(self, budget: float) -> bool:
        """Tells whether a budget can be served."""
        return self.low - EDGE <= budget <= self.high + EDGE

    def check(self, budget: float, place: str) -> None:
        """Refuses a budget outside the range.

        Args:
            budget: share of the dense FLOPs.
            place: the option that it was given to.

        Raises:
            ValueError: naming both.
        """
        if not self.holds(budget):
            raise ValueError(f"{place} {budget:g} is not in the range {self.low:g} to {self.high:g} of this policy")

    def knot(self, index: int) -> float:
        """Returns the budget of a knot, from 0."""
        return self.low + (self.high - self.low) * index / (KNOTS - 1)

    def at(self, update: int) -> float:
        """Returns the budget of an update while the policy learns: any run of updates has every knot as often."""
        return self.knot(int((update + 0.5) * _GOLDEN % 1.0 * KNOTS))

    def spread(self, noise: Noise) -> Tensor:
        """Draws a knot's budget for every example, float32 [B], each as often.

        Args:
            noise: of the examples, used for nothing else.
        """
        uniform = torch.cat([noise.switches, noise.tokens], dim=1)[:, 0]
        return self.low + (self.high - self.low) * (uniform * KNOTS).long().float() / (KNOTS - 1)

    def share_out(self, budgets: Tensor, uniform: Tensor) -> Tensor:
        """Returns a knot's budget for every example, in the mean over ``uniform`` its own, float32 [B].

        Args:
            budgets: [B]; beyond the range the nearest knot's.
            uniform: [B], in [0, 1).
        """
        place = ((budgets.float() - self.low) / (self.high - self.low) * (KNOTS - 1)).clamp(0, KNOTS - 1)
        place = torch.where((place - place.round()).abs() < 1e-3, place.round(), place)  # rounding is no share
        index = place.floor() + (uniform < place - place.floor())
        return self.low + (self.high - self.low) * index / (KNOTS - 1)

    def indices(self, budgets: Tensor) -> Tensor:
        """Returns the nearest knot of each budget, LongTensor [B]."""
        place = (budgets.float() - self.low) / (self.high - self.low) * (KNOTS - 1)
        return place.round().long().clamp(0, KNOTS - 1)
