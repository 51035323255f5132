"""Keeps a hypothesis from repeating an n-gram (`--no-repeat-ngram-size`), for all rows at once.

Since 2022 fairseq's own blocker compares the padding at the end of its token buffer and so never blocks anything,
unless a CUDA extension is there that no wheel ships. Choice: the rule is that extension's; the start token at position
0 takes part like any other.
"""

import torch
from torch import nn


class NGramBlocker(nn.Module):
    """Takes the place of fairseq's `NGramRepeatBlock` in a sequence generator.

    Args:
        no_repeat_ngram_size: n, at least 1.

    Raises:
        ValueError: n below 1.
    """

    def __init__(self, no_repeat_ngram_size: int):
        super().__init__()
        if no_repeat_ngram_size < 1:
            raise ValueError("no_repeat_ngram_size is {}, expected at least 1".format(no_repeat_ngram_size))
        self.no_repeat_ngram_size = no_repeat_ngram_size

    def reset_parameters(self) -> None:
        """fairseq calls it on every module; there is nothing to reset."""

    def forward(self, tokens: torch.Tensor, lprobs: torch.Tensor, bsz: int, beam_size: int, step: int) -> torch.Tensor:
        """Forbid the tokens that would complete an n-gram for the second time.

        Args:
            tokens: LongTensor [B * beam, >= step + 1]; positions 0..step are in use, 0 is the start token.
            lprobs: [B * beam, V] log-probabilities of position step + 1, changed in place as in fairseq.
            bsz: B, the sentences.
            beam_size: hypotheses a sentence.
            step: position of the newest token.

        Returns:
            `lprobs` with -inf at the forbidden tokens.

        Raises:
            ValueError: tokens or lprobs do not have B * beam rows.
        """
        if tokens.size(0) != bsz * beam_size or lprobs.size(0) != bsz * beam_size:
            raise ValueError(
                f"found {tokens.size(0)} rows of tokens and {lprobs.size(0)} of lprobs, expected {bsz} * {beam_size}"
            )
        context = self.no_repeat_ngram_size - 1
        earlier = step + 1 - context  # n-grams that are complete: starts 0 .. earlier - 1
        if earlier <= 0:
            return lprobs
        completions = tokens[:, context : step + 1]  # [B * beam, earlier]
        repeats = torch.ones_like(completions, dtype=torch.bool)
        for offset in range(context):
            newest = step + 1 - context + offset
            repeats &= tokens[:, offset : offset + earlier] == tokens[:, newest : newest + 1]
        # adding 0 or -inf is exact and does not depend on the order, however often a token stands among the completions
        penalty = torch.zeros_like(completions, dtype=lprobs.dtype).masked_fill(repeats, float("-inf"))
        return lprobs.scatter_add_(1, completions, penalty)
