"""What a training says of its policy when it freezes and when training ends: one line each, a WARNING if it failed."""

from __future__ import annotations

import logging
from collections import deque
from multiprocessing.util import Finalize
from typing import Any, Deque, Dict, List, Optional

import torch
from fairseq.distributed import utils as distributed_utils

from sd_fairseq.decision.decisions import SITES

logger = logging.getLogger(__name__)
RECENT = 50  # updates that a line's figures are averaged over
MISSED_BY = 0.03  # share of the dense FLOPs, or nats: more is a budget missed, or a constraint broken
SITE_NAMES = {
    "token": "source tokens",
    "encoder_attention": "encoder attention",
    "encoder_ffn": "encoder FFN",
    "decoder_attention": "decoder attention",
    "decoder_cross_attention": "decoder cross-attention",
    "decoder_ffn": "decoder FFN",
}


def describe_skips(rates: Dict[str, float]) -> str:
    """Returns what is skipped, site by site, such as "encoder FFN 62 %, decoder attention 43 %".

    Args:
        rates: site -> share of it that is skipped; see :data:`SITE_NAMES`.
    """
    skipped = [f"{SITE_NAMES[site]} {100 * rates[site]:.0f} %" for site in SITE_NAMES if rates.get(site, 0) >= 0.005]
    return ", ".join(skipped) or "nothing"


class RecentPaths:
    """Sums of the last updates' figures (:func:`~sd_fairseq.plugin.criterions.policy_metrics.describe_path`)."""

    def __init__(self) -> None:
        self.updates: Deque[Dict[str, float]] = deque(maxlen=RECENT)

    def add(self, logging_outputs: List[Dict[str, Any]]) -> None:
        """Takes one update's figures, of all workers and micro-batches."""
        sites = [f"sd_skip_{site}" for site in ("token", *SITES)]
        names = ("sd_examples", "sd_batches", "sd_distinct_paths", "sd_flops_generation", "sd_budget", *sites)
        sums = {name: sum(float(output.get(name, 0)) for output in logging_outputs) for name in names}
        if sums["sd_examples"]:
            self.updates.append(sums)

    def mean(self, name: str) -> float:
        """Returns a figure's mean over the examples."""
        examples = sum(sums["sd_examples"] for sums in self.updates)
        return sum(sums[name] for sums in self.updates) / max(examples, 1.0)

    def skips(self) -> Dict[str, float]:
        """Returns the share of every site that is skipped."""
        return {site: self.mean(f"sd_skip_{site}") for site in ("token", *SITES)}


class PolicySummary:
    """Follows a training's deployed paths and says how it ended.

    Args:
        cfg: the criterion's options.
        max_update: of the training; 0 = not known.
    """

    def __init__(self, cfg: Any, max_update: int):
        self.cfg, self.max_update = cfg, max_update
        self.recent = RecentPaths()
        self.violation: Optional[float] = None
        self.ended = False
        self.finalizer: Optional[Finalize] = None
        self.update = -1

    def follow(self, update: int, logging_outputs: List[Dict[str, Any]]) -> None:
        """Takes what an update logged; speaks when the policy has made its last step, and after the last update.

        Args:
            update: its number, from 0.
            logging_outputs: of all workers and micro-batches.
        """
        if self.update < 0:
            # trainings end in many ways, and most do not know which update is the last; spawned workers end so, too
            self.finalizer = Finalize(None, self.end, exitpriority=10)
        self.update = update
        freeze = self.cfg.sd_policy_freeze_update
        if update == freeze:
            self.recent.updates.clear()  # from here on the deployed phase's own
        self.recent.add(logging_outputs)
        batches = sum(float(output.get("sd_policy_batches", 0)) for output in logging_outputs)
        if batches:
            self.violation = sum(float(output.get("sd_violation", 0)) for output in logging_outputs) / batches
        if update + 1 == freeze:
            self.say(f"fixed from update {freeze} on")
        if update + 1 == self.max_update:
            self.end()

    def end(self) -> None:
        """Says how the training ended, once."""
        if self.ended or not self.recent.updates:
            return
        self.ended = True
        freeze = self.cfg.sd_policy_freeze_update
        reason = ""
        if freeze > self.update + 1:
            reason = f"training ended before the policy was fixed (update {freeze})"
        elif not freeze:
            reason = "the policy was never fixed (--sd-policy-freeze-update 0): checkpoint_best.pt may skip nothing"
        self.say(f"training ended after {self.update + 1} updates", reason)

    def say(self, event: str, reason: str = "") -> None:
        """Writes the line, on one worker.

        Args:
            event: what happened.
            reason: why it is a warning; "" = decided by FLOPs, constraint and skips.
        """
        if torch.distributed.is_initialized() and distributed_utils.get_data_parallel_rank() != 0:
            return
        flops, skips = self.recent.mean("sd_flops_generation"), describe_skips(self.recent.skips())
        aim, missed = self.judge(flops)
        if skips == "nothing":
            few = f"{min(self.update + 1, self.cfg.sd_policy_freeze_update)} updates did not move the policy far enough"
            missed = f"this model skips nothing: {reason or few}; see docs/guide.md, Troubles"
        paths = sum(sums["sd_distinct_paths"] for sums in self.recent.updates)
        paths /= max(1.0, sum(sums["sd_batches"] for sums in self.recent.updates))
        text = f"policy: {event}; {flops:.3f} of the dense FLOPs{aim}; skipped: {skips}; {paths:.1f} paths a batch"
        if missed or reason:
            logger.warning("%s. %s", text, missed or reason)
        else:
            logger.info("%s", text)

    def judge(self, flops: float) -> "tuple[str, str]":
        """Returns what was aimed at, in words, and how it was missed ("" = it was not)."""
        if str(self.cfg.sd_mode) == "budget":
            drawn = self.recent.mean("sd_budget")  # of a range; 0 where there is none
            off = flops - (drawn or self.cfg.sd_flops_budget)
            missed = f"the budget is missed by {off:+.3f}" if abs(off) > MISSED_BY else ""
            aim = f"budgets {drawn:.3f} on average" if drawn else f"budget {self.cfg.sd_flops_budget:g}"
            return f" ({aim})", missed
        if str(self.cfg.sd_mode) in ("constrained", "barrier", "as-printed") and self.violation is not None:
            tolerance, violation = self.cfg.sd_tolerance, self.violation
            missed = f"the tolerance is exceeded by {violation:.3f} nats" if violation > MISSED_BY else ""
            return f" (tolerance {tolerance:g} nats, {violation:+.3f} on the last batches of the policy)", missed
        return "", ""
