"""How noisy is each estimate of the policy's quality gradient? Repeats every estimator on the same batches.

On every batch each estimator is repeated with other sampled paths and other dropout, as in training. Of the R gradients
g_r (of the mean over the batch's examples, with respect to all parameters of the policy) the table shows

* signal: |mean g|^2, less what the noise adds to it (var / R); it may come out negative where noise hides it;
* noise: the variance, sum over the parameters of the unbiased sample variance;
* noise / signal: how many updates must be averaged until the noise is as large as the signal;
* cosine: between the estimator's mean and the reference's, the mean over all repeats of the unbiased estimators that
  were asked for; a biased estimator may stay below 1 whatever the repeats;
* seconds: of one estimate, dropout and backward pass to the switches included.

Source: the estimators are :mod:`~sd_fairseq.plugin.criterions.estimators`; nothing of this is in the paper.
"""

from __future__ import annotations

import argparse
import time
from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

import torch
from fairseq import utils
from torch import Tensor

from sd_fairseq.learning.reinforce import flat_gradient
from sd_fairseq.plugin.criterions.estimators import GATED, estimate_quality
from sd_fairseq.plugin.criterions.policy_step import Evaluator, trainable
from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.study.path_scorer import load_batches

# What is shown by default: name -> (estimator, paths an example).
ESTIMATORS = {
    "score-function": ("score-function", 1),
    "leave-one-out-2": ("leave-one-out", 2),
    "leave-one-out-4": ("leave-one-out", 4),
    "straight-through": ("straight-through", 1),
    "reinmax": ("reinmax", 1),
}


class Noise(NamedTuple):
    """What one estimator showed on one batch.

    Args:
        mean: [P], mean gradient.
        variance: unbiased, summed over the parameters.
        repeats: R.
        seconds: of one estimate.
    """

    mean: Tensor
    variance: float
    repeats: int
    seconds: float

    @property
    def signal(self) -> float:
        """Returns |mean|^2 less the noise's share."""
        return float(self.mean @ self.mean) - self.variance / self.repeats


def measure_noise(gradients: Sequence[Tensor], seconds: float) -> Noise:
    """Summarises repeated estimates.

    Args:
        gradients: R >= 2 of [P].
        seconds: all of them took.
    """
    stacked = torch.stack([gradient.double() for gradient in gradients])  # [R, P]
    return Noise(stacked.mean(0), float(stacked.var(0).sum()), len(gradients), seconds / len(gradients))


def estimate_gradient(evaluator: Evaluator, name: str, samples: int, bound: float, update: int) -> Tensor:
    """Estimates once: the gradient of the mean quality of the batch with respect to the policy, float32 [P]."""
    estimate = estimate_quality(evaluator, name, bound, samples, 1, update)
    policy = evaluator.model.encoder.policy
    with trainable(policy) as parameters:
        gradient = flat_gradient(estimate.objective(policy(estimate.states)), parameters)
    return gradient / evaluator.sample["id"].numel()


def measure_batch(evaluator: Evaluator, names: Sequence[str], repeats: int, bound: float) -> Dict[str, Noise]:
    """Repeats every estimator on one batch; they take turns, so that a busy machine is slow for all of them."""
    gradients: Dict[str, List[Tensor]] = {name: [] for name in names}
    seconds = dict.fromkeys(names, 0.0)
    for repeat in range(repeats):
        for place, name in enumerate(names):
            started = time.perf_counter()
            kind, samples = ESTIMATORS[name]
            update = repeat * len(names) + place  # no two estimates share a sampled path
            gradients[name].append(estimate_gradient(evaluator, kind, samples, bound, update))
            seconds[name] += time.perf_counter() - started
    return {name: measure_noise(gradients[name], seconds[name]) for name in names}


def summarise(batches: Sequence[Dict[str, Noise]]) -> List[Dict[str, Any]]:
    """Averages over batches; one row an estimator.

    Args:
        batches: what :func:`measure_batch` returned for each.
    """
    rows = []
    for name in batches[0]:
        noises = [batch[name] for batch in batches]
        signal = sum(noise.signal for noise in noises) / len(noises)
        variance = sum(noise.variance for noise in noises) / len(noises)
        row: Dict[str, Any] = {"estimator": name, "signal": signal, "noise": variance}
        row["noise_to_signal"] = variance / signal if signal > 0 else None
        row["cosine"] = sum(cosine(batch[name].mean, reference(batch)) for batch in batches) / len(batches)
        row["seconds"] = sum(noise.seconds for noise in noises) / len(noises)
        rows.append(row)
    return rows


def reference(batch: Dict[str, Noise]) -> Tensor:
    """Returns the mean of the unbiased estimators' gradients, each weighted by one over its variance; else all."""
    unbiased = [noise for name, noise in batch.items() if ESTIMATORS[name][0] not in GATED] or list(batch.values())
    weights = [1.0 / max(noise.variance, 1e-30) for noise in unbiased]
    total = torch.stack([weight * noise.mean for weight, noise in zip(weights, unbiased)]).sum(0)
    return total / sum(weights)


def cosine(one: Tensor, other: Tensor) -> float:
    """Returns the cosine of two vectors, 0 where one of them is 0."""
    norms = float(one.norm() * other.norm())
    return float(one @ other) / norms if norms > 0 else 0.0


def load(args: argparse.Namespace) -> Tuple[Any, List[Evaluator]]:
    """Loads model and batches.

    Raises:
        InputError: a checkpoint without a policy that learns, or an unreadable one.
    """
    model, task, batches = load_batches(args)
    model.train()
    if getattr(model, "policy_learner", None) is None:
        raise InputError(f"{args.path} holds a {type(model).__name__} without a policy that learns")
    chosen = batches[:: max(1, len(batches) // args.batches)][: args.batches]  # they are sorted by length
    chosen = [utils.move_to_cuda(sample) if args.cuda else sample for sample in chosen]
    return model, [Evaluator(model, sample, task.target_dictionary.pad(), 0.0) for sample in chosen]


def check_arguments(args: argparse.Namespace) -> List[str]:
    """Returns the names of the estimators that are asked for.

    Args:
        args: with estimators (comma-separated, None = all), repeats and batches.

    Raises:
        InputError: an unknown name, or a number out of its range.
    """
    names = args.estimators.split(",") if args.estimators else list(ESTIMATORS)
    unknown = [name for name in names if name not in ESTIMATORS]
    if unknown:
        raise InputError(f"--estimators {unknown[0]!r} is none of {', '.join(ESTIMATORS)}")
    if args.repeats < 2 or args.batches < 1:
        raise InputError(f"--repeats {args.repeats} --batches {args.batches}: expected 2 or more and 1 or more")
    return names
