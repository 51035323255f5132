"""One update of the policy from gradients of the whole effective batch (Algorithm 1, the theta half).

Choice: the policy has an optimizer of its own (the paper's gamma_t) instead of a parameter group of the backbone's.
Eq. 7 needs both averaged gradients before any step is taken, gradient clipping of the backbone must not scale them,
and fairseq's flattening half-precision optimizers cannot hold a second learning rate. The optimizer is torch's Adam;
its moments live in buffers, so that every checkpoint carries them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence

import torch
from torch import Tensor, nn

from sd_fairseq.decision.policy import Float32Module
from sd_fairseq.learning.lexicographic import (
    MultiplierRule,
    averaged_products,
    cross_products,
    find_multiplier,
    naive_products,
    update_direction,
)
from sd_fairseq.learning.recent_documents import RecentDocuments

PRODUCTS_DECAY = 0.9  # of the moving averages of the multiplier's products
VARIANCE_DECAY = 0.95  # of the moving average of the violation's variance


@dataclass(frozen=True)
class PolicyGradientSums:
    """Sums over examples, to be added over micro-batches and workers before anything is divided.

    Args:
        quality, flops: float32 [P] gradients of sum_i of the quality and of the cost objective.
        examples: how many examples they cover, or their weight where examples weigh differently.
        violation: sum over measured examples of q - c or, for a FLOPs budget, of f - budget.
        measured: how many examples were measured, or their weight.
        odd_quality, odd_flops, odd_examples: the part of the first three that is of examples with odd numbers: which
            half an example is in does not depend on how a batch is cut. None = not told apart, all are even.
    """

    quality: Tensor
    flops: Tensor
    examples: Tensor
    violation: Tensor
    measured: Tensor
    odd_quality: Optional[Tensor] = None
    odd_flops: Optional[Tensor] = None
    odd_examples: Optional[Tensor] = None

    @classmethod
    def zeros(cls, num_parameters: int, device: torch.device) -> "PolicyGradientSums":
        """Returns the sums over no example."""
        scalar = torch.zeros((), device=device)
        vector = torch.zeros(num_parameters, device=device)
        return cls(vector, vector.clone(), scalar, scalar.clone(), scalar.clone())

    def __add__(self, other: "PolicyGradientSums") -> "PolicyGradientSums":
        return PolicyGradientSums.unflatten(self.flatten() + other.flatten())

    def flatten(self) -> Tensor:
        """Packs everything into one float32 vector [4P + 4], for one all-reduce."""
        odd_examples = torch.zeros_like(self.examples) if self.odd_examples is None else self.odd_examples
        odd = [torch.zeros_like(self.quality) if one is None else one for one in (self.odd_quality, self.odd_flops)]
        scalars = torch.stack([self.examples, self.violation, self.measured, odd_examples]).float()
        return torch.cat([self.quality, self.flops, *odd, scalars])

    @classmethod
    def unflatten(cls, packed: Tensor) -> "PolicyGradientSums":
        """Undoes :meth:`flatten`."""
        count = (packed.numel() - 4) // 4
        quality, flops, odd_quality, odd_flops = packed[:-4].split(count)
        examples, violation, measured, odd_examples = packed[-4:].unbind()
        return cls(quality, flops, examples, violation, measured, odd_quality, odd_flops, odd_examples)

    def cross_products(self) -> Optional[Tensor]:
        """Returns :func:`~sd_fairseq.learning.lexicographic.cross_products` of the halves; None where one is empty."""
        if self.odd_quality is None or self.odd_flops is None or self.odd_examples is None:
            return None
        odd, even = self.odd_examples, self.examples - self.odd_examples
        if float(odd) <= 0 or float(even) <= 0:
            return None
        halves = (self.quality - self.odd_quality) / even, (self.flops - self.odd_flops) / even
        return cross_products(*halves, self.odd_quality / odd, self.odd_flops / odd)


class PolicyLearner(Float32Module):
    """The policy's optimizer state, multiplier and smoothed violation.

    Args:
        num_parameters: P of the policy.
    """

    first_moment: Tensor
    second_moment: Tensor
    steps: Tensor
    multiplier: Tensor
    violation: Tensor
    violation_updates: Tensor
    violation_variance: Tensor
    products: Tensor
    products_updates: Tensor
    recent: Optional[RecentDocuments]

    def __init__(self, num_parameters: int):
        super().__init__()
        self.register_buffer("first_moment", torch.zeros(num_parameters))
        self.register_buffer("second_moment", torch.zeros(num_parameters))
        self.register_buffer("steps", torch.zeros(()))
        self.register_buffer("multiplier", torch.zeros(()))
        self.register_buffer("violation", torch.zeros(()))
        self.register_buffer("violation_updates", torch.zeros(()))
        self.register_buffer("violation_variance", torch.zeros(()))
        self.register_buffer("products", torch.zeros(5))
        self.register_buffer("products_updates", torch.zeros(()))
        self.recent = None

    def remember(self, count: int, width: int) -> None:
        """Makes room for the last ``count`` documents, of which the policy reads ``width`` figures each."""
        self.recent = RecentDocuments(count, width)

    def update(
        self,
        parameters: Sequence[nn.Parameter],
        sums: PolicyGradientSums,
        rule: MultiplierRule,
        learning_rate: float,
        smoothing: float,
        one_price: bool = False,
    ) -> Dict[str, float]:
        """Moves the policy once.

        Args:
            parameters: the policy's, P elements in all.
            sums: over the whole effective batch (every worker, every micro-batch).
            rule: how lambda is found.
            learning_rate: of the policy.
            smoothing: decay of the violation's exponential moving average, and of its variance's.
            one_price: True = the multiplier comes from products averaged over updates, whatever documents this one has.

        Returns:
            Figures to log: multiplier, violation, gradient norms and their cosine.

        Raises:
            FloatingPointError: a gradient or the violation is not finite; nothing has been changed then.
        """
        packed = sums.flatten()
        if not bool(torch.isfinite(packed).all()):
            raise FloatingPointError("policy gradient is not finite (NaN or infinite loss); policy left unchanged")
        weight = sums.examples.clamp(min=1e-9)
        quality, flops = sums.quality / weight, sums.flops / weight
        if float(sums.measured) > 0:
            self._smooth_violation(sums.violation / sums.measured, smoothing)
        fresh = naive_products(quality, flops) if one_price else sums.cross_products()
        if fresh is not None and float(self.products_updates) == 0:
            self._average_products(fresh)
            fresh = None
        # of the updates before: a multiplier must not share its noise with the gradient that it multiplies
        products = averaged_products(self.products) if float(self.products_updates) > 0 else None
        violation = self.violation + rule.standard_errors * self._standard_error(smoothing)
        multiplier = find_multiplier(rule, quality, flops, violation, products)
        if fresh is not None:
            self._average_products(fresh)
        self.multiplier.copy_(multiplier)
        # no sampled path was another than the mode: nothing is known of quality, so a broken constraint lets FLOPs be
        blind = not rule.constrains_flops and rule.mode != "fixed" and not bool(quality.any())
        if not (blind and float(violation) > 0):
            self._adam_step(parameters, update_direction(rule, multiplier, quality, flops), learning_rate)
        norms = quality.norm() * flops.norm()
        return {
            "sd_multiplier": float(multiplier),
            "sd_violation": float(self.violation),
            "sd_grad_quality": float(quality.norm()),
            "sd_grad_flops": float(flops.norm()),
            "sd_grad_cosine": float(quality @ flops / norms) if float(norms) > 0 else 0.0,
        }

    def _smooth_violation(self, fresh: Tensor, smoothing: float) -> None:
        first = float(self.violation_updates) == 0
        decay = 0.0 if first else smoothing
        surprise = torch.zeros_like(fresh) if first else fresh - self.violation
        self.violation.mul_(decay).add_(fresh, alpha=1 - decay)
        # a measurement differs from the average before it by both their errors
        scatter = surprise.square() * (1 + smoothing) / 2
        self.violation_variance.mul_(VARIANCE_DECAY).add_(scatter, alpha=1 - VARIANCE_DECAY)
        self.violation_updates.add_(1)

    def _standard_error(self, smoothing: float) -> Tensor:
        """Returns that of the violation's moving average, from how its measurements scatter."""
        seen = 1 - VARIANCE_DECAY ** (float(self.violation_updates) - 1)
        variance = self.violation_variance / max(seen, 1e-9)
        return (variance * (1 - smoothing) / (1 + smoothing)).sqrt()

    def _average_products(self, fresh: Tensor) -> None:
        decay = 0.0 if float(self.products_updates) == 0 else PRODUCTS_DECAY
        self.products.mul_(decay).add_(fresh, alpha=1 - decay)
        self.products_updates.add_(1)

    def _adam_step(self, parameters: Sequence[nn.Parameter], direction: Tensor, learning_rate: float) -> None:
        optimizer = torch.optim.Adam(parameters, lr=learning_rate)
        start = 0
        for parameter in parameters:
            window = slice(start, start + parameter.numel())
            start = window.stop
            parameter.grad = direction[window].view_as(parameter).clone()
            optimizer.state[parameter] = {  # views: Adam's in-place update is the buffers' update
                "step": self.steps.detach().cpu().clone(),
                "exp_avg": self.first_moment[window].view_as(parameter),
                "exp_avg_sq": self.second_moment[window].view_as(parameter),
            }
        optimizer.step()
        self.steps.add_(1)
        for parameter in parameters:
            parameter.grad = None


def trainable_parameters(policy: nn.Module) -> List[nn.Parameter]:
    """Lists the parameters that a :class:`PolicyLearner` moves, in a fixed order."""
    return list(policy.parameters())
