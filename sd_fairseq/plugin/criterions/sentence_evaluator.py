"""Scores paths by a classification or regression head that reads the decoder (section 4.1, classification).

The decoder gets the same tokens as the encoder and all of them, whatever the encoder drops.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Dict, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sd_fairseq.cost.path_flops import Lengths, ModelShape
from sd_fairseq.plugin.criterions.policy_step import Evaluator
from sd_fairseq.plugin.criterions.quality import Quality, measure_class_quality, measure_regression_quality
from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.plugin.models.classification import classification_head_shape


class SentenceEvaluator(Evaluator):
    """Scores paths of one batch of ``switchable_sentence_prediction``.

    Args:
        model, sample, padding, smoothing: as :class:`Evaluator`'s; ``sample["target"]`` is [B, 1] classes or [B, K]
            regression targets.
        head: name of the model's head.
        regression: True = squared error is the quality.
    """

    def __init__(
        self, model: Any, sample: Dict[str, Any], padding: int, smoothing: float, head: str, regression: bool = False
    ):
        super().__init__(model, sample, padding, smoothing)
        self.head, self.regression = head, regression

    def forward(self, model: Any, **more: Any) -> Tuple:
        """Runs a model and its head on the batch."""
        return super().forward(model, features_only=True, classification_head_name=self.head, **more)

    def log_probs(self, output: Tuple) -> Tensor:
        """Log-probabilities [B, K] of the classes, for distillation.

        Raises:
            InputError: a regression, which has none.
        """
        if self.regression:
            raise InputError("--sd-distillation needs classes, found --regression-target")
        return F.log_softmax(output[0], dim=-1, dtype=torch.float32)

    def quality(self, output: Tuple) -> Quality:
        """Scores the head's output [B, K].

        Raises:
            InputError: a class that the head does not have.
        """
        outputs: Tensor = output[0]
        if self.regression:
            return measure_regression_quality(outputs, self.sample["target"].view_as(outputs))
        target = self.sample["target"].view(-1)  # [B]
        wrong = ((target < 0) | (target >= outputs.size(-1))).nonzero().view(-1)
        if wrong.numel():
            row = int(wrong[0])
            raise InputError(
                f"label of sentence {int(self.sample['id'][row])} is class {int(target[row])}, "
                f"the head {self.head!r} has classes 0..{outputs.size(-1) - 1}"
            )
        return measure_class_quality(outputs, target, self.smoothing)

    def lengths(self, beam: int) -> Lengths:
        """Tokens of encoder and decoder input, [B] each; nothing is generated, so there is no beam."""
        net_input = self.sample["net_input"]
        source, target = (net_input[name].ne(self.padding).sum(dim=1) for name in ("src_tokens", "prev_output_tokens"))
        return Lengths(source, target)

    @property
    def shape(self) -> ModelShape:
        """The model's dimensions with the head in the LM head's place."""
        return replace(self.model.shape, head=classification_head_shape(self.model, self.head))

    def sample_size(self, sentence_avg: bool) -> int:
        """Examples: a head has one loss each."""
        return self.sample["target"].size(0)
