"""Learn then test: a bound that is said to hold with some confidence is broken no more often than that allows."""

import numpy as np
import pytest

pytest.importorskip("scipy")

from sd_fairseq.evaluation.risk_control import hoeffding_bentkus, last_that_passes, t_test

REPETITIONS, PAIRS, CONFIDENCE = 200, 400, 0.95
RISKS = np.linspace(0.01, 0.12, 12)  # true ones, from the dearest to the cheapest setting
BOUND = 0.052  # between two of them


def draw(generator, bounded):
    """Losses [settings, pairs] of the true risks: as skewed as losses of documents are, or in 0..1."""
    if bounded:
        return (generator.random((len(RISKS), PAIRS)) < RISKS[:, None]).astype(float)
    noise = generator.standard_exponential((len(RISKS), PAIRS)) - 1
    return RISKS[:, None] + 0.25 * noise


@pytest.mark.parametrize(("test", "bounded"), [(t_test, False), (t_test, True), (hoeffding_bentkus, True)])
def test_the_bound_is_broken_no_more_often_than_the_confidence_allows(test, bounded):
    generator = np.random.default_rng(5)
    broken, chosen = 0, []
    for _ in range(REPETITIONS):
        passed = last_that_passes([test(losses, BOUND) for losses in draw(generator, bounded)], CONFIDENCE)
        chosen.append(-1 if passed is None else passed)
        broken += passed is not None and RISKS[passed] > BOUND
    allowed = 1 - CONFIDENCE
    assert broken / REPETITIONS <= allowed + 3 * (allowed * CONFIDENCE / REPETITIONS) ** 0.5
    assert np.median(chosen) >= 1  # and it does save something


def test_a_setting_behind_one_that_fails_is_not_used_however_good_it_looks():
    assert last_that_passes([0.01, 0.2, 0.0, 0.0], 0.95) == 0
    assert last_that_passes([0.2, 0.0], 0.95) is None
    assert last_that_passes([0.01, 0.05], 0.95) == 1
    assert last_that_passes([float("nan"), 0.0], 0.95) is None


def test_losses_without_spread_show_what_a_rare_loss_would_have_shown_and_few_show_nothing():
    assert t_test(np.zeros(1000), 0.5) == 1.0 == t_test(np.full(1000, 0.5), 0.5, 100.0)
    generator = np.random.default_rng(2)
    unseen = [not (generator.random(1000) < 0.005).any() for _ in range(4000)]  # a loss of 100 for 0.5 % of pairs
    assert t_test(np.zeros(1000), 0.5, 100.0) == pytest.approx(np.mean(unseen), abs=0.004)
    assert t_test(np.zeros(30), 0.05) == 1.0 and t_test(np.random.default_rng(0).normal(-9, 1, 29), 0.05) == 1.0
    assert t_test(np.random.default_rng(0).normal(-9, 1, 30), 0.05) < 1e-6


def test_a_bound_that_no_mean_exceeds_is_kept():
    losses = np.full(40, 0.5)
    assert hoeffding_bentkus(losses, 1.0) == hoeffding_bentkus(losses, 1.5) == 0.0
    assert hoeffding_bentkus(np.zeros(40), 0.0) == 1.0


def test_hoeffding_bentkus_is_valid_for_few_pairs_where_students_t_is_not():
    """Rare large losses that a small sample seldom holds."""
    generator = np.random.default_rng(1)
    samples = (generator.random((2000, 30)) < 0.05).astype(float)
    refused = [hoeffding_bentkus(losses, 0.0499) <= 0.05 for losses in samples]
    assert np.mean(refused) <= 0.05
    with pytest.raises(ValueError, match=r"not in 0\.\.1"):
        hoeffding_bentkus(np.array([0.5, 1.5]), 0.1)


def test_two_sequences_share_the_level():
    """Both see nothing but settings that break the bound: together they use one no more often than one alone may."""
    pytest.importorskip("fairseq")
    from sd_fairseq.study.calibration import Measured, choose

    generator, used = np.random.default_rng(11), 0
    for _ in range(1000):
        drawn = [[Measured(0.0, generator.normal(BOUND, 1, 100), 0.5 + number)] for number in range(2)]
        used += choose(drawn, BOUND, CONFIDENCE, "t")[0] is not None
    assert used / 1000 <= 0.05 + 3 * (0.05 * 0.95 / 1000) ** 0.5
    safe = [[Measured(float(value), generator.normal(-1, 1, 100), value)] for value in (0.7, 0.5)]
    assert choose(safe, BOUND, CONFIDENCE, "t")[0].flops == 0.5
