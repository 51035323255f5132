"""The budgets of a training: which one an update or a document has, and how a fixed policy keeps them."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, ContextManager, List, Optional, Union

import torch
import torch.nn.functional as F
from fairseq.distributed import utils as distributed_utils
from torch import Tensor

from sd_fairseq.cost.path_flops import relative_flops
from sd_fairseq.decision.budgets import KNOTS
from sd_fairseq.decision.decisions import Decisions
from sd_fairseq.decision.noise import Noise
from sd_fairseq.learning.budget_tracking import move_shift
from sd_fairseq.plugin.criterions.estimators import salt
from sd_fairseq.plugin.criterions.policy_step import Evaluator, PolicyStepSettings, flops_weights
from sd_fairseq.plugin.guards.errors import InputError


def serving(model: Any, budgets: Union[float, Tensor, None]) -> ContextManager:
    """Lets a model's policy for a range of budgets serve these in the block; any other policy is left alone."""
    policy = model.encoder.policy
    return nullcontext() if getattr(policy, "budgets", None) is None else policy.serving(budgets)


class Budgets:
    """What the criterion asks about budgets.

    Args:
        cfg: the criterion's options.
    """

    def __init__(self, cfg: Any):
        self.is_mode = str(cfg.sd_mode) == "budget"
        self.mode, self.budget, self.freeze = str(cfg.sd_mode), cfg.sd_flops_budget, cfg.sd_policy_freeze_update
        self.warmup = cfg.sd_budget_warmup_updates
        self.tracks = self.is_mode and str(cfg.sd_track_budget) == "yes"
        self.residuals: List[Tensor] = []

    def of_update(self, policy: Any, update: int) -> Optional[float]:
        """Returns the budget of an update in which the policy learns; None = quality is the constraint.

        Raises:
            InputError: a policy for a range, and no mode that has a budget.
        """
        budgets = getattr(policy, "budgets", None)
        if budgets is None:
            return self.warmed(self.budget, update) if self.is_mode else None
        if not self.is_mode:
            raise InputError(f"--sd-budget-range needs --sd-mode budget, found {self.mode}")
        return self.warmed(budgets.at(update), update)

    def warmed(self, budget: float, update: int) -> float:
        """Returns what a budget is in an update of the warm-up: it falls from 1 in a straight line."""
        return 1.0 - (1.0 - budget) * min(1.0, (update + 1) / max(self.warmup, 1))

    @staticmethod
    def of_documents(evaluator: Evaluator, seed: int, update: int) -> Optional[Tensor]:
        """Draws a budget for each document of a batch, float32 [B], where a fixed policy serves a range; else None."""
        budgets = getattr(evaluator.model.encoder.policy, "budgets", None)
        if budgets is None:
            return None
        return budgets.spread(Noise.for_examples(evaluator.sample["id"], salt(seed, update), evaluator.model.space))

    def note(
        self, settings: PolicyStepSettings, evaluator: Evaluator, decisions: Decisions, budgets: Optional[Tensor]
    ) -> None:
        """Takes what the deployed paths of a micro-batch leave of their budgets, for :meth:`track`.

        Args:
            settings: what is counted, and what each example counts for.
            evaluator: of the batch.
            decisions: the deployed paths.
            budgets: [B] of a policy for a range, one of its K knots' each; None = one budget, K = 1.
        """
        space, shape, lengths = evaluator.model.space, evaluator.shape, evaluator.lengths(settings.beam)
        flops = relative_flops(settings.definition, shape, space, decisions, lengths)
        weights = flops_weights(settings, space, shape, lengths).unsqueeze(1)  # [B, 1]
        if budgets is not None:
            knots = evaluator.model.encoder.policy.budgets.indices(budgets)
            weights = weights * F.one_hot(knots, KNOTS)  # [B, K]
        residuals = ((self.budget if budgets is None else budgets) - flops).float().unsqueeze(1)  # [B, 1]
        self.residuals.append(torch.stack([(residuals * weights).sum(dim=0), weights.sum(dim=0)]))

    def forget(self) -> None:
        """Leaves out what was noted of an update that did not count."""
        self.residuals = []

    def track(self, policy: Any, update: int) -> None:
        """Moves the shift of a fixed policy's logits, once an update, by what all workers' deployed paths cost.

        Args:
            policy: of the model.
            update: its number.
        """
        shifts = policy.shifts()
        sums = torch.zeros(2, shifts[0].numel(), device=shifts[0].device)
        for residuals in self.residuals:
            sums += residuals.to(sums)
        self.forget()
        if distributed_utils.get_data_parallel_world_size() > 1:
            distributed_utils.all_reduce(sums, group=distributed_utils.get_data_parallel_group())
        for shift in shifts:
            move_shift(shift, sums[0], sums[1], update - self.freeze)
