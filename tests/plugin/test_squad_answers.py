"""From scores to answers: the best spans are those of an enumeration, windows are merged, no answer can win."""

import math
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from factories import build_model
from questions import batch_windows, build_questions, build_squad_task, build_windows

from sd_fairseq.evaluation.squad_data import Answer, Question
from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.plugin.squad.answers import (
    Span,
    best_spans,
    choose_answer,
    cut_spans,
    describe_spans,
    no_answer_probability,
    rank_spans,
)
from sd_fairseq.plugin.squad.window_dataset import WindowDataset
from sd_fairseq.plugin.squad.windows import WindowSizes
from sd_fairseq.plugin.tasks.switchable_squad import SwitchableSquadConfig, SwitchableSquadTask
from sd_fairseq.plugin.tasks.switchable_task import SwitchableTaskMixin


def list_spans(logits, candidates, longest):
    """All spans of one window with their margins, best first, one by one."""
    places = [place for place in candidates.nonzero().view(-1).tolist() if place > 0]
    null = float(logits[0].sum())
    spans = [(float(logits[a, 0] + logits[b, 1]) - null, a, b) for a in places for b in places if a <= b < a + longest]
    return sorted(spans, reverse=True)


@pytest.mark.parametrize("longest", [1, 4, 500])
def test_best_spans_are_those_of_an_enumeration(longest):
    sample = batch_windows()
    logits = torch.randn(*sample["candidates"].shape, 2)
    first, last, margins = best_spans(logits, sample["candidates"], 5, longest)
    for row in range(len(logits)):
        expected = list_spans(logits[row], sample["candidates"][row], longest)[:5]
        assert [(a, b) for _, a, b in expected] == list(zip(first[row].tolist(), last[row].tolist()))
        torch.testing.assert_close(margins[row], torch.tensor([margin for margin, _, _ in expected]))


def test_spans_of_a_short_context_are_all_there_and_nothing_else():
    windows = build_windows()
    row = min(range(len(windows)), key=lambda index: len(windows[index].spans))
    sample, window = batch_windows(), windows[row]
    logits = torch.randn(*sample["candidates"].shape, 2)
    found = best_spans(logits, sample["candidates"], 2000, 500)
    question = build_questions()[window.question]
    spans = cut_spans(question, window, logits[row], tuple(column[row] for column in found))
    count = len(window.spans)
    assert len(spans) == count * (count + 1) // 2
    for span in spans:
        assert span.text == question.context[span.start : span.end] == span.text.strip() != ""


def test_the_right_target_gives_the_answer_back():
    questions, windows = build_questions(), build_windows()
    sample = batch_windows()
    logits = torch.zeros(*sample["candidates"].shape, 2)
    for row, (begin, end) in enumerate(sample["target"].tolist()):
        logits[row, begin, 0] += 9
        logits[row, end, 1] += 9
    found = best_spans(logits, sample["candidates"], 3, 30)
    for index, question in enumerate(questions):
        spans = []
        for row, window in enumerate(windows):
            if window.question == index:
                spans += cut_spans(question, window, logits[row], tuple(column[row] for column in found))
        ranked = rank_spans(spans, 3)
        assert len(ranked) == len({(one.start, one.end) for one in ranked}) == 3
        assert [one.margin for one in ranked] == sorted((one.margin for one in ranked), reverse=True)
        expected = question.answers[0].text if question.answers else ""
        assert choose_answer(ranked, 0.5).strip(".,") == expected
        assert choose_answer(ranked, None) != ""


def span(margin, start=0):
    return Span("text", start, start + 4, 0.0, 0.0, margin)


def test_a_place_that_two_windows_propose_is_listed_once_with_its_better_margin():
    ranked = rank_spans([span(1.0), span(2.0, 5), span(3.0)], 5)
    assert [(one.start, one.margin) for one in ranked] == [(0, 3.0), (5, 2.0)]


@pytest.mark.parametrize("margin", [-800.0, -2.0, 0.0, 3.0, 800.0])
def test_the_probability_of_no_answer_is_that_of_two_choices(margin):
    expected = float(torch.softmax(torch.tensor([margin, 0.0], dtype=torch.float64), 0)[1])
    assert no_answer_probability([span(margin), span(margin - 1)]) == pytest.approx(expected)
    assert no_answer_probability([]) == 1


def test_an_answer_is_given_up_to_the_threshold_and_always_without_one():
    spans = [span(-1.0)]  # no answer: 0.73
    assert choose_answer(spans, 0.5) == "" and choose_answer(spans, 0.8) == choose_answer(spans, None) == "text"
    assert choose_answer([], None) == ""


