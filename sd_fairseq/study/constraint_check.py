"""Does a policy keep its constraint? The deployed paths' loss against a dense model's, on many examples at once.

In training the violation is measured on one batch an update, and smoothed; its last values are as noisy as batches are.
Here the policy stands still: q - c - tolerance, the mean over the examples and its 95 % interval. q is an example's
mean token NLL on the path that the policy deploys, c the same on the dense path of the same weights, or of
``--reference``: the model that the policy started from, where the backbone was trained after it. With
``--reference-path deployed`` it is the path that the reference's own policy deploys, so that two trained models are
compared on the same pairs: a policy with a static path, say (tolerance 0).

Source: the constraint of section 3.3; Eq. 7's q and c.
"""

from __future__ import annotations

from typing import Any, Dict

import torch
from torch import Tensor

from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.study.path_scorer import Scorer, Scores
from sd_fairseq.study.path_search import interval


def dense_loss(scorer: Scorer) -> Tensor:
    """Returns the mean token NLL of each example on the dense path, float64 [N]."""
    return scorer.score(((True,) * scorer.model.space.num_switches, 0)).loss


def corpus_share(scorer: Scorer, scores: Scores) -> float:
    """Returns all examples' FLOPs as a share of all their dense paths'."""
    dense = scorer.dense_flops
    return float((scores.flops * dense).sum() / dense.sum())


def check(scorer: Scorer, reference: Scorer, tolerance: float, reference_path: str = "dense") -> Dict[str, Any]:
    """Compares a model's deployed paths with a dense path, or with another model's deployed paths.

    Args:
        scorer: of the model with the policy.
        reference: of the model whose dense path is the constraint's.
        tolerance: nats a token.
        reference_path: ``dense``, or ``deployed``: what the reference's own policy decides.

    Returns:
        Means over the examples; ``violation`` is an interval, positive where the constraint is broken.
        ``flops_generation`` is the mean of the examples' shares, ``flops_corpus`` the share of all their FLOPs.

    Raises:
        InputError: the two were given other examples.
    """
    if not torch.equal(scorer.source_lengths, reference.source_lengths):
        raise InputError("the two checkpoints take other lengths, so other examples would be compared")
    policy, _ = scorer.score_policy()
    found = {
        "examples": policy.loss.numel(),
        "tolerance": tolerance,
        "flops_generation": float(policy.flops.mean()),
        "flops_corpus": corpus_share(scorer, policy),
        "nll_policy": float(policy.loss.mean()),
    }
    if reference_path == "deployed":
        deployed, _ = reference.score_policy()
        loss = deployed.loss
        found["flops_generation_reference"] = float(deployed.flops.mean())
        found["flops_corpus_reference"] = corpus_share(reference, deployed)
        found["nll_reference"] = float(loss.mean())
    else:
        loss = dense_loss(reference)
        found["nll_dense"] = float(loss.mean())
    return {**found, "violation": interval(policy.loss - loss - tolerance)}
