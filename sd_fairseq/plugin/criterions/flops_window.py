"""A budget over the corpus, measured over the last documents under the present policy (``--sd-flops-window``).

Choice: fairseq makes batches of documents of one length, so of mixed traffic an update holds one kind of request. A
budget that each update must meet is then a budget for each kind, and the multiplier, found anew from each update's own
gradients, a price of its own for each kind: all kinds end at the same share of their FLOPs, which is not what a budget
for all of them says. Here the violation and the gradient of the FLOPs are those of the last documents, whatever their
kind, and the multiplier is one price: it comes from products averaged over updates. Nothing lags, as a moving average
of past FLOPs would: what the documents cost is counted anew under the policy of this update.
Choice: a fresh policy waits until it has seen some documents, and starts from what sets them apart.
"""

from __future__ import annotations

from typing import Any, List, Tuple

import torch
from fairseq.distributed import utils as distributed_utils
from torch import Tensor

from sd_fairseq.cost.path_flops import Lengths, expected_relative_flops
from sd_fairseq.learning.policy_learner import PolicyGradientSums
from sd_fairseq.learning.recent_documents import RecentDocuments
from sd_fairseq.learning.reinforce import flat_gradient
from sd_fairseq.plugin.criterions.policy_step import (
    PolicyStep,
    PolicyStepSettings,
    budget_violation,
    flops_weights,
    trainable,
)
from sd_fairseq.plugin.guards.errors import InputError

START = 128  # documents of all workers that a fresh policy waits for


class FlopsWindow:
    """The window of one worker.

    Args:
        size: documents that it holds; 0 = there is none.
    """

    def __init__(self, size: int):
        self.size = size
        self.pending: List[Tuple[Tensor, Lengths]] = []

    def note(self, step: PolicyStep) -> None:
        """Takes the documents of a micro-batch, to be held once its update counts."""
        if self.size:
            self.pending.append((step.states[0], step.lengths))

    def make_room(self, learner: Any, width: int, device: torch.device) -> None:
        """Lets the learner remember documents."""
        learner.remember(self.size, width)
        learner.recent.to(device)

    def recent(self, learner: Any) -> RecentDocuments:
        """Returns the documents held, this update's with them.

        Raises:
            InputError: a checkpoint that continues with a window of another size.
        """
        if learner.recent is None:
            self.make_room(learner, self.pending[0][0].size(1), self.pending[0][0].device)
        if learner.recent.states.size(0) != self.size:
            found = learner.recent.states.size(0)
            raise InputError(f"--sd-flops-window {self.size}: the checkpoint continues with a window of {found}")
        for states, lengths in self.pending:
            learner.recent.add(states, lengths.source, lengths.target)
        self.pending = []
        return learner.recent

    def lets_learn(self, model: Any) -> bool:
        """Takes this update's documents in; tells whether the policy learns yet, and lets a fresh one start well.

        Every worker must call this once an update.
        """
        learner, policy = model.policy_learner, model.encoder.policy
        if not self.pending and learner.recent is None:
            width = policy.hidden.in_features + (policy.budgets is not None)
            self.make_room(learner, width, policy.hidden.weight.device)
        recent = self.recent(learner)
        if not policy.is_fresh() or "state" not in policy.inputs:
            return True
        states = recent.held()[0][:, : policy.hidden.in_features]  # without a budget that is served
        sums = torch.stack([torch.full_like(states[:1].sum(0), len(states)), states.sum(0), states.square().sum(0)])
        if distributed_utils.get_data_parallel_world_size() > 1:
            distributed_utils.all_reduce(sums, group=distributed_utils.get_data_parallel_group())
        count, total, squares = sums
        if float(count[0]) < min(START, self.size):
            return False
        mean = total / count
        policy.tell_apart(mean, (squares / count - mean.square()).clamp(min=0).sqrt())
        return True

    def measure(self, model: Any, settings: PolicyStepSettings, sums: PolicyGradientSums) -> PolicyGradientSums:
        """Puts the window's violation and gradient of FLOPs in place of an update's own.

        Args:
            model: with its policy, which serves the update's budget.
            settings: of the update.
            sums: of this worker's micro-batches.
        """
        states, source, target = model.policy_learner.recent.held()
        if not len(states):
            return sums  # this worker has had no documents yet
        if model.encoder.policy.budgets is not None:  # the documents were read with the budgets of other updates
            states = torch.cat([states[:, :-1], torch.full_like(states[:, :1], settings.flops_budget or 0.0)], dim=1)
        lengths = Lengths(source, target, settings.beam)
        weights = flops_weights(settings, model.space, model.shape, lengths)
        with trainable(model.encoder.policy) as parameters:
            distribution = model.encoder.policy([states])
            flops = expected_relative_flops(settings.definition, model.shape, distribution, lengths)
            mean = ((flops * weights).sum() / weights.sum()).float()
            gradient = flat_gradient(mean, parameters)
        violation = budget_violation(settings, distribution, model.shape, lengths, weights)
        return PolicyGradientSums(sums.quality, gradient * sums.examples, sums.examples, violation, weights.sum())
