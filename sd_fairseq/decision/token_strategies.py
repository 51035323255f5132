"""Which source tokens an example drops: keep all, drop the last p %, or drop p % uniformly (section 3.1).

Choice: a percentage counts the example's own non-padding tokens and is rounded down; the first token and the
final end-of-sentence symbol are never dropped. The paper fixes neither.
Choice: "uniformly p %" drops exactly ``floor(p * n / 100)`` evenly spaced inner tokens, which is every 4th, 3rd and
2nd of them for 25, 33 and 50 %. One count for both kinds keeps the closed-form cost simple.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence, Tuple

import torch
from torch import Tensor

KINDS = ("keep", "last", "uniform")


@dataclass(frozen=True)
class TokenStrategy:
    """One way to shorten a source.

    Args:
        kind: ``keep`` (drop nothing), ``last`` (drop the last tokens) or ``uniform`` (drop evenly spaced tokens).
        percent: share of the example's non-padding tokens to drop, 0 to 99.
        spared: last tokens before the final one that are never dropped either (an instruction, a template's end).
    """

    kind: str
    percent: int
    spared: int = 0

    def __str__(self) -> str:
        return "keep" if self.kind == "keep" else f"{self.kind}:{self.percent}"


DEFAULT_TOKEN_STRATEGIES = "keep,last:10,last:20,last:30,uniform:25,uniform:33,uniform:50"


def parse_token_strategies(text: str, spared: int = 0) -> Tuple[TokenStrategy, ...]:
    """Reads a comma-separated list such as ``keep,last:10,uniform:50``.

    Args:
        text: the list; ``keep`` must come first, because it is the strategy of the dense path.
        spared: see :class:`TokenStrategy`; the same for all.

    Returns:
        The strategies in the order of the policy's token outputs.

    Raises:
        ValueError: an unknown kind, a share outside 1-99 %, a repeated strategy, a list not starting with ``keep``, or
            a negative number of spared tokens.
    """
    if spared < 0:
        raise ValueError(f"{spared} spared tokens, expected 0 or more")
    strategies = tuple(_parse_one(part.strip(), spared) for part in text.split(","))
    if strategies[0].kind != "keep":
        raise ValueError(f"token strategies must start with 'keep', found {text!r}")
    if len(set(strategies)) != len(strategies):
        raise ValueError(f"token strategies must differ from each other, found {text!r}")
    return strategies


def _parse_one(text: str, spared: int) -> TokenStrategy:
    if text == "keep":
        return TokenStrategy("keep", 0, spared)
    kind, _, percent = text.partition(":")
    if kind not in ("last", "uniform") or not percent.lstrip("-").isdigit():
        raise ValueError(f"unknown token strategy {text!r}, expected 'keep', 'last:PERCENT' or 'uniform:PERCENT'")
    if not 0 < int(percent) < 100:
        raise ValueError(f"token share of {text!r} is outside 1-99 % (use 'keep' to drop nothing)")
    return TokenStrategy(kind, int(percent), spared)


def count_kept_tokens(lengths: Tensor, strategies: Sequence[TokenStrategy]) -> Tensor:
    """Counts the tokens that every strategy would keep.

    Args:
        lengths: LongTensor [B], non-padding tokens of each source.
        strategies: the J strategies.

    Returns:
        LongTensor [B, J].
    """
    percents = torch.tensor([strategy.percent for strategy in strategies], device=lengths.device)
    spared = torch.tensor([strategy.spared for strategy in strategies], device=lengths.device)
    lengths = lengths.unsqueeze(1)  # [B, 1]
    dropped = torch.div(lengths * percents, 100, rounding_mode="floor")  # [B, J]
    return lengths - torch.minimum(dropped, (lengths - 2 - spared).clamp(min=0))


def kept_token_mask(padding_mask: Tensor, choice: Tensor, strategies: Sequence[TokenStrategy]) -> Tensor:
    """Marks the source tokens that each example keeps.

    Args:
        padding_mask: BoolTensor [B, S], True = padding (fairseq's polarity).
        choice: LongTensor [B], index of each example's strategy.
        strategies: the J strategies.

    Returns:
        BoolTensor [B, S], True = keep; padding is never kept.
    """
    real = ~padding_mask  # [B, S]
    lengths = real.sum(dim=1)  # [B]
    kept = count_kept_tokens(lengths, strategies).gather(1, choice.unsqueeze(1))  # [B, 1]
    dropped = lengths.unsqueeze(1) - kept  # [B, 1]
    spared = torch.tensor([strategy.spared for strategy in strategies], device=choice.device)[choice]  # [B]
    inner = (lengths - 2 - spared).clamp(min=1).unsqueeze(1)  # [B, 1] tokens that may go
    position = real.cumsum(dim=1) - 1  # [B, S] index among the example's own tokens
    is_uniform = torch.tensor([strategy.kind == "uniform" for strategy in strategies], device=choice.device)[choice]
    # The u-th inner token (from 0) is dropped where floor(u * dropped / inner) steps up: evenly spaced, exact count.
    after = torch.div(position * dropped, inner, rounding_mode="floor")
    before = torch.div((position - 1) * dropped, inner, rounding_mode="floor")
    uniform_drop = after > before  # [B, S]
    last_drop = position > inner - dropped  # [B, S]
    is_inner = (position > 0) & (position <= inner)
    drop = torch.where(is_uniform.unsqueeze(1), uniform_drop, last_drop) & is_inner
    return real & ~drop
