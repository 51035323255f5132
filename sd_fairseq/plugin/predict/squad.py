"""Answers questions and says what each one skipped (``sd-answer``)."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
from torch import Tensor

import sd_fairseq.plugin  # noqa: F401  # registers models and tasks
from sd_fairseq.decision.trace import TraceRecord
from sd_fairseq.evaluation.squad_data import Question, has_unanswerable, read_questions
from sd_fairseq.evaluation.squad_score import score_answers
from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.plugin.models.hub_interface import SwitchableHubInterface
from sd_fairseq.plugin.models.span_head import SPAN_HEAD, span_head_shape
from sd_fairseq.plugin.predict.shared import (
    check_batch_size,
    describe_windows,
    load_hub,
    summarise_paths,
    write_summary,
)
from sd_fairseq.plugin.squad.answers import (
    Span,
    best_spans,
    choose_answer,
    cut_spans,
    describe_spans,
    no_answer_probability,
    rank_spans,
)
from sd_fairseq.plugin.squad.offsets import bpe_options, load_tokeniser
from sd_fairseq.plugin.squad.window_dataset import collate_windows
from sd_fairseq.plugin.squad.windows import Window
from sd_fairseq.plugin.tasks.trace_recorder import space_and_shape
from sd_fairseq.whole_files import check_places, write_text


@dataclasses.dataclass(frozen=True)
class Reply:
    """What is known about one question afterwards.

    Args:
        question: the question.
        spans: the best answers of all its windows, best first.
        traces: path, lengths, FLOPs and time of each window; ``target_tokens`` are the decoder's input, run once.
    """

    question: Question
    spans: Tuple[Span, ...]
    traces: Tuple[TraceRecord, ...]

    @property
    def best(self) -> str:
        """The best answer, whatever the probability of having none."""
        return choose_answer(self.spans, None)

    @property
    def no_answer(self) -> float:
        """Probability of having no answer, 0..1."""
        return no_answer_probability(self.spans)


class SquadPredictor:
    """Answers questions with a trained checkpoint, in batches.

    Args:
        hub: what ``SwitchableBARTModel.from_pretrained`` returned, of a checkpoint of ``switchable_squad``.
        n_best: answers to keep.
        answer_tokens: of an answer at most.
    """

    def __init__(self, hub: SwitchableHubInterface, n_best: int = 20, answer_tokens: int = 30):
        if SPAN_HEAD not in hub.model.classification_heads:
            raise InputError("the checkpoint was not trained with --task switchable_squad: it has no span head")
        self.hub, self.n_best, self.answer_tokens = hub.eval(), n_best, answer_tokens
        self.space, shape = space_and_shape(hub.model)
        self.shape = dataclasses.replace(shape, head=span_head_shape(hub.model))

    def answer(self, question: str, context: str) -> Reply:
        """Answers one question."""
        return self.predict([Question("0", question, context, (), None, "the question")])[0]

    def predict(self, questions: Sequence[Question], batch_size: int = 32) -> List[Reply]:
        """Answers questions; the replies come in their order.

        Windows of similar length share a batch; no answer depends on its batch mates.

        Raises:
            InputError: a text without a character that the tokeniser knows.
        """
        windows = self.hub.task.maker.make(questions)
        order = sorted(range(len(windows)), key=lambda index: -windows[index].tokens.numel())
        spans: Dict[int, List[Span]] = {}
        traces: Dict[int, TraceRecord] = {}
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            batch = [windows[row] for row in rows]
            asked = [questions[window.question] for window in batch]
            found = self._predict_batch(rows, batch, asked)
            for row, window_spans, trace in zip(rows, *found):
                spans[row], traces[row] = window_spans, trace
        rows_of: List[List[int]] = [[] for _ in questions]
        for row, window in enumerate(windows):
            rows_of[window.question].append(row)
        return [
            Reply(
                question,
                tuple(rank_spans([span for row in rows for span in spans[row]], self.n_best)),
                tuple(traces[row] for row in rows),
            )
            for question, rows in zip(questions, rows_of)
        ]

    def _predict_batch(
        self, ids: List[int], windows: List[Window], questions: List[Question]
    ) -> Tuple[List[List[Span]], List[TraceRecord]]:
        batch = collate_windows(windows, self.hub.task.source_dictionary.pad())
        started = time.perf_counter()
        with torch.no_grad():
            net_input = {name: value.to(self.hub.device) for name, value in batch["net_input"].items()}
            output, extra = self.hub.model(**net_input, classification_head_name=SPAN_HEAD, return_all_hiddens=False)
            logits: Tensor = output.float().cpu()  # [B, T, 2]
        seconds = (time.perf_counter() - started) / len(ids)
        best = best_spans(logits, batch["candidates"], self.n_best, self.answer_tokens)
        spans = [
            cut_spans(question, window, logits[row], (best[0][row], best[1][row], best[2][row]))
            for row, (question, window) in enumerate(zip(questions, windows))
        ]
        lengths = batch["net_input"]["src_lengths"]
        rows = [[{"tokens": window.tokens}] for window in windows]
        traces = describe_windows(self, extra["decisions"], lengths, ids, rows, f"head:{SPAN_HEAD}", seconds)
        return spans, traces


def summarise(replies: Sequence[Reply], threshold: Optional[float]) -> Dict[str, Any]:
    """Collects scores (where every question has answers or is said to have none), FLOPs, seconds and skip rates.

    Args:
        replies: of all questions.
        threshold: of the probability of having no answer; None = there always is an answer.
    """
    questions = [reply.question for reply in replies]
    summary: Dict[str, Any] = {
        "examples": len(replies),
        "windows": sum(len(reply.traces) for reply in replies),
        "no_answer_threshold": threshold,
    }
    if all(question.answers or question.impossible for question in questions):
        texts = {reply.question.id: reply.best for reply in replies}
        silence = {reply.question.id: reply.no_answer for reply in replies}
        if threshold is None:
            summary.update(score_answers(questions, texts))
        else:
            summary.update(score_answers(questions, texts, silence, threshold))
    return {**summary, **summarise_paths([trace for reply in replies for trace in reply.traces])}


def render_files(replies: Sequence[Reply], threshold: Optional[float], options: argparse.Namespace) -> Dict[str, str]:
    """Renders the files that are wanted: path -> text."""
    files: Dict[str, str] = {}
    if options.output:
        answers = {reply.question.id: choose_answer(reply.spans, threshold) for reply in replies}
        files[options.output] = json.dumps(answers, ensure_ascii=False, indent=1) + "\n"
    if options.na_probs:
        probabilities = {reply.question.id: reply.no_answer for reply in replies}
        files[options.na_probs] = json.dumps(probabilities, indent=1) + "\n"
    if options.n_best_output:
        lists = {reply.question.id: describe_spans(reply.spans, threshold is not None) for reply in replies}
        files[options.n_best_output] = json.dumps(lists, ensure_ascii=False, indent=1) + "\n"
    if options.decisions:
        lines = []
        for reply in replies:
            for number, trace in enumerate(reply.traces):
                record = {"id": reply.question.id, "window": number}
                record.update({name: value for name, value in dataclasses.asdict(trace).items() if name != "id"})
                lines.append(json.dumps(record, ensure_ascii=False) + "\n")
        files[options.decisions] = "".join(lines)
    return files


def load_predictor(options: argparse.Namespace) -> SquadPredictor:
    """Loads the checkpoint with the tokeniser of the data folder."""
    load_tokeniser(options.data)
    hub = load_hub(options, bpe_options(os.path.abspath(options.data)), "switchable_squad")
    return SquadPredictor(hub, options.n_best, options.answer_tokens)



def check_options(options: argparse.Namespace) -> None:
    """Refuses options out of their range.

    Raises:
        InputError: naming the option.
    """
    check_batch_size(options)
    for name in ("n_best", "answer_tokens"):
        if getattr(options, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} {getattr(options, name)} is not 1 or more")
    threshold = options.no_answer_threshold
    if threshold is not None and not 0 <= threshold <= 1:
        raise InputError(f"--no-answer-threshold {threshold} is not in 0..1")


def answer_all(options: argparse.Namespace) -> Dict[str, Any]:
    """Answers a file and writes what is wanted; returns the summary.

    Args:
        options: of ``sd-answer``.

    Raises:
        InputError: naming the option or the place in a file.
    """
    check_options(options)
    outputs = [options.output, options.na_probs, options.n_best_output, options.decisions, options.summary]
    check_places(outputs, [options.input, options.path])
    questions = read_questions(options.input, needs_answers=False)
    threshold = options.no_answer_threshold
    if threshold is None and has_unanswerable(questions):
        threshold = 0.5
    replies = load_predictor(options).predict(questions, options.batch_size)
    summary = summarise(replies, threshold)
    for path, text in render_files(replies, threshold, options).items():
        write_text(path, text)
    write_summary(options, summary)
    return summary
