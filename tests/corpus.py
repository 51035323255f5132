"""A training set of a few documents whose lengths a task knows, as ``--sd-flops-average corpus`` needs them."""

from types import SimpleNamespace

import torch
from training import build_training

from sd_fairseq.cost.path_flops import Lengths, dense_flops, expected_relative_flops
from sd_fairseq.plugin.criterions.policy_step import Evaluator

BEAM = 4


def all_lengths(samples):
    """Source and target lengths of a corpus, as the model sees them."""
    found = [Evaluator(None, sample, 1, 0.0).lengths(BEAM) for sample in samples]
    return Lengths(torch.cat([one.source for one in found]), torch.cat([one.target for one in found]), BEAM)


def train_on(samples, **options):
    """A training whose task holds the samples' lengths as its training data."""
    training = build_training(sd_flops_average="corpus", **options)
    lengths = all_lengths(samples)
    sizes = dict(src_sizes=lengths.source.numpy(), tgt_sizes=lengths.target.numpy())
    training.task.cfg.train_subset = "mine"
    training.task.dataset = lambda split: {"mine": SimpleNamespace(**sizes)}[split]
    return training


def pending(training, samples):
    """What the batches of an update sum to."""
    total = None
    for sample in samples:
        training.step(sample)
    for one in training.criterion.pending:
        total = one if total is None else total + one
    return total


def policy_states(model, samples):
    """What the policy decides all examples by."""
    with torch.no_grad():
        return [torch.cat([model(**one["net_input"])[1]["policy_states"][0] for one in samples])]


def corpus_flops(distribution, model, lengths):
    """E[FLOPs] of all documents over the FLOPs of all their dense paths."""
    dense = dense_flops("generation", model.shape, model.space, lengths)
    return (expected_relative_flops("generation", model.shape, distribution, lengths) * dense).sum() / dense.sum()
