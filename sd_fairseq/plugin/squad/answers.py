"""From the head's scores of every token to answers: spans of each window, then the best ones of a question.

Choice: a window's spans are ranked by how far their score lies above that of ``<s>``, "not in this window". The head's
scores are only defined up to a constant in each window; the difference does not depend on it, so that spans of several
windows can be compared, and one threshold on it decides between an answer and none (SQuAD 2.0).
"""

from __future__ import annotations

import math
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor

from sd_fairseq.evaluation.squad_data import Question
from sd_fairseq.plugin.squad.windows import Window


class Span(NamedTuple):
    """A possible answer.

    Args:
        text: as it stands in the context, without white space around it.
        start, end: its characters in the context, ``end`` excluded.
        start_logit, end_logit: of its first and last token.
        margin: score above that of no answer in the same window.
    """

    text: str
    start: int
    end: int
    start_logit: float
    end_logit: float
    margin: float


def mask_logits(logits: Tensor, candidates: Tensor) -> Tensor:
    """Returns float32 [B, T, 2] where no span can begin or end outside the candidates [B, T]."""
    return logits.float().masked_fill(~candidates.unsqueeze(-1), -math.inf)


def best_spans(logits: Tensor, candidates: Tensor, count: int, longest: int) -> Tuple[Tensor, Tensor, Tensor]:
    """Finds each window's best spans.

    Args:
        logits: [B, T, 2], scores of beginning and ending at a token.
        candidates: BoolTensor [B, T], see :func:`~sd_fairseq.plugin.squad.window_dataset.collate_windows`.
        count: spans a window, N (fewer where there are no more).
        longest: most tokens of a span, L.

    Returns:
        First and last positions LongTensor [B, N] and margins [B, N], best first; margin -inf = no span.
    """
    scores = mask_logits(logits, candidates)  # [B, T, 2]
    null = scores[:, 0].sum(dim=-1)  # [B]
    scores = scores[:, 1:]  # [B, T-1, 2]: <s> is no part of an answer
    start, end = scores[..., 0], scores[..., 1]
    reach = min(longest, end.size(1))
    ends = torch.nn.functional.pad(end, (0, reach - 1), value=-math.inf).unfold(1, reach, 1)  # [B, T-1, L]
    margins = (start.unsqueeze(-1) + ends - null.view(-1, 1, 1)).flatten(1)  # [B, (T-1) L]
    found = margins.topk(min(count, margins.size(1)), dim=1)  # [B, N]
    first = torch.div(found.indices, reach, rounding_mode="floor") + 1
    return first, first + found.indices % reach, found.values


def cut_spans(question: Question, window: Window, logits: Tensor, spans: Tuple[Tensor, Tensor, Tensor]) -> List[Span]:
    """Cuts one window's spans out of the context.

    Args:
        question, window: whose spans these are.
        logits: [T, 2].
        spans: one row [N] each of what :func:`best_spans` returned.
    """
    found = []
    for first, last, margin in zip(*(column.tolist() for column in spans)):
        if margin == -math.inf:
            continue
        start, end = window.spans[first - window.first][0], window.spans[last - window.first][1]
        text = question.context[start:end]
        start += len(text) - len(text.lstrip())
        stripped = text.strip()
        if stripped:
            first_logit, last_logit = float(logits[first, 0]), float(logits[last, 1])
            found.append(Span(stripped, start, start + len(stripped), first_logit, last_logit, margin))
    return found


def rank_spans(spans: Sequence[Span], count: int) -> List[Span]:
    """Returns the best spans of a question's windows, each place in the context once."""
    ranked: Dict[Tuple[int, int], Span] = {}
    for span in sorted(spans, key=lambda one: -one.margin):
        ranked.setdefault((span.start, span.end), span)
    return list(ranked.values())[:count]


def no_answer_probability(spans: Sequence[Span]) -> float:
    """Returns how probable no answer is beside the best span, 0..1; 1 where there is no span at all.

    Args:
        spans: best first.
    """
    if not spans:
        return 1.0
    margin = spans[0].margin
    return 1 / (1 + math.exp(margin)) if margin < 0 else math.exp(-margin) / (1 + math.exp(-margin))


def choose_answer(spans: Sequence[Span], threshold: Optional[float]) -> str:
    """Returns the best span's text.

    Args:
        spans: best first.
        threshold: of the probability of no answer; above it there is none. None = there always is one (SQuAD 1.1).
    """
    if not spans or (threshold is not None and no_answer_probability(spans) > threshold):
        return ""
    return spans[0].text


def describe_spans(spans: Sequence[Span], with_no_answer: bool) -> List[Dict[str, Any]]:
    """Returns the n-best list of a question with probabilities among its entries, for JSON."""
    entries: List[Dict[str, Any]] = [span._asdict() for span in spans]
    if with_no_answer or not entries:
        nothing = {"text": "", "start": 0, "end": 0, "start_logit": 0.0, "end_logit": 0.0, "margin": 0.0}
        entries = sorted([*entries, nothing], key=lambda one: -one["margin"])
    best = entries[0]["margin"]
    total = math.fsum(math.exp(one["margin"] - best) for one in entries)
    return [{**one, "probability": math.exp(one["margin"] - best) / total} for one in entries]
