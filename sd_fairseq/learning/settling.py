"""How the policy settles before it is frozen: its learning rate and the constraint's temperature fall to 0.

Section 3.3 says nothing about it. Choice: what is deployed is the mode path, what is measured while the policy learns
are samples close to it. A policy that is frozen while the two differ misses its constraint: a budget is met by the
samples and missed by the mode. So in the last updates the temperature falls first, until the constraint is measured on
the mode path itself, then the steps become so small that the policy stops crossing the constraint to and fro.
A bound on quality is seen through noise, and what the falling temperature uncovers takes updates to work off: there
the steps keep their size until the temperature has fallen.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settling:
    """When the policy settles.

    Args:
        freeze_update: update from which the policy is fixed; 0 = never, and it never settles.
        share: last share of the updates before it, in [0, 1]; 0 = none.
        rate_waits: the learning rate falls in the second half of them only.
    """

    freeze_update: int
    share: float
    rate_waits: bool = False

    def progress(self, update: int) -> float:
        """Returns 0 before the policy begins to settle, 1 when it is frozen, and a straight line between."""
        length = self.freeze_update * self.share
        if length <= 0:
            return 0.0
        return min(1.0, max(0.0, 1.0 - (self.freeze_update - update) / length))

    def learning_rate_factor(self, update: int) -> float:
        """Returns the factor of the policy's learning rate: from 1 to 0."""
        left = 1.0 - self.progress(update)
        return min(1.0, 2.0 * left) if self.rate_waits else left

    def temperature_factor(self, update: int) -> float:
        """Returns the factor of the constraint's temperature: from 1 to 0, where it is half-way to the end."""
        return max(0.0, 1.0 - 2.0 * self.progress(update))
