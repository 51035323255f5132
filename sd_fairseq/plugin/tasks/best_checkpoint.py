"""``checkpoint_best`` means the deployed model: what was validated before the policy froze does not count.

fairseq keeps the best score so far, and the count of validations without a better one (``--patience``), as attributes
of two of its functions. While the policy learns the loss is lowest before anything is skipped, so a score of that time
would keep a model that skips nothing.
"""

from __future__ import annotations

import sys
from typing import Any, Dict

from fairseq import checkpoint_utils

KEY = "sd_best_score_is_deployed"


def forget_best_score() -> None:
    """Drops the best validation score so far: the next one is the best."""
    commands = [sys.modules.get(name) for name in ("fairseq_cli.train", "__main__")]  # the latter of python -m
    stops = [getattr(command, "should_stop_early", None) for command in commands]
    for function in (checkpoint_utils.save_checkpoint, *stops):
        for name in ("best", "num_runs"):
            if hasattr(function, name):
                delattr(function, name)


class BestScore:
    """Knows whether the best score that fairseq keeps is one of the deployed model.

    Args:
        state: what the task saves in checkpoints.
    """

    def __init__(self, state: Dict[str, Any]):
        self.state = state

    def before_validation(self, policy_learns: bool) -> None:
        """Drops a score of the time in which the policy learned.

        Args:
            policy_learns: at this validation.
        """
        if policy_learns or not self.state.get(KEY, False):
            forget_best_score()
        self.state[KEY] = not policy_learns
