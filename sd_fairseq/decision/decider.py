"""Collects what one forward pass decides, along the path that was asked for."""

from __future__ import annotations

from typing import Any, Dict, List, NamedTuple, Optional

import torch
from torch import Tensor

from sd_fairseq.decision.decisions import Decisions, DecisionSpace
from sd_fairseq.decision.given_policies import GivenPolicy
from sd_fairseq.decision.noise import Noise
from sd_fairseq.decision.policy import PolicyDistribution, policy_input, split_logits

PATHS = ("mode", "sample", "sharpened", "dense")


class PathRequest(NamedTuple):
    """Which path a forward pass takes.

    Args:
        kind: ``mode`` (deployed), ``sample`` (bounded policy), ``sharpened`` (sample close to the mode) or ``dense``.
        bound: a of :meth:`PolicyDistribution.bounded`, for ``sample``.
        temperature: of :meth:`PolicyDistribution.sharpened`.
        noise: what ``sample`` and ``sharpened`` draw with; None = from torch's generator.
        decisions: a path given by the caller; ``kind`` is ignored then.
        gated: True = every sub-layer runs and is multiplied by its decision (0 or 1), so that the loss has a gradient
            with respect to the decisions; for training only, it saves nothing.
    """

    kind: str = "mode"
    bound: float = 1.0
    temperature: float = 1.0
    noise: Optional[Noise] = None
    decisions: Optional[Decisions] = None
    gated: bool = False


class Decider:
    """Collects one forward pass's decisions, in one stage after layer 1 or layer by layer.

    Args:
        space: the decision space.
        policy: a policy network, a :class:`GivenPolicy`, or None (always dense).
        path: which path to take.
        src_tokens: LongTensor [B, S].
        padding_mask: BoolTensor [B, S], True = padding.
    """

    def __init__(
        self,
        space: DecisionSpace,
        policy: Any,
        path: PathRequest,
        src_tokens: Tensor,
        padding_mask: Tensor,
    ):
        if path.kind not in PATHS:
            raise ValueError(f"path {path.kind!r} is not one of {', '.join(PATHS)}")
        self.space, self.policy, self.path, self.padding_mask = space, policy, path, padding_mask
        self.src_tokens = src_tokens
        self.states: List[Tensor] = []
        self._logits: Optional[Tensor] = None
        self._noise: Optional[Noise] = None
        self._decisions = path.decisions
        self.switch_gates: Optional[Tensor] = None
        self.gates: Optional[Dict[str, Tensor]] = None
        batch_size, device = src_tokens.size(0), src_tokens.device
        if self._decisions is None and (path.kind == "dense" or policy is None):
            self._decisions = space.keep_all(batch_size, device)
        if self._decisions is None and isinstance(policy, GivenPolicy):
            self._decisions = policy.decide(src_tokens, padding_mask)
        elif path.kind in ("sample", "sharpened"):
            self._noise = path.noise or Noise.draw(batch_size, space, device)

    def decide(self, layer: int, x: Tensor, padding_mask: Optional[Tensor] = None) -> None:
        """Asks the policy, if encoder layer ``layer`` (from 1) is one of its stages.

        Args:
            layer: the layer whose output ``x`` [S, B, C] is.
            padding_mask: BoolTensor [B, S] that fits ``x``; None = the source's own.
        """
        stages = getattr(self.policy, "stages", ())
        if layer not in stages:
            return
        state = masked_mean(x, self.padding_mask if padding_mask is None else padding_mask)
        state = policy_input(self.policy.inputs, state, (~self.padding_mask).sum(dim=1))
        if hasattr(self.policy, "with_budget"):
            state = self.policy.with_budget(state, self.src_tokens, self.padding_mask)
        self.states.append(state)
        if self.path.decisions is not None or self.path.kind == "dense":
            return
        with torch.no_grad():
            logits = self.policy.stage_logits(layer, state)
        if len(stages) > 1:
            wanted = torch.tensor(self.policy.stage_of_output(), device=logits.device) == layer
            logits = logits if self._logits is None else torch.where(wanted, logits, self._logits)
        self._logits = logits
        self._decisions = self._choose(split_logits(self.space, logits))

    def _choose(self, distribution: PolicyDistribution) -> Decisions:
        if self.path.kind == "sample":
            return distribution.bounded(self.path.bound).sample(self._noise)
        if self.path.kind == "sharpened":
            return distribution.sharpened(self.path.temperature).sample(self._noise)
        return distribution.mode()

    def decisions(self) -> Decisions:
        """Returns what has been decided so far."""
        assert self._decisions is not None, "the first stage decides after layer 1"
        return self._decisions

    def token_choice(self) -> Tensor:
        """Returns LongTensor [B]."""
        return self.decisions().token_choice

    def open_gates(self) -> None:
        """Makes gates of the decisions, whose gradient can be asked for."""
        keep = self.space.to_keep(self.decisions())
        self.switch_gates = keep.float().requires_grad_(torch.is_grad_enabled())
        self.gates = self.space.spread(self.switch_gates)


def masked_mean(x: Tensor, padding_mask: Tensor) -> Tensor:
    """Averages [S, B, C] over the non-padding positions; detached float32 [B, C], the policy's input."""
    real = (~padding_mask).t().unsqueeze(-1)  # [S, B, 1]
    total = (x.detach().float() * real).sum(dim=0)
    return total / real.sum(dim=0).clamp(min=1)
