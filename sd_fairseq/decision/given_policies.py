"""Policies that look at no hidden state: the controls (Table 8, and one path for every input)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sd_fairseq.decision.decisions import Decisions, DecisionSpace
from sd_fairseq.decision.noise import hash_tokens, scramble
from sd_fairseq.decision.policy import PolicyDistribution


class GivenPolicy(nn.Module):
    """Decides without looking at a hidden state: nothing to learn and nothing to compute."""

    def decide(self, src_tokens: Tensor, padding_mask: Tensor) -> Decisions:
        """Returns a path per example.

        Args:
            src_tokens: LongTensor [B, S].
            padding_mask: BoolTensor [B, S], True = padding.
        """
        raise NotImplementedError


class StaticPolicy(GivenPolicy):
    """Takes one path for every input: the control for "does it decide per input?".

    Args:
        path: the path, as the decisions of one example.
    """

    def __init__(self, path: Decisions):
        super().__init__()
        self.path = path

    def decide(self, src_tokens: Tensor, padding_mask: Tensor) -> Decisions:
        """Repeats the path for every example; see :class:`GivenPolicy`."""
        rows = torch.zeros(src_tokens.size(0), dtype=torch.long, device=src_tokens.device)
        return self.path.to(src_tokens.device).index_select(rows)


class RandomPolicy(GivenPolicy):
    """Skips at random with one keep-probability everywhere: the control of Table 8.

    Choice: an example's draw depends on its source tokens and the seed, so it neither changes with the batch nor from
    run to run; while training also on the update, so that a document seen again takes another path.

    Args:
        space: the decision space.
        keep_probability: of every switch and of the keep-all token strategy; the others share the rest.
        seed: another seed gives other draws.
    """

    def __init__(self, space: DecisionSpace, keep_probability: float, seed: int = 1):
        super().__init__()
        if not 0 <= keep_probability <= 1:
            raise ValueError(f"keep-probability {keep_probability} of the random policy is not in 0..1")
        self.space = space
        self.keep_probability = keep_probability
        self.seed = seed
        self.update = 0

    def set_num_updates(self, update: int) -> None:
        """Is told by fairseq how many updates were made."""
        self.update = update

    def decide(self, src_tokens: Tensor, padding_mask: Tensor) -> Decisions:
        """Draws a path per example; see :class:`GivenPolicy`."""
        count = self.space.num_switches + 2
        seed = self.seed + (self.update * 1000003 if self.training else 0)
        digest = hash_tokens(src_tokens, padding_mask, seed).unsqueeze(1)  # [B, 1]
        uniform = scramble(digest + torch.arange(1, count + 1, device=digest.device) * 7919)  # [B, count]
        keep = uniform[:, : self.space.num_switches] < self.keep_probability
        others = len(self.space.token_strategies) - 1
        choice = (1 + uniform[:, -1] * others).long().clamp(max=others)
        choice = choice.masked_fill(uniform[:, -2] < self.keep_probability, 0)
        return self.space.to_decisions(keep, choice)


def uniform_distribution(space: DecisionSpace, keep_probability: float, batch_size: int) -> PolicyDistribution:
    """Returns the distribution that :class:`RandomPolicy` draws from, for ``batch_size`` examples."""
    others = len(space.token_strategies) - 1
    tokens = torch.full((len(space.token_strategies),), (1 - keep_probability) / max(others, 1))
    tokens[0] = keep_probability if others else 1.0
    keep = torch.logit(torch.full((batch_size, space.num_switches), float(keep_probability)), eps=1e-7)
    return PolicyDistribution(space, keep, torch.log(tokens.clamp(min=1e-12)).expand(batch_size, -1))
