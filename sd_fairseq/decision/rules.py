"""Which decoder layers run at a step, where more than the document decides: rules by position.

The method decides once a document, and its decisions hold at every step. The rules here are of other methods, to stand
beside it on the same model. They take decoder layers away, whole ones, from what a document's decisions keep.

By position (here), a *nested* schedule: a layer runs the first steps, up to its limit, and never again. So a layer that
runs has run at every earlier step, and has all earlier keys and values.

* ``hsd``: hierarchical skip decoding. Choice: only its abstract was at hand, which says that layers are skipped
  hierarchically, more of them the longer the sequence is, half of them at the end. So this is a schedule in its style.
* ``skipdecode``: Del Corro et al. 2023, *SkipDecode*: the number of layers falls linearly with the position; a few at
  the bottom always run, the rest of the budget goes to the top.
* ``uls``: *Unified Layer Skipping* (Liu et al. 2024): the same evenly spaced layers at every step. The method copies
  caches for layers that run later; here a layer that is skipped never runs, so nothing needs its cache.

Rules by confidence: :mod:`~sd_fairseq.decision.confidence_rules`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import List, Optional, Sequence, Tuple

import torch
from torch import Tensor

from sd_fairseq.decision.decisions import Decisions
from sd_fairseq.errors import InputError

ALWAYS = 2**31 - 1  # limit of a layer that runs at every step


@dataclass(frozen=True)
class DecisionRule:
    """The method's own rule: a document's decisions hold at every step; no layer is taken away.

    Args:
        text: the rule as a user writes it, all its values given; "" for this one.
    """

    text: str = ""

    @property
    def by_confidence(self) -> bool:
        """True = what the model thinks of a token decides, so that layers are known only when they have run."""
        return False

    @property
    def needs_beam_1(self) -> bool:
        """True = the method keeps one hypothesis a sentence."""
        return False

    def layers_ending(self, step: int) -> List[int]:
        """Lists the layers (from 0) that ran at the step before ``step`` and do not run any more."""
        return []

    def narrow(self, decisions: Decisions, step: int) -> Decisions:
        """Returns what runs at ``step`` (from 0) of what a document's decisions keep."""
        return decisions

    def schedule(self, steps: int, device: torch.device) -> Optional[Tensor]:
        """Returns BoolTensor [steps, L], True = the step runs the layer, as far as positions decide; None = all do."""
        return None


@dataclass(frozen=True)
class NestedSchedule(DecisionRule):
    """Every decoder layer runs the first steps of an answer, up to its limit.

    Args:
        text: see :class:`DecisionRule`.
        limits: steps that each layer runs, 0 = none, :data:`ALWAYS` = all.
    """

    limits: Tuple[int, ...] = ()

    def layers_ending(self, step: int) -> List[int]:
        """Lists the layers whose limit ``step`` is."""
        return [layer for layer, limit in enumerate(self.limits) if limit == step]

    def narrow(self, decisions: Decisions, step: int) -> Decisions:
        """Returns the decisions without the layers whose limit is reached."""
        runs = [step < limit for limit in self.limits]
        if all(runs):
            return decisions
        keep = torch.tensor(runs, device=decisions.decoder_ffn.device)  # [L]
        return replace(
            decisions,
            decoder_attention=decisions.decoder_attention & keep,
            decoder_cross_attention=decisions.decoder_cross_attention & keep,
            decoder_ffn=decisions.decoder_ffn & keep,
        )

    def schedule(self, steps: int, device: torch.device) -> Optional[Tensor]:
        """Returns BoolTensor [steps, L], True = the step runs the layer."""
        limits = torch.tensor(self.limits, device=device)
        return torch.arange(steps, device=device).unsqueeze(1) < limits

    def steps_run(self, steps: Tensor) -> Tensor:
        """Returns LongTensor [B, L]: how many of an answer's ``steps`` [B] each layer runs."""
        limits = torch.tensor(self.limits, device=steps.device)
        return torch.minimum(steps.unsqueeze(1), limits)


