"""Uniform noise that belongs to an example, whatever batch or worker it is in."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sd_fairseq.decision.decisions import DecisionSpace


@dataclass(frozen=True)
class Noise:
    """Uniform noise that turns a distribution into a path: ``switches`` [B, num_switches], ``tokens`` [B, J]."""

    switches: Tensor
    tokens: Tensor

    @classmethod
    def draw(cls, batch_size: int, space: DecisionSpace, device: torch.device) -> "Noise":
        """Draws from torch's generator."""
        count = space.num_switches + len(space.token_strategies)
        uniform = torch.rand((batch_size, count), device=device)
        return cls(uniform[:, : space.num_switches], uniform[:, space.num_switches :])

    @classmethod
    def for_examples(cls, ids: Tensor, salt: int, space: DecisionSpace) -> "Noise":
        """Derives each example's noise from its id, so that it does not depend on batch, worker or micro-batch.

        Args:
            ids: LongTensor [B], the examples' indices in their data set.
            salt: another number gives other noise (the update, say).
            space: the decision space.
        """
        count = space.num_switches + len(space.token_strategies)
        keys = (ids.long().unsqueeze(1) * 2654435761 + salt * 40503) % 2147483647  # [B, 1]
        uniform = scramble(keys * 64 + torch.arange(1, count + 1, device=ids.device) * 7919)
        uniform = uniform.float().clamp(max=1 - 2**-24)  # rounding must not reach 1, which even p = 1 would not keep
        return cls(uniform[:, : space.num_switches], uniform[:, space.num_switches :])


def scramble(values: Tensor) -> Tensor:
    """Maps integers to uniform numbers in [0, 1) by three rounds of multiply and xor-shift."""
    for multiplier in (0x45D9F3B, 0x119DE1F3, 0x2C1B3C6D):
        values = ((values ^ (values >> 16)) * multiplier) % 4294967296
    return values.double() / 4294967296


def hash_tokens(src_tokens: Tensor, padding_mask: Tensor, seed: int) -> Tensor:
    """Hashes each source, padding left out, to LongTensor [B] in [0, 2^31)."""
    position = (~padding_mask).cumsum(dim=1)
    mixed = ((src_tokens + 1) * 2654435761 + position * 40503 + seed * 69069) % 2147483647
    mixed = (scramble(mixed) * 2147483647).long()
    return mixed.masked_fill(padding_mask, 0).sum(dim=1) % 2147483647
