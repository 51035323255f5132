"""Which decoder layers run at a step, where the model's own confidence decides: exits before the last layer.

* ``calm``: Schuster et al. 2022, *Confident Adaptive Language Modeling*: a token leaves after the first layer at which
  a confidence reaches the step's threshold c (0.9 + 0.1 exp(-tau t / N)) (their eq. 5, before it is clipped to 1). The
  layers that it skips get the keys and values of the state with which it left.
* ``free``: Bae et al. 2023, *FREE*: one exit after a few layers. A token that stays goes through the other layers
  together with those before it that had left, so every key and value is the whole model's. Choice: the threshold is
  given. Theirs adapts while it generates, which would let a document's answer depend on the documents before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sd_fairseq.decision.rules import DecisionRule, check_range

MEASURES = ("gap", "max", "cosine")


@dataclass(frozen=True)
class ConfidenceRule(DecisionRule):
    """Tokens leave after a layer that says so.

    Args:
        text: see :class:`DecisionRule`.
        first: layers that every token runs.
        threshold: confidence from which on a token leaves; 1 or more may never be reached.
        measure: of the confidence, one of :data:`MEASURES`.
    """

    first: int = 1
    threshold: float = 0.9
    measure: str = MEASURES[0]

    @property
    def by_confidence(self) -> bool:
        """True."""
        return True

    @property
    def asks_head(self) -> bool:
        """True = a confidence takes the logits, so the head runs wherever it is asked for."""
        return self.measure != "cosine"

    @property
    def defers(self) -> bool:
        """True = a skipped layer's keys and values are made later, from what it would have read."""
        return False

    def exits_after(self, layers_run: int, layers: int) -> bool:
        """Tells whether tokens may leave when ``layers_run`` of ``layers`` have run."""
        return self.first <= layers_run < layers

    def thresholds(self, steps: Tensor) -> Tensor:
        """Returns the threshold of every step (from 0), float32, in the shape of ``steps``."""
        return torch.full(steps.shape, self.threshold, device=steps.device)

    def leaves(
        self, x: Tensor, before: Tensor, steps: Tensor, head: Callable[[Tensor], Tensor]
    ) -> Tuple[Tensor, Optional[Tensor]]:
        """Decides which tokens leave now.

        Args:
            x: states [..., C] after the layer that ran last.
            before: states [..., C] before it.
            steps: LongTensor [...], step (from 0) of every token.
            head: makes logits of states.

        Returns:
            BoolTensor [...], True = it leaves; and the logits [..., V] where they were needed.
        """
        logits = head(x) if self.asks_head else None
        return confidence(self.measure, x, before, logits) >= self.thresholds(steps), logits


@dataclass(frozen=True)
class Calm(ConfidenceRule):
    """CALM, see the module.

    Args:
        text, first, threshold, measure: see :class:`ConfidenceRule`; ``threshold`` is c.
        tau: how fast the threshold falls.
        length: N, tokens of a long answer.
    """

    tau: float = 4.0
    length: int = 64

    def thresholds(self, steps: Tensor) -> Tensor:
        """Returns c (0.9 + 0.1 exp(-tau t / N)); see :class:`ConfidenceRule`."""
        return self.threshold * (0.9 + 0.1 * torch.exp(-self.tau * steps.float() / self.length))


@dataclass(frozen=True)
class Free(ConfidenceRule):
    """FREE, see the module; ``first`` is where its only exit stands."""

    @property
    def needs_beam_1(self) -> bool:
        """True: what waits to be filled belongs to one hypothesis."""
        return True

    @property
    def defers(self) -> bool:
        """True."""
        return True

    def exits_after(self, layers_run: int, layers: int) -> bool:
        """Tells whether this is the exit."""
        return layers_run == self.first


def confidence(measure: str, x: Tensor, before: Tensor, logits: Optional[Tensor]) -> Tensor:
    """How sure the model is of its tokens.

    Args:
        measure: ``max``, the highest probability; ``gap``, the highest minus the next; ``cosine``, of the states after
            and before a layer.
        x, before: states [..., C] after and before the layer that ran last.
        logits: [..., V] of ``x``; unused by ``cosine``.

    Returns:
        float32 [...], at most 1.
    """
    if measure == "cosine":
        return F.cosine_similarity(x.float(), before.float(), dim=-1)
    assert logits is not None, "these measures ask the head"
    best = torch.softmax(logits.float(), dim=-1).topk(2, dim=-1).values  # [..., 2]
    return best[..., 0] if measure == "max" else best[..., 0] - best[..., 1]


def build_calm(text: str, layers: int, confidence: str, threshold: float, tau: float, length: int, first: int) -> Calm:
    """Builds CALM's rule.

    Raises:
        InputError: no layer is left to skip.
    """
    check_range(text, "first", first, 1, max(layers - 1, 1))
    return Calm(text, first, threshold, confidence, tau, length)


def build_free(text: str, layers: int, exit: int, threshold: float) -> Free:
    """Builds FREE's rule, whose confidence is the gap between the two highest probabilities.

    Raises:
        InputError: no layer is left to skip.
    """
    check_range(text, "exit", exit, 1, max(layers - 1, 1))
    return Free(text, exit, threshold)