def hierarchical(text: str, layers: int, least: int, over: int, bottom: int, top: int) -> NestedSchedule:
    """Skips layers that are spread evenly, one after the other, until ``over`` steps are done.

    At step t (from 0) the first floor((L - least) * min(1, t / over)) layers of an order are skipped: bit reversal of
    the layers between the bottom and the top ones.

    Args:
        text: see :class:`DecisionRule`.
        layers: L of the decoder.
        least: layers that run at the end.
        over: steps until then.
        bottom, top: layers that always run at both ends.

    Raises:
        InputError: values that do not go together.
    """
    check_range(text, "bottom", bottom, 1, layers - 1)
    check_range(text, "top", top, 1, layers - bottom)
    check_range(text, "min", least, bottom + top, layers)
    order = [bottom + place for place in bit_reversed(layers - bottom - top)]
    return NestedSchedule(text, fall(layers, order, 0, layers - least, over))


def from_the_bottom(text: str, layers: int, most: int, least: int, over: int, bottom: int) -> NestedSchedule:
    """Skips the lowest layers but the bottom ones, more with every step: ``most`` at first, ``least`` in the end.

    At step t (from 0) the bottom layers run and of the others the top ones, most - floor((most - least) *
    min(1, t / over)) in all.

    Args:
        text: see :class:`DecisionRule`.
        layers: L of the decoder.
        most, least: layers that run at the first step, and at the end.
        over: steps until then.
        bottom: layers that always run.

    Raises:
        InputError: values that do not go together.
    """
    check_range(text, "bottom", bottom, 0, layers - 1)
    check_range(text, "min", least, bottom + 1, layers)
    check_range(text, "max", most, least, layers)
    return NestedSchedule(text, fall(layers, range(bottom, layers), layers - most, most - least, over))


def evenly_spaced(text: str, layers: int, speedup: float) -> NestedSchedule:
    """Runs the first, the last and evenly spaced layers between, floor(L / speedup) in all, at every step.

    Args:
        text: see :class:`DecisionRule`.
        layers: L of the decoder.
        speedup: of the decoder's layers.

    Raises:
        InputError: a speedup that leaves fewer than the first and the last layer.
    """
    kept = int(layers / speedup)
    if kept < min(2, layers):
        raise InputError(
            f"{text}: speedup leaves {kept} of {layers} decoder layers, expected at least {min(2, layers)}"
        )
    chosen = {place * (layers - 1) // max(kept - 1, 1) for place in range(kept)}
    return NestedSchedule(text, tuple(ALWAYS if layer in chosen else 0 for layer in range(layers)))


def fall(layers: int, order: Sequence[int], never: int, count: int, over: int) -> Tuple[int, ...]:
    """Returns the limits of a linear fall: at step t the first never + floor(count * min(1, t / over)) are skipped.

    Args:
        layers: L.
        order: layers (from 0), those first that are skipped first.
        never: so many never run.
        count: so many more are skipped from step ``over`` on.
        over: steps of the fall.
    """
    limits = [ALWAYS] * layers
    for rank, layer in enumerate(order[: never + count]):
        # the first t with floor(count * t / over) > rank - never
        limits[layer] = 0 if rank < never else -(-(rank - never + 1) * over // count)
    return tuple(limits)


def bit_reversed(count: int) -> List[int]:
    """Lists 0..count-1 in the order of their reversed bits: any first few of them are spread evenly."""
    bits = max(count - 1, 0).bit_length()
    reversed_bits = (int(format(place, f"0{bits}b")[::-1], 2) if bits else place for place in range(2**bits))
    return [place for place in reversed_bits if place < count]


def check_range(text: str, name: str, value: float, low: float, high: float) -> None:
    """Refuses a value of a rule.

    Raises:
        InputError: it is not in low..high.
    """
    if not low <= value <= high:
        raise InputError(f"{text}: {name} is {value}, expected {low}..{high} in this model")
