"""Reads questions: SQuAD 1.1 and 2.0 JSON, and JSON lines of {"id", "question", "context"}; plain or gzipped.

Every fault is one line naming file, place, id and fault.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, Iterator, List, Optional, Tuple

from sd_fairseq.errors import InputError
from sd_fairseq.user_files import parse_json, read_json_lines, read_text


@dataclass(frozen=True)
class Answer:
    """One annotator's answer.

    Args:
        text: as given.
        start: of its first character in the context, from 0.
    """

    text: str
    start: int


@dataclass(frozen=True)
class Question:
    """One question about one paragraph.

    Args:
        id: unique in its file.
        text: the question.
        context: the paragraph.
        answers: of all annotators; none where there is no answer, or none is known.
        impossible: SQuAD 2.0's ``is_impossible``; None = the file does not say (SQuAD 1.1).
        place: file, article, paragraph and id, for messages.
    """

    id: str
    text: str
    context: str
    answers: Tuple[Answer, ...]
    impossible: Optional[bool]
    place: str


def read_questions(path: str, needs_answers: bool = True) -> List[Question]:
    """Reads a file; ``.jsonl`` (also ``.jsonl.gz``) as JSON lines, anything else as SQuAD.

    Args:
        path: the file.
        needs_answers: True = each question has an answer or says that it has none; False = answers may be missing.

    Raises:
        InputError: unreadable, malformed, a missing or empty field, an answer that does not stand at its offset, an id
            given twice, or no questions at all.
    """
    is_lines = path.endswith((".jsonl", ".jsonl.gz"))
    questions = list(_read_lines(path) if is_lines else _read_squad(path, parse_json(read_text(path), path)))
    if not questions:
        raise InputError(f"{path}: holds no questions")
    seen: Dict[str, str] = {}
    for one in questions:
        if one.id in seen:
            raise InputError(f"{one.place}: the id was given before, at {seen[one.id]}")
        seen[one.id] = one.place
        if one.impossible and one.answers:
            raise InputError(f"{one.place}: 'is_impossible' is true, yet there is an answer")
        if needs_answers and not one.answers and not one.impossible:
            raise InputError(f"{one.place}: no answer, and no 'is_impossible' that is true")
    return questions


def has_unanswerable(questions: List[Question]) -> bool:
    """Tells whether the questions are of SQuAD 2.0's kind: some file entry says whether it can be answered."""
    return any(one.impossible is not None for one in questions)


def _read_squad(path: str, content: Any) -> Iterator[Question]:
    for number, article in enumerate(_field(content, "data", list, path)):
        title = article.get("title") if isinstance(article, dict) else None
        of_article = f"{path}: article {number}" + (f" ({title})" if isinstance(title, str) and title else "")
        for index, paragraph in enumerate(_field(article, "paragraphs", list, of_article)):
            place = f"{of_article}, paragraph {index}"
            context = _text(paragraph, "context", place)
            for position, entry in enumerate(_field(paragraph, "qas", list, place)):
                yield _question(entry, context, f"{place}, question {position}")


def _read_lines(path: str) -> Iterator[Question]:
    for place, entry in read_json_lines(path):
        yield _question(entry, _text(entry, "context", place), place)


def _question(entry: Any, context: str, place: str) -> Question:
    identity = _field(entry, "id", (str, int), place)
    place = f"{place}, id {identity}"
    impossible = _field(entry, "is_impossible", bool, place) if "is_impossible" in entry else None
    given = _field(entry, "answers", list, place) if "answers" in entry else []
    return Question(
        id=str(identity),
        text=_text(entry, "question", place),
        context=context,
        answers=tuple(_answer(one, context, f"{place}, answer {number}") for number, one in enumerate(given)),
        impossible=impossible,
        place=place,
    )


def _answer(entry: Any, context: str, place: str) -> Answer:
    text, start = _text(entry, "text", place), _field(entry, "answer_start", int, place)
    if start < 0 or context[start : start + len(text)] != text:
        found = context[start : start + len(text)] if start >= 0 else ""
        elsewhere = "" if text in context else ", nor does it stand anywhere in the context"
        raise InputError(f"{place}: {text!r} is not at character {start}, which has {found!r}{elsewhere}")
    return Answer(text, start)


def _field(entry: Any, name: str, kind: Any, place: str) -> Any:
    if not isinstance(entry, dict):
        raise InputError(f"{place}: found a JSON {type(entry).__name__}, expected an object")
    if name not in entry:
        raise InputError(f"{place}: no {name!r}")
    value = entry[name]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise InputError(f"{place}: {name!r} is a JSON {type(value).__name__}")
    return value


def _text(entry: Any, name: str, place: str) -> str:
    value = _field(entry, name, str, place)
    if not value.strip():
        raise InputError(f"{place}: {name!r} is empty")
    return value
