"""Quality of a batch: the loss that trains the backbone and each example's own cost (section 3.2, Reward).

Generation is judged by each example's mean token NLL, a head (classification, regression) by its loss on the example.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, Dict, Mapping, NamedTuple, Tuple

import torch
import torch.nn.functional as F
from fairseq.criterions.label_smoothed_cross_entropy import label_smoothed_nll_loss
from torch import Tensor


class Quality(NamedTuple):
    """What one forward pass is worth.

    Args:
        loss: scalar, summed over the batch, with label smoothing; trains the backbone.
        nll: scalar, the same without smoothing.
        per_example: float32 [B], in nats a token (generation) or an example (a head's); lower is better.
        tokens: LongTensor [B], targets of each example: tokens in generation, else 1.
        figures: more sums over the batch to log, such as right answers.
    """

    loss: Tensor
    nll: Tensor
    per_example: Tensor
    tokens: Tensor
    figures: Mapping[str, Any] = MappingProxyType({})


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
        real = target.ne(padding)
        per_example = mean_over(token_nll(log_probs, target).float(), real)
    return Quality(loss, nll, per_example, real.sum(dim=1))


def token_nll(log_probs: Tensor, target: Tensor) -> Tensor:
    """Returns each target token's negative log-likelihood in nats, [B, T].

    Args:
        log_probs: [B, T, V].
        target: LongTensor [B, T].
    """
    return -log_probs.gather(-1, target.unsqueeze(-1)).squeeze(-1)


def mean_over(values: Tensor, where: Tensor) -> Tensor:
    """Averages [B, T] over the positions ``where``, [B]; 0 where there is none."""
    return values.masked_fill(~where, 0.0).sum(dim=1) / where.sum(dim=1).clamp(min=1)


def measure_class_quality(logits: Tensor, target: Tensor, smoothing: float) -> Quality:
    """Scores a classification head: cross-entropy, and the confusion counts ``confusion_TRUE_PREDICTED``.

    Args:
        logits: [B, K].
        target: LongTensor [B], class from 0.
        smoothing: label smoothing, 0..1.
    """
    log_probs = F.log_softmax(logits, dim=-1, dtype=torch.float32)  # [B, K]
    nll = -log_probs.gather(1, target.unsqueeze(1)).squeeze(1)  # [B]
    loss = (1 - smoothing) * nll.sum() - smoothing * log_probs.mean(dim=-1).sum()
    classes = logits.size(-1)
    with torch.no_grad():
        pairs = target * classes + log_probs.argmax(dim=-1)  # [B]
        counts = torch.bincount(pairs, minlength=classes * classes)
    figures = {f"confusion_{i // classes}_{i % classes}": counts[i] for i in range(classes * classes)}
    figures["head_examples"] = target.numel()
    return Quality(loss, nll.sum(), nll.detach(), torch.ones_like(target), figures)


def measure_regression_quality(outputs: Tensor, target: Tensor) -> Quality:
    """Scores a regression head by its squared error.

    Args:
        outputs: [B, K].
        target: [B, K].
    """
    errors = (outputs.float() - target.float()).pow(2).sum(dim=-1)  # [B]
    ones = torch.ones_like(errors, dtype=torch.long)
    return Quality(errors.sum(), errors.sum(), errors.detach(), ones, {"head_examples": errors.numel()})
