"""Batches of equal paths: a pool of batches is decided first, then generated path by path.

Where a batch's documents skip different sub-layers, each sub-layer runs on a part of them, and small products are slow.
With ``--sd-batch-by-path N`` the policy decides for N batches' documents, those of one path are put together, and what
is left over, too few for a batch of its own, is put together in the order of the paths. Results come back in the order
of the data, and are the same: a document's output does not depend on its batch.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import torch
from torch import Tensor

from sd_fairseq.cost.layer_work import LayerWork
from sd_fairseq.decision.decider import PathRequest
from sd_fairseq.decision.decisions import Decisions, DecisionSpace
from sd_fairseq.plugin.guards.errors import InputError

logger = logging.getLogger(__name__)

ENOUGH = 0.5  # of a full batch, from which on documents of one path are generated without others


@dataclass(frozen=True)
class Limits:
    """How large a batch may be.

    Args:
        sentences: at most so many, or None.
        tokens: at most so many source tokens, padding included, or None.
    """

    sentences: Optional[int]
    tokens: Optional[int]

    def cut(self, rows: List[int], lengths: List[int]) -> List[List[int]]:
        """Cuts rows, in their order, into as few batches as the limits allow.

        Args:
            rows: of the pool.
            lengths: source tokens of every row of the pool.
        """
        batches: List[List[int]] = []
        longest = 0
        for row in rows:
            longest = max(longest, lengths[row])
            size = len(batches[-1]) + 1 if batches else 1
            too_many = self.sentences is not None and size > self.sentences
            if not batches or too_many or (self.tokens is not None and size * longest > self.tokens):
                batches.append([])
                longest = lengths[row]
            batches[-1].append(row)
        return batches


def group(decisions: Decisions, space: DecisionSpace, lengths: List[int], limits: Limits) -> List[List[int]]:
    """Shares the rows of a pool out to batches: of one path where there are enough of it.

    Args:
        decisions: of the pool.
        space: of the model.
        lengths: source tokens of every row.
        limits: of a batch.

    Returns:
        Rows of every batch; each row stands in one.
    """
    outputs = torch.cat([space.to_keep(decisions).long(), decisions.token_choice.unsqueeze(1)], dim=1).cpu()
    _, kinds = torch.unique(outputs, dim=0, return_inverse=True)  # sorted: like paths are neighbours
    pure: List[List[int]] = []
    rest: List[int] = []
    for kind in range(int(kinds.max()) + 1):
        rows = kinds.eq(kind).nonzero().flatten().tolist()
        batches = limits.cut(rows, lengths)
        full = max(len(batch) for batch in batches)
        limit = limits.sentences or full
        enough = [batch for batch in batches if len(batch) >= ENOUGH * limit]
        pure += enough
        rest += [row for batch in batches if batch not in enough for row in batch]
    return pure + limits.cut(rest, lengths)


def select(sample: Dict[str, Any], rows: Tensor, padding: int) -> Dict[str, Any]:
    """Returns some rows of a batch, without the columns that are padding in all of them.

    Args:
        sample: fairseq's batch; its decisions are not copied.
        rows: LongTensor [B'].
        padding: index of the padding symbol.
    """
    size = sample["net_input"]["src_tokens"].size(0)

    def take(value: Any) -> Any:
        return (
            value.index_select(0, rows) if torch.is_tensor(value) and value.dim() and value.size(0) == size else value
        )

    taken = {name: take(value) for name, value in sample.items() if name != "net_input"}
    inputs = {name: take(value) for name, value in sample["net_input"].items() if name != "decision_log"}
    tokens = inputs["src_tokens"]
    inputs["src_tokens"] = tokens[:, tokens.ne(padding).any(dim=0)]
    return {**taken, "net_input": inputs}


class Pools:
    """Generates pools of batches path by path.

    Args:
        batches: of a pool, at least 1.
        sentences, tokens: see :class:`Limits`, of a batch.

    Raises:
        InputError: no number of batches.
    """

    def __init__(self, batches: int, sentences: Optional[int], tokens: Optional[int]):
        if batches < 1:
            raise InputError(f"--sd-batch-by-path {batches} is not 1 or more")
        self.batches, self.batch = batches, Limits(sentences, tokens)
        self.warned = False

    def limits(self) -> Dict[str, Optional[int]]:
        """Returns the limits of a pool, as fairseq's ``get_batch_iterator`` takes them."""
        of_batch = {"max_sentences": self.batch.sentences, "max_tokens": self.batch.tokens}
        return {name: None if limit is None else limit * self.batches for name, limit in of_batch.items()}

    def warn(self) -> None:
        """Says once that nothing is decided here."""
        if not self.warned:
            logger.warning("--sd-batch-by-path has no effect: no policy decides once a document here")
        self.warned = True

    def generate(
        self,
        step: Callable[..., List[Any]],
        decide: Callable[[Dict[str, Any]], Tuple[Decisions, Optional[List[Tensor]]]],
        models: Sequence[Any],
        sample: Dict[str, Any],
        **more: Optional[Tensor],
    ) -> List[Any]:
        """Generates a pool; where nothing decides once a document, in batches as they come.

        Args:
            step: generates a batch: by (batch, prefix_tokens=..., constraints=...).
            decide: of a batch's ``net_input``, its decisions and what it has read of every document, or None.
            models: of the generator.
            sample: the pool, a batch of fairseq's; its decisions are noted where it has a place for them.
            more: ``prefix_tokens`` and ``constraints`` of the pool, or None.

        Returns:
            What ``step`` returns for every row, in the pool's order.
        """
        source = sample["net_input"]["src_tokens"]
        padding = models[0].encoder.padding_idx
        lengths = source.ne(padding).sum(dim=1).tolist()
        batches = self.batch.cut(list(range(len(lengths))), lengths)
        decisions: Optional[Decisions] = None
        states: List[Tensor] = []
        if not decides_once(models):
            self.warn()
        elif len(batches) > 1:
            parts = [select(sample, torch.tensor(rows, device=source.device), padding) for rows in batches]
            read = [decide(part["net_input"]) for part in parts]
            decisions = join([decided for decided, _ in read])
            states = [one for _, known in read for one in known or ()]
            batches = group(decisions, models[0].space, lengths, self.batch)
        log = sample["net_input"].get("decision_log")
        logged: List[Any] = []
        order: List[int] = []
        results: List[Any] = [None] * len(lengths)
        for rows in batches:
            index = torch.tensor(rows, device=source.device)
            part = select(sample, index, padding)
            if decisions is not None:
                part["net_input"]["path"] = PathRequest(decisions=decisions.index_select(index))
            if states:
                part["net_input"]["first_layer"] = [states[row] for row in rows]
            if log is not None:
                part["net_input"]["decision_log"] = []
            given = {name: None if value is None else value.index_select(0, index) for name, value in more.items()}
            for row, result in zip(rows, step(part, **given)):
                results[row] = result
            order += rows
            logged += part["net_input"].get("decision_log") or []
        back = torch.tensor(order, device=source.device).argsort()
        for kind, put_together in ((Decisions, join), (LayerWork, LayerWork.join)):
            pieces = [one for one in logged if isinstance(one, kind)]
            if pieces:
                log.append(put_together(pieces).index_select(back))
        return results


def decider_of(generator: Any, models: Sequence[Any]) -> Callable[[Dict[str, Any]], Any]:
    """Returns what decides for a batch: the fast model, or the model's own encoder."""
    fast = getattr(getattr(generator, "model", None), "decide", None)
    return fast or (lambda net_input: (models[0].encoder.decide(net_input["src_tokens"]), None))


def decides_once(models: Sequence[Any]) -> bool:
    """Tells whether one model's policy decides for a whole document after layer 1."""
    policy = getattr(getattr(models[0], "encoder", None), "policy", None)
    return len(models) == 1 and policy is not None and len(getattr(policy, "stages", ())) <= 1


def join(pieces: Sequence[Decisions]) -> Decisions:
    """Puts the decisions of several batches one after the other."""
    names = list(vars(pieces[0]))
    return Decisions(**{name: torch.cat([getattr(piece, name) for piece in pieces]) for name in names})
