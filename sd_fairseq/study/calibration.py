"""How little a trained policy may run so that its loss against a dense path stays below a bound, with confidence.

What is tuned is one number: the budget of a policy that serves a range, or else a shift of every logit that keeps
(``PolicyNetwork.shift``) from the one that it was trained with. The numbers to choose from, and their order, are given
before any loss is seen; :mod:`~sd_fairseq.evaluation.risk_control` says which of them may be used.

Choice: shifts are tested in two sequences, each at half the level. What a model was trained on is its safest setting:
its own dense path may have been left behind. So one sequence goes from the trained shift to what skips more. Where the
backbone stood still the dense path is the safest, and the other one goes from there down to the trained shift.
"""

from __future__ import annotations

import argparse
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from fairseq import utils
from torch import Tensor
from tqdm import tqdm

from sd_fairseq.decision.decisions import Decisions
from sd_fairseq.decision.policy import PolicyNetwork
from sd_fairseq.evaluation.generated_scores import Scoring
from sd_fairseq.evaluation.risk_control import TESTS, last_that_passes
from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.study.constraint_check import dense_loss
from sd_fairseq.study.path_scorer import Scorer
from sd_fairseq.user_files import open_input
from sd_fairseq.whole_files import write_with

# added to the trained shift
SHIFTS = ((0.0, -0.25, -0.5, -0.75, -1.0, -1.5, -2.0, -4.0), (16.0, 4.0, 2.0, 1.0, 0.5, 0.25))
BUDGETS = 13  # candidates of a range


class Measured(NamedTuple):
    """What a setting costs.

    Args:
        value: budget or shift.
        losses: float64 [N] against the dense path: nats a token, or ROUGE-L points lost.
        flops: mean relative FLOPs.
        dense: nothing is skipped for any pair: the loss is 0 and no estimate.
    """

    value: float
    losses: np.ndarray
    flops: float
    dense: bool = False


def tuned_buffer(policy: Any) -> Tuple[str, List[List[float]]]:
    """Returns which of a policy's numbers is tuned, and what it may be: sequences, each from safe to cheap.

    Raises:
        InputError: nothing that could be tuned.
    """
    if not isinstance(policy, PolicyNetwork):
        kind = "no policy" if policy is None else f"a {type(policy).__name__}"
        raise InputError(f"sd-calibrate tunes a trained policy network (--sd-policy network), found {kind}")
    if policy.budgets is None:
        return "shift", [[float(policy.shift) + shift for shift in sequence] for sequence in SHIFTS]
    low, high = policy.budgets
    return "budget", [[high + (low - high) * place / (BUDGETS - 1) for place in range(BUDGETS)]]


class NatsRisk:
    """Mean token NLL on the deployed path minus a dense path's, teacher-forced.

    Args:
        scorer: of the model and the pairs.
        reference: of the model whose dense path it is compared with, and the same pairs; None = the same weights.

    Raises:
        InputError: the reference takes other pairs.
    """

    unit = "nats a token"

    def __init__(self, scorer: Scorer, reference: Optional[Scorer] = None):
        self.scorer = scorer
        self.dense = dense_loss(same_pairs(scorer, reference))

    def measure(self) -> Tuple[np.ndarray, float, bool]:
        """Measures the policy as it is set now; see :class:`Measured`."""
        scores, decisions = self.scorer.score_policy()
        return (scores.loss - self.dense).numpy(), float(scores.flops.mean()), are_dense(self.scorer, decisions)


def same_pairs(scorer: Scorer, reference: Optional[Scorer]) -> Scorer:
    """Returns the reference, or the scorer itself where there is none.

    Raises:
        InputError: it takes other pairs.
    """
    if reference is not None and not torch.equal(scorer.source_lengths, reference.source_lengths):
        raise InputError("--reference takes other lengths, so other pairs would be compared")
    return reference or scorer


