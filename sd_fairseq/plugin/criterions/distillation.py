"""Distillation of the trained path from a dense teacher (an addition to the paper).

The backbone's loss becomes (1 - weight) * loss + weight * KL(teacher || path). The teacher is another checkpoint, or
the dense path of the same weights with dropout off (self-distillation). Quality, the constraint and what is logged as
``nll_loss`` stay the data's.
"""

from __future__ import annotations

from typing import Any, List, Optional

import torch
from fairseq import checkpoint_utils
from torch import Tensor, nn

from sd_fairseq.plugin.guards.preflight import check_checkpoint
from sd_fairseq.plugin.guards.presets import SELF_TEACHER


class Distiller:
    """Mixes a teacher's distribution into the loss.

    Not a module: the teacher is neither trained nor saved.

    Args:
        weight: of the teacher, in (0, 1).
        teacher: checkpoint of a BART, plain or switchable (run dense); None or "self" = the model's own dense path.
        task: fairseq task, for the teacher's dictionaries.

    Raises:
        InputError: a teacher that cannot be loaded.
    """

    def __init__(self, weight: float, teacher: Optional[str], task: Any):
        self.weight = weight
        own = teacher in (None, SELF_TEACHER)
        self.teacher: Optional[nn.Module] = None if own else load_teacher(str(teacher), task)

    def mix(self, evaluator: Any, output: Any, loss: Tensor) -> Tensor:
        """Returns the mixed loss, summed over the batch as ``loss`` is.

        Args:
            evaluator: of the batch, an :class:`~sd_fairseq.plugin.criterions.policy_step.Evaluator`.
            output: what the model returned for the trained path.
            loss: of the data.
        """
        with torch.no_grad():
            wanted = evaluator.log_probs(self.teach(evaluator))
        return (1 - self.weight) * loss + self.weight * divergence(wanted, evaluator.log_probs(output))

    def teach(self, evaluator: Any) -> Any:
        """Returns the teacher's output for the batch, dropout off; call it without gradients."""
        if self.teacher is None:
            return evaluator.dense_dropout_off()
        parameter = next(evaluator.model.parameters())
        self.teacher.to(device=parameter.device, dtype=parameter.dtype)
        return evaluator.forward(self.teacher)


def load_teacher(path: str, task: Any) -> nn.Module:
    """Loads the teacher, its parameters fixed.

    Raises:
        InputError: no checkpoint, or one that cannot be read.
    """
    check_checkpoint(path, "--sd-teacher")
    models: List[nn.Module]
    models, _ = checkpoint_utils.load_model_ensemble([path], arg_overrides={"sd_policy": "dense"}, task=task)
    return models[0].eval().requires_grad_(False)


def divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """Returns KL(teacher || student) summed over the rows.

    Args:
        teacher, student: [N, K] log-probabilities; outcomes impossible for the teacher (-inf) do not count.
    """
    possible = teacher > -torch.inf
    terms = teacher.exp() * (teacher - student.masked_fill(~possible, 0.0))
    return terms.masked_fill(~possible, 0.0).sum()
