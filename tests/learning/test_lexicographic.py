import math

import pytest
import torch

from sd_fairseq.learning.lexicographic import (
    MODES,
    MultiplierRule,
    find_multiplier,
    lexicographic_multiplier,
    update_direction,
)

UNLIMITED = {"floor": 0.0, "ceiling": 1e9}
BARRIERS = {  # what grad_constraint . v must be at least
    "constrained": lambda rule, violation, grad: rule.alpha * violation,
    "lexicographic": lambda rule, violation, grad: rule.beta * grad @ grad,
    "barrier": lambda rule, violation, grad: min(rule.alpha * violation, rule.beta * grad @ grad),
    "budget": lambda rule, violation, grad: rule.alpha * violation,
    "as-printed": lambda rule, violation, grad: rule.alpha * violation,
}


def random_case():
    quality, flops = torch.randn(2, 7, dtype=torch.float64)
    return quality, flops, torch.randn((), dtype=torch.float64)


@pytest.mark.parametrize("mode", BARRIERS)
def test_direction_meets_its_barrier_with_the_smallest_multiplier(mode):
    rule = MultiplierRule(mode, alpha=1.7, beta=0.6, **UNLIMITED)
    actions = set()
    for _ in range(200):
        quality, flops, violation = random_case()
        multiplier = find_multiplier(rule, quality, flops, violation)
        direction = update_direction(rule, multiplier, quality, flops)
        constraint = flops if rule.constrains_flops else quality
        phi = BARRIERS[mode](rule, violation, constraint)
        assert multiplier >= 0
        assert constraint @ direction >= phi - 1e-9
        if multiplier > 0:  # any smaller one would miss it
            assert float(constraint @ direction) == pytest.approx(float(phi), abs=1e-9)
        actions.add(bool(multiplier > 0))
    assert actions == {True, False}


def test_multiplier_is_the_maximum_of_the_ratio_and_0():
    dot, norm = torch.tensor(3.0), torch.tensor(2.0)
    assert lexicographic_multiplier(dot, norm, torch.tensor(4.0)) == 0.5
    assert lexicographic_multiplier(dot, norm, torch.tensor(2.0)) == 0.0


def test_direction_is_objective_plus_weighted_constraint():
    quality, flops, _ = random_case()
    multiplier = torch.tensor(1.5, dtype=torch.float64)
    for mode in MODES:
        direction = update_direction(MultiplierRule(mode), multiplier, quality, flops)
        expected = quality + 1.5 * flops if mode in ("budget", "as-printed") else flops + 1.5 * quality
        assert torch.equal(direction, expected), mode


@pytest.mark.parametrize("mode", BARRIERS)
def test_multiplier_stays_between_floor_and_ceiling(mode):
    rule = MultiplierRule(mode, floor=0.3, ceiling=0.9)
    found = torch.stack([find_multiplier(rule, *random_case()) for _ in range(300)])
    floor = 0.0 if rule.constrains_flops else 0.3  # FLOPs below a budget are not pushed any further
    assert float(found.min()) == pytest.approx(floor) and float(found.max()) == pytest.approx(0.9)
    assert ((found > floor) & (found < 0.9)).any()


@pytest.mark.parametrize("mode", BARRIERS)
@pytest.mark.parametrize("violation", [-1.0, 0.0, 1.0])
def test_a_constraint_gradient_of_0_gives_a_finite_multiplier(mode, violation):
    rule = MultiplierRule(mode)
    zero, other = torch.zeros(5), torch.randn(5)
    gradients = (other, zero) if rule.constrains_flops else (zero, other)
    multiplier = find_multiplier(rule, *gradients, torch.tensor(violation))
    assert math.isfinite(multiplier) and 0 <= multiplier <= rule.ceiling


@pytest.mark.parametrize("weight", [0.2, 1.0, 1.5])
def test_fixed_weighs_flops_against_quality_whatever_the_violation(weight):
    rule = MultiplierRule("fixed", fixed_weight=weight)
    quality, flops, violation = random_case()
    direction = update_direction(rule, find_multiplier(rule, quality, flops, violation), quality, flops)
    torch.testing.assert_close(weight * direction, quality + weight * flops)


@pytest.mark.parametrize(
    "options,named",
    [
        ({"mode": "both"}, "'both'"),
        ({"floor": -0.1}, "-0.1"),
        ({"floor": 2.0, "ceiling": 1.0}, "2.0..1.0"),
        ({"floor": float("nan")}, "nan"),
        ({"alpha": 0.0}, "alpha 0.0"),
        ({"alpha": float("nan")}, "alpha nan"),
        ({"beta": -1.0}, "beta -1.0"),
        ({"fixed_weight": 0.0}, "fixed weight 0.0"),
    ],
)
def test_options_that_cannot_be_are_errors_naming_the_value(options, named):
    with pytest.raises(ValueError) as error:
        MultiplierRule(**options)
    assert named in str(error.value)