def test_the_n_best_lists_probabilities_add_up_and_hold_no_answer_where_it_is_possible():
    spans = [span(1.0), span(-1.0, 5)]
    for possible, texts in ((False, ["text", "text"]), (True, ["text", "", "text"])):
        entries = describe_spans(spans, possible)
        assert [one["text"] for one in entries] == texts
        assert math.fsum(one["probability"] for one in entries) == pytest.approx(1)
    assert [one["text"] for one in describe_spans([], False)] == [""]


def test_windows_are_batched_once_each_by_length():
    dataset = WindowDataset(build_windows(), padding=1, shuffle=True)
    order = dataset.ordered_indices()
    assert sorted(order.tolist()) == list(range(len(dataset)))
    assert [dataset.num_tokens(index) for index in order] == sorted(dataset.sizes.tolist())
    batch = dataset.collater([dataset[3], dataset[4]])
    tokens, lengths = batch["net_input"]["src_tokens"], batch["net_input"]["src_lengths"]
    assert batch["id"].tolist() == [3, 4] and lengths.tolist() == [dataset.num_tokens(3), dataset.num_tokens(4)]
    for row, length in enumerate(lengths.tolist()):  # <s> question </s> </s> context </s>, then padding
        first = int(batch["candidates"][row, 1:].nonzero()[0]) + 1
        ends = tokens[row].eq(2).nonzero().view(-1).tolist()
        assert tokens[row, 0] == 0 and ends == [first - 2, first - 1, length - 1]
        assert bool(tokens[row, length:].eq(1).all()) and not bool(batch["candidates"][row, length - 1 :].any())
    assert dataset.collater([]) == {}


def test_a_window_holds_a_whole_answer_or_none_wherever_it_stands():
    """Every answer of four characters of a text, in windows of ten context tokens, four apart."""
    context = "abcdefghijklmnopqrstuvwxyz"
    maker = build_squad_task((18, 4, 4)).maker
    found = set()
    for start in range(23):
        answer = context[start : start + 4]
        windows = maker.make([Question("7", "what", context, (Answer(answer, start),), None, "here, id 7")])
        for window in windows:
            text = context[window.spans[0][0] : window.spans[-1][1]]
            first, last = window.target
            read = (
                context[window.spans[first - window.first][0] : window.spans[last - window.first][1]] if first else ""
            )
            assert len(text) <= 10 and read == (answer if answer in text else "")
            found.add((start, bool(first)))
        assert (start, True) in found  # no answer is lost between two windows
    assert len(found) > 23  # and some windows lack theirs


def test_a_question_that_is_too_long_loses_its_end_and_is_counted():
    task = build_squad_task((60, 16, 5))
    windows = task.maker.make(build_questions())
    assert task.maker.shortened == sum(len(one.text.replace(" ", "")) > 5 for one in build_questions()) > 1
    assert {int(window.first) for window in windows} == {1 + 5 + 2}


@pytest.mark.parametrize(
    "sizes, message",
    [
        ((60, 0, 12), "--sd-stride 0"),
        ((60, 16, 0), "--sd-question-tokens 0"),
        ((16, 16, 12), "--max-positions 16 leaves no room .* 12 and 4 separators"),
    ],
)
def test_sizes_that_cannot_work_are_refused(sizes, message):
    with pytest.raises(InputError, match=message):
        WindowSizes(*sizes)


def test_a_text_without_tokens_is_refused_with_its_place():
    task = build_squad_task()
    task.maker.tokeniser = SimpleNamespace(tokenise=lambda text: SimpleNamespace(pieces=()))
    with pytest.raises(InputError, match="here, id 7: 'context' has no character"):
        task.maker.make([Question("7", "q?", "\u200b", (), None, "here, id 7")])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"sd_token_strategies": "last:10"}, "--sd-token-strategies.*start with 'keep'"),
        ({"data": "no/such/folder"}, "no/such/folder/dict.txt: no such file"),
    ],
)
def test_options_of_the_task_that_cannot_work_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        SwitchableSquadTask.setup_task(SwitchableSquadConfig(**change))


def test_windows_longer_than_the_model_takes_are_refused():
    task = build_squad_task((500, 16, 12))
    with mock.patch.object(SwitchableTaskMixin, "build_model", lambda self, cfg, from_checkpoint: build_model()):
        with pytest.raises(InputError, match="--max-positions 500, but the model takes 64"):
            task.build_model(None)
