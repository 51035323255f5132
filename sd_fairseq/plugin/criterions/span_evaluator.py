"""Scores paths by a span head that reads the decoder (section 4.1, question answering).

The decoder gets the same tokens as the encoder and all of them, whatever the encoder drops: no answer is lost.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Tuple

import torch
from torch import Tensor

from sd_fairseq.cost.path_flops import Lengths, ModelShape
from sd_fairseq.plugin.criterions.policy_step import Evaluator
from sd_fairseq.plugin.criterions.quality import Quality
from sd_fairseq.plugin.models.span_head import SPAN_HEAD, span_head_shape
from sd_fairseq.plugin.squad.answers import mask_logits


class SpanEvaluator(Evaluator):
    """Scores paths of one batch of ``switchable_squad``.

    Args:
        model, sample, padding, smoothing: as :class:`Evaluator`'s; the sample is
            :func:`~sd_fairseq.plugin.squad.window_dataset.collate_windows`'s.
    """

    def forward(self, model: Any, **more: Any) -> Tuple:
        """Runs a model and its head on the batch."""
        return super().forward(model, classification_head_name=SPAN_HEAD, **more)

    def log_probs(self, output: Tuple) -> Tensor:
        """Log-probabilities [B * 2, T] of first and last position, for distillation."""
        logits = mask_logits(output[0], self.sample["candidates"])  # [B, T, 2]
        return logits.transpose(1, 2).log_softmax(dim=-1).flatten(0, 1)

    def quality(self, output: Tuple) -> Quality:
        """Scores the head's logits [B, T, 2]."""
        return measure_span_quality(output[0], self.sample["target"], self.sample["candidates"], self.smoothing)

    def lengths(self, beam: int) -> Lengths:
        """Tokens of encoder and decoder input, [B] each; nothing is generated, so there is no beam."""
        lengths = self.sample["net_input"]["src_lengths"]
        return Lengths(lengths, lengths)

    @property
    def shape(self) -> ModelShape:
        """The model's dimensions with the head in the LM head's place."""
        return replace(self.model.shape, head=span_head_shape(self.model))

    def sample_size(self, sentence_avg: bool) -> int:
        """Windows: each has one loss."""
        return self.sample["target"].size(0)


def measure_span_quality(logits: Tensor, target: Tensor, candidates: Tensor, smoothing: float) -> Quality:
    """Scores spans: the mean of the cross-entropies of first and last position.

    Args:
        logits: [B, T, 2].
        target: LongTensor [B, 2], first and last position.
        candidates: BoolTensor [B, T], True = an answer may stand there; padding is masked with the rest, so that no
            batch mate changes a probability.
        smoothing: label smoothing over the candidates, 0..1.
    """
    log_probs = mask_logits(logits, candidates).transpose(1, 2).log_softmax(dim=-1)  # [B, 2, T]
    nll = -log_probs.gather(2, target.unsqueeze(2)).squeeze(2).mean(dim=1)  # [B]
    usable = candidates.unsqueeze(1)  # [B, 1, T]
    spread = log_probs.masked_fill(~usable, 0.0).sum(dim=2) / usable.sum(dim=2)  # [B, 2]
    loss = (1 - smoothing) * nll.sum() - smoothing * spread.mean(dim=1).sum()
    with torch.no_grad():
        right = log_probs.argmax(dim=2) == target  # [B, 2]
    figures = {
        "head_examples": target.size(0),
        "span_both_ends": right.all(dim=1).sum(),
        "span_one_end": right.any(dim=1).sum(),
    }
    return Quality(loss, nll.sum(), nll.detach(), torch.ones_like(target[:, 0]), figures)
