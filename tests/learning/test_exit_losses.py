"""The equations of CALM's and FREE's losses, on paper."""

import pytest
import torch

from sd_fairseq.learning.exit_losses import depth_weights, hidden_distance, teaching_layers


def test_weights_rise_with_the_depth_and_sum_to_1():
    assert depth_weights([1, 2, 3]) == pytest.approx([1 / 6, 2 / 6, 3 / 6])
    assert depth_weights([2, 6]) == pytest.approx([0.25, 0.75])
    assert depth_weights([5]) == [1]


@pytest.mark.parametrize(
    "shallow, layers, pairs",
    [(1, 6, [(1, 6)]), (2, 6, [(1, 3), (2, 6)]), (3, 12, [(1, 4), (2, 8), (3, 12)]), (2, 5, [(1, 3), (2, 5)])],
)
def test_shallow_layers_learn_from_evenly_spaced_deep_ones(shallow, layers, pairs):
    assert teaching_layers(shallow, layers) == pairs


def test_the_distance_is_the_mean_square_over_channels_and_layers_of_real_tokens():
    states = [torch.randn(4, 3, 5) for _ in range(7)]  # before the first of 6 layers, and after each
    real = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]], dtype=torch.bool)
    expected = 0.0
    for student, teacher in ((1, 3), (2, 6)):
        for row, length in enumerate((4, 2, 1)):
            for step in range(length):
                gap = states[student][step, row] - states[teacher][step, row]
                expected += float(gap @ gap) / 5 / 2
    assert float(hidden_distance(states, 2, real)) == pytest.approx(expected, rel=1e-5)


def test_deep_states_are_not_moved_by_the_distance():
    states = [torch.randn(4, 2, 5, dtype=torch.float64, requires_grad=True) for _ in range(5)]
    real = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]], dtype=torch.bool)
    hidden_distance(states, 2, real).backward()
    assert [one.grad is not None and bool((one.grad != 0).any()) for one in states] == [False, True, True, False, False]
    assert not bool((states[1].grad[1:, 1] != 0).any()), "nor padding"
    expected = 2 * (states[1] - states[2]).detach()[0, 1] / 5 / 2
    torch.testing.assert_close(states[1].grad[0, 1].float(), expected.float())
