"""Losses that teach a decoder to be left early: the equations of CALM and FREE.

* CALM (Schuster et al. 2022, section 3.2): L = sum_i w_i L_i over all decoder layers, w_i = i / sum_j j, where L_i is
  the loss of the one output head on the states after layer i.
* FREE (Bae et al. 2023, section 3.2): the same sum over the shallow exit and the last layer alone, plus a distance
  between the hidden states of the shallow layers and those of deep ones, which are not moved by it.

Choice: of FREE's layer maps the uniform one, shallow layer i to deep layer ceil(i L / S). With an exit after one layer,
as in a decoder of up to 7, its three maps are the same. Choice: the distance counts real target tokens, not padding.
"""

from __future__ import annotations

from typing import List, Sequence, Tuple

from torch import Tensor


def depth_weights(layers: Sequence[int]) -> List[float]:
    """Returns the weight of every exit's loss: its layer over the sum of all.

    Args:
        layers: of the exits, from 1.
    """
    return [layer / sum(layers) for layer in layers]


def teaching_layers(shallow: int, layers: int) -> List[Tuple[int, int]]:
    """Pairs each shallow layer with the deep one that it learns from, from 1.

    Args:
        shallow: S, layers up to the exit.
        layers: L of the decoder.
    """
    return [(layer, -(-layer * layers // shallow)) for layer in range(1, shallow + 1)]


def hidden_distance(states: Sequence[Tensor], shallow: int, real: Tensor) -> Tensor:
    """Mean squared distance of shallow states to deep ones, averaged over channels and layers, summed over tokens.

    Args:
        states: [T, B, C] before the first layer and after each.
        shallow: S, layers up to the exit.
        real: BoolTensor [B, T], True = a target token, False = padding.

    Returns:
        Scalar; its gradient reaches the shallow states only.
    """
    pairs = teaching_layers(shallow, len(states) - 1)
    total = states[0].new_zeros(())
    for student, teacher in pairs:
        squares = (states[student] - states[teacher].detach()).float().pow(2).mean(dim=-1)  # [T, B]
        total = total + squares.masked_fill(~real.t(), 0.0).sum()
    return total / len(pairs)
