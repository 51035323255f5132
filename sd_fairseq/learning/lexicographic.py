"""The multiplier between quality and computation (section 3.3, Eq. 6-7).

Both objectives are costs to minimise: q = mean token NLL of an example, f = relative FLOPs.

Choice: Eq. 7 is printed with its two objectives swapped (v = grad_q + lambda grad_f with phi = q - c). That rule
lowers FLOPs faster the worse the quality is, and q = c repels it. The prose ("quality first") and the method it
cites (dynamic barrier gradient descent, Gong, Liu, Liu, NeurIPS 2021) give

    v = grad_f + lambda grad_q,   lambda = max((phi - grad_f . grad_q) / |grad_q|^2, 0),

which is what all modes below use, except ``as-printed`` (kept for comparison) and ``budget`` (its sensible reading:
the user gives a FLOPs target and quality is minimised subject to it).

Choice: grad_q is estimated from samples, and the square of an estimate is too large by its variance: E|g|^2 = |E g|^2 +
Var g. With the paper's estimator the multiplier would be some 27 times too small, and the constraint be broken. So the
norm and the product come from two halves of the examples (:class:`Products`), whose noise is independent. Adam then
follows the rule's direction coordinate by coordinate: the barrier is met on average over updates, not by each one.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Optional

import torch
from torch import Tensor

MODES = ("constrained", "lexicographic", "barrier", "budget", "as-printed", "fixed")


@dataclass(frozen=True)
class MultiplierRule:
    """How the multiplier is found.

    Args:
        mode: one of :data:`MODES`.
        alpha: rate at which a violation is worked off (phi = alpha * violation).
        beta: share of |grad_q|^2 that lexicographic descent insists on.
        floor, ceiling: limits of the multiplier; the floor does not hold where FLOPs are the constraint: it would go
            on pushing them down below the budget.
        fixed_weight: weight of FLOPs against quality in mode ``fixed`` (Table 8: 0.2, 1.0, 1.5).
        confidence: with which the constraint is to be kept, in [0.5, 1): the violation is taken to be this quantile of
            what it may be, given how its measurements scatter; 0.5 = their average.
    """

    mode: str = "constrained"
    alpha: float = 1.0
    beta: float = 1.0
    floor: float = 0.0
    ceiling: float = 20.0
    fixed_weight: float = 1.0
    confidence: float = 0.5

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode {self.mode!r} is not one of {', '.join(MODES)}")
        if not 0 <= self.floor <= self.ceiling:
            raise ValueError(f"multiplier limits {self.floor}..{self.ceiling} are not 0 <= floor <= ceiling")
        if not (self.alpha > 0 and self.beta > 0 and self.fixed_weight > 0):
            raise ValueError(
                f"alpha {self.alpha}, beta {self.beta} and fixed weight {self.fixed_weight} must all be positive"
            )
        if not 0.5 <= self.confidence < 1:
            raise ValueError(f"confidence {self.confidence} is not in [0.5, 1)")

    @property
    def constrains_flops(self) -> bool:
        """True where FLOPs are the constraint and quality the objective."""
        return self.mode in ("budget", "as-printed")

    @property
    def standard_errors(self) -> float:
        """How many of them lie between the violation's average and the quantile that is to be kept."""
        return 0.0 if self.constrains_flops else NormalDist().inv_cdf(self.confidence)


LEAST_SHARE = 0.01  # of the naive square, below which an estimated one is taken for noise


@dataclass(frozen=True)
class Products:
    """What the multiplier is made of, scalars.

    Args:
        dot: grad_quality . grad_flops.
        quality, flops: squared norms of the two.
    """

    dot: Tensor
    quality: Tensor
    flops: Tensor

    @classmethod
    def naive(cls, grad_quality: Tensor, grad_flops: Tensor) -> "Products":
        """Of the gradients as they are; right where they are without noise."""
        return cls(grad_quality @ grad_flops, grad_quality @ grad_quality, grad_flops @ grad_flops)


def cross_products(quality: Tensor, flops: Tensor, other_quality: Tensor, other_flops: Tensor) -> Tensor:
    """Returns unbiased [dot, |quality|^2, |flops|^2] of the expected gradients, and the naive squares, float32 [5].

    Args:
        quality, flops: mean gradients over one half of the examples.
        other_quality, other_flops: over the other half, sampled independently.
    """
    dot = (quality @ other_flops + other_quality @ flops) / 2
    naive = [(quality @ quality + other_quality @ other_quality) / 2, (flops @ flops + other_flops @ other_flops) / 2]
    return torch.stack([dot, quality @ other_quality, flops @ other_flops, *naive]).float()


def naive_products(quality: Tensor, flops: Tensor) -> Tensor:
    """Returns what :func:`cross_products` returns, of gradients that are not told apart in halves."""
    squares = [quality @ quality, flops @ flops]
    return torch.stack([quality @ flops, *squares, *squares]).float()


def averaged_products(averages: Tensor) -> Products:
    """Returns the products of averages over updates of :func:`cross_products`; squares are kept above pure noise."""
    dot, quality, flops, naive_quality, naive_flops = averages.unbind()
    return Products(dot, quality.maximum(LEAST_SHARE * naive_quality), flops.maximum(LEAST_SHARE * naive_flops))


def lexicographic_multiplier(grad_dot: Tensor, grad_sq_norm: Tensor, phi: Tensor) -> Tensor:
    """Returns max((phi - grad_dot) / grad_sq_norm, 0), the smallest lambda that meets the barrier.

    Args:
        grad_dot: grad_objective . grad_constraint.
        grad_sq_norm: |grad_constraint|^2.
        phi: rate at which the constraint must fall (grad_constraint . v >= phi).
    """
    return ((phi - grad_dot) / grad_sq_norm.clamp(min=1e-20)).clamp(min=0.0)


def find_multiplier(
    rule: MultiplierRule,
    grad_quality: Tensor,
    grad_flops: Tensor,
    violation: Tensor,
    products: Optional[Products] = None,
) -> Tensor:
    """Finds lambda for one update.

    Args:
        rule: mode and limits.
        grad_quality, grad_flops: flat gradients, averaged over the whole effective batch.
        violation: scalar; q - c (nats per token), or FLOPs - target in mode ``budget``. Positive = violated.
        products: of the expected gradients; None = the naive ones of these gradients.

    Returns:
        Scalar tensor in [floor, ceiling], in [0, ceiling] where FLOPs are the constraint; in mode ``fixed``
        1 / fixed_weight.
    """
    products = products or Products.naive(grad_quality, grad_flops)
    dot, sq_norm = products.dot, products.quality
    if rule.mode == "fixed":
        return dot.new_tensor(1.0 / rule.fixed_weight)
    if rule.constrains_flops:
        found = lexicographic_multiplier(dot, products.flops, rule.alpha * violation)
        return found.clamp(max=rule.ceiling)
    if rule.mode == "constrained":
        phi = rule.alpha * violation
    elif rule.mode == "lexicographic":
        phi = rule.beta * sq_norm
    else:
        phi = (rule.beta * sq_norm).minimum(rule.alpha * violation)
    return lexicographic_multiplier(dot, sq_norm, phi).clamp(rule.floor, rule.ceiling)


def update_direction(rule: MultiplierRule, multiplier: Tensor, grad_quality: Tensor, grad_flops: Tensor) -> Tensor:
    """Returns v; the policy's parameters move along -v."""
    if rule.constrains_flops:
        return grad_quality + multiplier * grad_flops
    return grad_flops + multiplier * grad_quality
