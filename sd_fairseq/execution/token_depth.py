"""Which tokens run a decoder layer under a decision rule, where all tokens are given (teacher forcing).

A token that does not run a layer passes on its state. Its keys and values in that layer are made of that state: no
later token reads them under a nested schedule, and every later one does under CALM, which is what it defines.
"""

from __future__ import annotations

from typing import Callable, Optional

import torch
from torch import Tensor

from sd_fairseq.decision.confidence_rules import ConfidenceRule
from sd_fairseq.decision.rules import DecisionRule


class TokenDepth:
    """Follows one forward pass over all tokens.

    Args:
        rule: of the decoder.
        x: states [T, R, C] before the first layer.
        layers: of the decoder.
        head: makes logits [T, R, V] of states [T, R, C].
    """

    def __init__(self, rule: DecisionRule, x: Tensor, layers: int, head: Callable[[Tensor], Tensor]):
        self.rule, self.layers, self.head = rule, layers, head
        self.steps = torch.arange(x.size(0), device=x.device).unsqueeze(1).expand(-1, x.size(1))  # [T, R]
        self.schedule = rule.schedule(x.size(0), x.device)
        self.stay: Optional[Tensor] = None  # [T, R], tokens that have not left
        self.left: Optional[Tensor] = None  # [T, R, C], states with which tokens left whose layers run all the same

    def runs(self, layer: int) -> Optional[Tensor]:
        """Returns who runs layer ``layer`` (from 0), BoolTensor [T, 1] or [T, R]; None = every token."""
        if self.schedule is not None:
            column = self.schedule[:, layer : layer + 1]  # [T, 1]
            return None if bool(column.all()) else column
        return None if self.left is not None else self.stay

    def ask(self, layer: int, x: Tensor, before: Tensor) -> None:
        """Lets tokens leave after layer ``layer`` (from 0).

        Args:
            layer: that has run.
            x, before: states [T, R, C] after and before it.
        """
        rule = self.rule
        if not isinstance(rule, ConfidenceRule) or not rule.exits_after(layer + 1, self.layers):
            return
        stay = ~rule.leaves(x, before, self.steps, self.head)[0]
        self.stay = stay if self.stay is None else self.stay & stay
        if rule.defers:
            self.left = x

    def finish(self, x: Tensor) -> Tensor:
        """Returns the states that answers are made of, given those after the last layer: [T, R, C] -> [T, R, C]."""
        if self.left is None or self.stay is None:
            return x
        return torch.where(self.stay.unsqueeze(-1), x, self.left)
