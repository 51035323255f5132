"""The last documents that a policy saw in training: what it read of them, and how long they are.

FLOPs are a closed form of the policy, its input and the lengths. Kept for the last documents, these three tell what all
of them cost under the policy as it is now, however few of them an update holds and however much alike they are.
"""

from __future__ import annotations

from typing import Tuple

import torch
from torch import Tensor

from sd_fairseq.decision.policy import Float32Module


class RecentDocuments(Float32Module):
    """A ring of documents, in buffers, so that a checkpoint carries it.

    Args:
        count: N, how many are kept.
        width: C, figures that the policy reads of each.
    """

    states: Tensor
    lengths: Tensor
    seen: Tensor

    def __init__(self, count: int, width: int):
        super().__init__()
        self.register_buffer("states", torch.zeros(count, width))
        self.register_buffer("lengths", torch.zeros(count, 2, dtype=torch.long))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def add(self, states: Tensor, source: Tensor, target: Tensor) -> None:
        """Takes documents in; the oldest give way.

        Args:
            states: float32 [B, C], what the policy read.
            source, target: lengths [B].
        """
        count = self.states.size(0)
        lengths = torch.stack([source, target], dim=1).to(self.lengths)[-count:]
        places = (self.seen + torch.arange(len(states), device=self.seen.device))[-count:] % count
        self.states[places] = states[-count:].detach().to(self.states)
        self.lengths[places] = lengths
        self.seen += len(states)

    def held(self) -> Tuple[Tensor, Tensor, Tensor]:
        """Returns states [n, C], source and target lengths [n] of those that are held, n <= N."""
        filled = min(int(self.seen), self.states.size(0))
        source, target = self.lengths[:filled].unbind(dim=1)
        return self.states[:filled], source, target