# A problem on paper: q is best at BEST_QUALITY, f at LEAST_FLOPS, both are squared distances. The best point under
# q <= c lies between the two, where q = c.
BEST_QUALITY = torch.tensor([1.0, 0.5], dtype=torch.float64)
LEAST_FLOPS = torch.tensor([-1.0, 0.0], dtype=torch.float64)
LIMIT = 0.1
STARTS = [[1.0, 0.5], [-1.0, 0.0], [0.2, 0.3], [2.0, -1.0], [-0.5, 2.0], [0.9, 0.4]]


def distance(point, centre):
    return 0.5 * (point - centre).square().sum()


def descend(rule, start, updates=1500, step=0.01):
    """Follows -v from a start; the violation is q - c, or f - c where FLOPs are the constraint by name (budget)."""
    point = torch.tensor(start, dtype=torch.float64)
    for _ in range(updates):
        measured = distance(point, LEAST_FLOPS if rule.mode == "budget" else BEST_QUALITY)
        quality, flops = point - BEST_QUALITY, point - LEAST_FLOPS
        multiplier = find_multiplier(rule, quality, flops, measured - LIMIT)
        point = point - step * update_direction(rule, multiplier, quality, flops)
    return point


def nearest(centre, other):
    """The point where the squared distance to ``centre`` is the limit, on the way to ``other``."""
    way = other - centre
    return centre + way / way.norm() * math.sqrt(2 * LIMIT)


@pytest.mark.parametrize("start", STARTS, ids=str)
def test_constrained_reaches_the_known_optimum_from_every_start(start):
    point = descend(MultiplierRule("constrained", **UNLIMITED), start)
    assert float(distance(point, BEST_QUALITY)) == pytest.approx(LIMIT, abs=2e-3)
    torch.testing.assert_close(point, nearest(BEST_QUALITY, LEAST_FLOPS), atol=0.02, rtol=0)


@pytest.mark.parametrize("start", STARTS, ids=str)
def test_budget_lands_on_its_budget_with_the_best_quality(start):
    point = descend(MultiplierRule("budget", **UNLIMITED), start)
    assert float(distance(point, LEAST_FLOPS)) == pytest.approx(LIMIT, abs=2e-3)
    torch.testing.assert_close(point, nearest(LEAST_FLOPS, BEST_QUALITY), atol=0.02, rtol=0)


def test_the_rule_as_printed_misses_the_constraint_from_every_start():
    for start in STARTS:
        quality = float(distance(descend(MultiplierRule("as-printed", **UNLIMITED), start), BEST_QUALITY))
        assert abs(quality - LIMIT) > 0.05, start


def test_the_rule_as_printed_is_repelled_by_the_constraint_that_attracts_constrained():
    optimum = nearest(BEST_QUALITY, LEAST_FLOPS)
    worse = optimum + 0.1 * (LEAST_FLOPS - optimum)  # q > c: quality should be mended
    quality, flops = worse - BEST_QUALITY, worse - LEAST_FLOPS
    violation = distance(worse, BEST_QUALITY) - LIMIT
    rates = {}
    for mode in ("constrained", "as-printed"):
        rule = MultiplierRule(mode, alpha=10.0, **UNLIMITED)
        direction = update_direction(rule, find_multiplier(rule, quality, flops, violation), quality, flops)
        rates[mode] = float(-(quality @ direction))  # of q
    assert rates["constrained"] < 0 < rates["as-printed"]


@pytest.mark.parametrize("start", STARTS, ids=str)
def test_lexicographic_minimises_quality_first(start):
    point = descend(MultiplierRule("lexicographic", **UNLIMITED), start)
    assert float(distance(point, BEST_QUALITY)) < 1e-3


@pytest.mark.parametrize("start", STARTS, ids=str)
def test_barrier_holds_the_constraint_from_every_start(start):
    point = descend(MultiplierRule("barrier", **UNLIMITED), start, updates=3000)
    assert float(distance(point, BEST_QUALITY)) == pytest.approx(LIMIT, abs=5e-3)


@pytest.mark.parametrize("weight", [0.2, 1.0, 1.5])
def test_fixed_settles_at_the_weighted_mean_of_the_two_optima(weight):
    point = descend(MultiplierRule("fixed", fixed_weight=weight), [0.0, 2.0])
    torch.testing.assert_close(point, (BEST_QUALITY + weight * LEAST_FLOPS) / (1 + weight), atol=1e-3, rtol=0)
