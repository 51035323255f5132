"""Which of several settings keeps a bound on the mean loss, with a stated confidence, from a finite sample.

Source: Angelopoulos, Bates, Candès, Jordan, Lei, "Learn then Test" (2021): each setting has the hypothesis "its risk is
above the bound"; one that is refused may be used. In a fixed sequence, from the safest setting on, each hypothesis is
tested at the full level and the first one that stands ends the tests: the chance that any setting that passes breaks
the bound is at most 1 - confidence. The order must not depend on the losses.
"""

from __future__ import annotations

import math
from typing import Callable, Dict, Optional, Sequence

import numpy as np

LEAST = 30  # losses that a mean is judged by


def t_test(losses: np.ndarray, bound: float, largest: Optional[float] = None) -> float:
    """Returns the one-sided p-value of "the mean loss is at least the bound", by Student's t.

    Its level is right where the mean of so many losses is nearly normal: fewer than :data:`LEAST` show nothing. Losses
    that are all the same have no t. If the mean were the bound or more, others would have to be so frequent that none
    is seen with the probability that is returned.

    Args:
        losses: float [N].
        bound: in the losses' units.
        largest: that a loss can be; None = not known.
    """
    from scipy.stats import ttest_1samp

    if len(losses) < LEAST:
        return 1.0
    if float(np.ptp(losses)) == 0.0:
        usual = float(losses[0])
        if largest is None or usual >= bound:
            return 1.0
        return float((1 - min(1.0, (bound - usual) / (largest - usual))) ** len(losses))
    return float(ttest_1samp(losses, bound, alternative="less").pvalue)


def hoeffding_bentkus(losses: np.ndarray, bound: float) -> float:
    """Returns a p-value of "the mean loss is at least the bound" that holds for any N and any distribution.

    The smaller of Hoeffding's and Bentkus's bounds (Bates et al. 2021, Proposition 3).

    Args:
        losses: float [N], in 0..1.
        bound: in (0, 1).

    Raises:
        ValueError: a loss outside 0..1.
    """
    from scipy.stats import binom

    if losses.min() < 0 or losses.max() > 1:
        raise ValueError(f"losses of {losses.min():g} to {losses.max():g} are not in 0..1")
    count, mean = len(losses), float(losses.mean())
    if mean >= bound:
        return 1.0
    if bound >= 1:
        return 0.0  # no mean is larger
    far = bound if mean == 0 else mean
    divergence = (0.0 if mean == 0 else far * math.log(far / bound)) + (1 - mean) * math.log((1 - mean) / (1 - bound))
    bentkus = math.e * float(binom.cdf(math.ceil(count * mean), count, bound))
    return min(1.0, math.exp(-count * divergence), bentkus)


TESTS: Dict[str, Callable[..., float]] = {"t": t_test, "hoeffding-bentkus": hoeffding_bentkus}


def last_that_passes(p_values: Sequence[float], confidence: float) -> Optional[int]:
    """Returns the last setting of a fixed sequence that keeps its bound, from 0; None = not even the first.

    Args:
        p_values: from the safest setting to the one that saves most.
        confidence: in (0, 1).
    """
    passed: Optional[int] = None
    for place, p_value in enumerate(p_values):
        if not p_value <= 1 - confidence:
            break
        passed = place
    return passed
