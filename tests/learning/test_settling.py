"""The policy settles: nothing changes before, everything has fallen to 0 at the end, and nothing ever rises."""

import pytest

from sd_fairseq.learning.settling import Settling


@pytest.mark.parametrize("freeze,share", [(240, 0.5), (7, 1.0), (1, 0.3)])
def test_factors_fall_from_1_to_0_and_never_rise(freeze, share):
    settling = Settling(freeze, share)
    rates = [settling.learning_rate_factor(update) for update in range(freeze + 3)]
    temperatures = [settling.temperature_factor(update) for update in range(freeze + 3)]
    for factors in (rates, temperatures):
        assert factors[0] == 1.0
        assert factors[freeze:] == [0.0] * 3
        assert all(before >= after >= 0.0 for before, after in zip(factors, factors[1:]))


def test_the_constraint_is_the_mode_paths_while_the_policy_can_still_follow_it():
    settling = Settling(200, 0.5)
    assert settling.temperature_factor(100) == settling.learning_rate_factor(100) == 1.0
    assert settling.temperature_factor(150) == 0.0
    assert settling.learning_rate_factor(150) == pytest.approx(0.5)


@pytest.mark.parametrize("settling", [Settling(0, 0.5), Settling(100, 0.0)], ids=["never-frozen", "no-share"])
def test_without_an_end_or_a_share_nothing_falls_while_the_policy_learns(settling):
    for update in (0, 50, 99, 10**6 if settling.freeze_update == 0 else 99):
        assert settling.learning_rate_factor(update) == settling.temperature_factor(update) == 1.0
