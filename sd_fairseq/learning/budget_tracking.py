"""Keeps a budget once the policy is fixed: one number is added to all its logits, and follows what its paths cost.

Section 3.3 says nothing about it. Choice: a fixed policy still misses its budget a little. It was fixed between two
steps, its samples and its mode differ, and what it reads, encoder layer 1, trains on. So after it is fixed the FLOPs of
the deployed paths, which are known exactly for every document, move a shift of its logits: what keeps more where they
are below the budget, what keeps less where they are above. The steps fall as 1 / updates (Robbins and Monro, 1951): the
shift settles where the mean over all documents is the budget, not where the last batch was.
"""

from __future__ import annotations

import torch
from torch import Tensor

RATE, DELAY = 100.0, 50.0  # logits for a whole dense model's FLOPs, and updates; the first step is RATE / DELAY


def move_shift(shift: Tensor, residuals: Tensor, weights: Tensor, updates: int) -> None:
    """Moves the shift, in place, after one update of the backbone.

    Args:
        shift: float32 [K], one a knot of a range of budgets, else [1].
        residuals: float32 [K], sums over the documents of the whole effective batch of budget minus relative FLOPs.
        weights: float32 [K], what they add up over; where it is 0, nothing moves.
        updates: since the policy was fixed, from 0.
    """
    mean = torch.where(weights > 0, residuals / weights.clamp(min=1e-9), torch.zeros_like(residuals))
    shift.add_(mean.to(shift), alpha=RATE / (DELAY + updates))