class RougeRisk:
    """ROUGE-L points that a document's summary loses against the dense path's.

    Args:
        scorer: of the model and the pairs, with the task.
        args: beam, lenpen, max_len_a, max_len_b, no_repeat_ngram_size, post_process.
        reference: as :class:`NatsRisk`'s.
    """

    unit = "ROUGE-L points"

    def __init__(self, scorer: Scorer, args: argparse.Namespace, reference: Optional[Scorer] = None):
        self.scorer, self.task, self.args = scorer, scorer.task, args
        self.references = [text for batch in scorer.batches for text in self._references(batch)]
        dense = same_pairs(scorer, reference).model
        policy, dense.encoder.policy = dense.encoder.policy, None
        try:
            self.dense = self._rouge(dense)
        finally:
            dense.encoder.policy = policy

    def measure(self) -> Tuple[np.ndarray, float, bool]:
        """As :meth:`NatsRisk.measure`; FLOPs are of the references' lengths."""
        scores, decisions = self.scorer.score_policy()
        losses = self.dense - self._rouge(self.scorer.model)
        return losses, float(scores.flops.mean()), are_dense(self.scorer, decisions)

    def _rouge(self, model: Any) -> np.ndarray:
        task, models = self.task, [model]
        generator = task.build_generator(models, self.args)
        strip = getattr(generator, "symbols_to_strip_from_output", {generator.eos})
        texts = []
        for batch in tqdm(self.scorer.batches, desc="generating", leave=False, disable=None):
            for best in (group[0] for group in task.inference_step(generator, models, batch)):
                tokens = best["tokens"].int().cpu()
                words = task.target_dictionary.string(tokens, self.args.post_process, extra_symbols_to_ignore=strip)
                texts.append(words)
        scoring = Scoring.load()
        sides = ([scoring.prepare(text) for text in side] for side in (texts, self.references))
        return 100 * scoring.by_document(*sides)

    def _references(self, batch: Dict[str, Any]) -> List[str]:
        dictionary = self.task.target_dictionary
        rows = [utils.strip_pad(row, dictionary.pad()).int().cpu() for row in batch["target"]]
        return [dictionary.string(row, self.args.post_process, escape_unk=True) for row in rows]


def are_dense(scorer: Scorer, decisions: Sequence[Decisions]) -> bool:
    """Tells whether all decisions keep everything."""
    keeps = [bool(scorer.model.space.to_keep(one).all()) and not bool(one.token_choice.any()) for one in decisions]
    return all(keeps)


def measure_all(policy: PolicyNetwork, name: str, values: Sequence[float], risk: Any) -> List[Measured]:
    """Measures every setting; the policy is left as it was.

    Args:
        policy: of the model.
        name: of the buffer that is set.
        values: its settings.
        risk: :class:`NatsRisk` or :class:`RougeRisk`.
    """
    buffer: Tensor = getattr(policy, name)
    before, found = buffer.clone(), []
    try:
        for value in tqdm(values, desc=name, leave=False, disable=None):
            buffer.fill_(value)
            found.append(Measured(value, *risk.measure()))
    finally:
        buffer.copy_(before)
    return found


def choose(
    sequences: Sequence[Sequence[Measured]],
    bound: float,
    confidence: float,
    test: str,
    largest: Optional[float] = None,
) -> Tuple[Optional[Measured], List[List[float]]]:
    """Returns the cheapest setting that keeps the bound, None = none does, and all p-values.

    Args:
        sequences: settings from safe to cheap; the level is shared out between them.
        bound: largest mean loss, in the losses' units.
        confidence: in (0, 1).
        test: a key of :data:`~sd_fairseq.evaluation.risk_control.TESTS`.
        largest: that a loss can be; None = not known.
    """
    p_values = [[p_value(one, bound, test, largest) for one in sequence] for sequence in sequences]
    level = (1 - confidence) / len(sequences)
    passed = [last_that_passes(values, 1 - level) for values in p_values]
    found = [sequence[place] for sequence, place in zip(sequences, passed) if place is not None]
    return min(found, key=lambda one: one.flops, default=None), p_values


def p_value(one: Measured, bound: float, test: str, largest: Optional[float]) -> float:
    """Returns the p-value of "this setting loses the bound or more"; see :func:`choose`."""
    if one.dense and not one.losses.any():
        return 0.0
    if test == "hoeffding-bentkus":  # points lost are in -100..100
        return TESTS[test]((one.losses / 100 + 1) / 2, (bound / 100 + 1) / 2)
    return TESTS[test](one.losses, bound, largest)


def write_calibrated(path: str, output: str, name: str, value: float, report: Dict[str, Any]) -> None:
    """Writes a copy of a checkpoint in which the policy is set; how stands beside it under ``sd_calibration``.

    Args:
        path, output: checkpoints.
        name, value: buffer of the policy, and what it becomes.
        report: plain values.
    """
    with open_input(path) as stream:  # as it stands there: fairseq's own reader would change its options' form
        state = torch.load(stream, map_location="cpu")
    key = f"encoder.policy.{name}"
    state["model"][key] = torch.full_like(state["model"].get(key, torch.zeros(1)), value)
    state["sd_calibration"] = report
    write_with(output, lambda stream: torch.save(state, stream))
