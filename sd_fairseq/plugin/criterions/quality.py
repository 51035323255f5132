"""Quality of a batch: the loss that trains the backbone and each example's mean token NLL (section 3.2, Reward)."""

from __future__ import annotations

from typing import Any, Dict, NamedTuple, Tuple

import torch
from fairseq.criterions.label_smoothed_cross_entropy import label_smoothed_nll_loss
from torch import Tensor


class Quality(NamedTuple):
    """What one forward pass is worth.

    Args:
        loss: scalar, summed token cross-entropy with label smoothing; trains the backbone.
        nll: scalar, the same without smoothing.
        per_example: float32 [B], mean token NLL in nats; lower is better.
        tokens: LongTensor [B], target tokens of each example.
    """

    loss: Tensor
    nll: Tensor
    per_example: Tensor
    tokens: Tensor


def measure_quality(model: Any, net_output: Tuple, sample: Dict[str, Any], padding: int, smoothing: float) -> Quality:
    """Scores a teacher-forced forward pass.

    Args:
        model: a fairseq model (for its targets and log-probabilities).
        net_output: what the model returned.
        sample: fairseq's batch.
        padding: index of the padding symbol.
        smoothing: label smoothing, 0..1.
    """
    log_probs = model.get_normalized_probs(net_output, log_probs=True)  # [B, T, V]
    target = model.get_targets(sample, net_output)  # [B, T]
    flat = log_probs.view(-1, log_probs.size(-1))
    loss, nll = label_smoothed_nll_loss(flat, target.view(-1), smoothing, ignore_index=padding, reduce=True)
    with torch.no_grad():
        token_nll = -log_probs.gather(-1, target.unsqueeze(-1)).squeeze(-1).float()  # [B, T]
        real = target.ne(padding)
        tokens = real.sum(dim=1)
        per_example = token_nll.masked_fill(~real, 0.0).sum(dim=1) / tokens.clamp(min=1)
    return Quality(loss, nll, per_example, tokens)
