"""Windows of ``<s> question </s> </s> context </s>``, and the span that is right in each.

A context that does not fit is read in several windows, each ``stride`` tokens further on; together they hold every
token. The right span of a window that does not hold the whole answer is ``<s>``, which stands for "no answer here".
Choice: the answer to learn is the first annotator's, as SQuAD's train sets have one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List, Sequence, Tuple

import torch
from torch import Tensor

from sd_fairseq.evaluation.squad_data import Question
from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.plugin.squad.offsets import Tokens

NO_ANSWER = 0  # position of <s>
SEPARATORS = 4  # <s>, the two </s> between question and context, the final </s>


@dataclass(frozen=True)
class WindowSizes:
    """How long contexts are cut.

    Args:
        tokens: of a window at most, separators included.
        stride: tokens from a window's first context token to the next one's.
        question_tokens: a longer question loses its end.

    Raises:
        InputError: sizes that leave no room for a context; names the option.
    """

    tokens: int
    stride: int
    question_tokens: int

    def __post_init__(self) -> None:
        if self.stride < 1:
            raise InputError(f"--sd-stride {self.stride} is not 1 or more")
        if self.question_tokens < 1:
            raise InputError(f"--sd-question-tokens {self.question_tokens} is not 1 or more")
        if self.tokens <= self.question_tokens + SEPARATORS:
            raise InputError(
                f"--max-positions {self.tokens} leaves no room for a context beside --sd-question-tokens "
                f"{self.question_tokens} and {SEPARATORS} separators"
            )


@dataclass(frozen=True)
class Window:
    """One window.

    Args:
        question: index of its question.
        tokens: LongTensor [S].
        first: position of its first context token.
        spans: characters (begin, end excluded) of each of its context tokens.
        target: first and last position of the right span; ``<s>`` twice = none here, or none known.
    """

    question: int
    tokens: Tensor
    first: int
    spans: Tuple[Tuple[int, int], ...]
    target: Tuple[int, int]


class WindowMaker:
    """Cuts questions into windows.

    Args:
        tokeniser: of :mod:`sd_fairseq.plugin.squad.offsets`.
        dictionary: fairseq's.
        sizes: of the windows.

    Attributes:
        shortened: how many questions lost their end so far.
    """

    def __init__(self, tokeniser: Any, dictionary: Any, sizes: WindowSizes):
        self.tokeniser, self.dictionary, self.sizes = tokeniser, dictionary, sizes
        self.shortened = 0

    def make(self, questions: Sequence[Question]) -> List[Window]:
        """Makes the windows of questions, in their order.

        Raises:
            InputError: a question or context without a character that the tokeniser knows.
        """
        windows: List[Window] = []
        contexts: Dict[str, Tuple[Tokens, Tensor]] = {}  # the questions about a paragraph share its tokens
        for index, question in enumerate(questions):
            if question.context not in contexts:
                contexts = {question.context: self._encode(question.context, "context", question.place)}
            windows += self._cut(index, question, *contexts[question.context])
        return windows

    def _cut(self, index: int, question: Question, context: Tokens, symbols: Tensor) -> List[Window]:
        asked = self._encode(question.text, "question", question.place)[1]
        self.shortened += asked.numel() > self.sizes.question_tokens
        start, end = torch.tensor([self.dictionary.bos()]), torch.tensor([self.dictionary.eos()])
        front = torch.cat([start, asked[: self.sizes.question_tokens], end, end])
        room = self.sizes.tokens - front.numel() - 1
        windows = []
        for first in range(0, symbols.numel(), min(self.sizes.stride, room)):
            stop = min(first + room, symbols.numel())
            windows.append(
                Window(
                    question=index,
                    tokens=torch.cat([front, symbols[first:stop], end]),
                    first=front.numel(),
                    spans=tuple(zip(context.begins[first:stop], context.ends[first:stop])),
                    target=right_span(question, context, first, stop, front.numel()),
                )
            )
            if stop == symbols.numel():
                break
        return windows

    def _encode(self, text: str, name: str, place: str) -> Tuple[Tokens, Tensor]:
        tokens = self.tokeniser.tokenise(text)
        if not tokens.pieces:
            raise InputError(f"{place}: {name!r} has no character that the tokeniser knows")
        return tokens, torch.tensor([self.dictionary.index(piece) for piece in tokens.pieces])


def right_span(question: Question, context: Tokens, first: int, stop: int, position: int) -> Tuple[int, int]:
    """Finds the span to learn in a window.

    Args:
        question: with or without answers.
        context: the whole context.
        first, stop: the window has the context's tokens from ``first`` to before ``stop``.
        position: of ``first`` in the window.

    Returns:
        First and last position of the fewest tokens that hold the first answer; ``<s>`` twice if some are outside.
    """
    if not question.answers:
        return NO_ANSWER, NO_ANSWER
    answer = question.answers[0]
    head, tail = context.cover(answer.start, answer.start + len(answer.text))
    if head < first or tail >= stop:
        return NO_ANSWER, NO_ANSWER
    return head - first + position, tail - first + position
