"""Reads labelled sentences and sentence pairs: GLUE's TSV files, CSV and JSON lines, plain or gzipped.

Every fault ends in one line naming file, line and fault.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterator, List, Mapping, Optional, Sequence, Tuple

from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.user_files import read_json_lines, read_table


@dataclass(frozen=True)
class SentenceTask:
    """How a task's files look.

    Args:
        columns: of the texts, one or two.
        label_column: of the label.
        labels: the classes in the order of the head's outputs.
    """

    columns: Tuple[str, ...]
    label_column: str
    labels: Tuple[str, ...]


TASKS = {
    "SST-2": SentenceTask(("sentence",), "label", ("0", "1")),
    "RTE": SentenceTask(("sentence1", "sentence2"), "label", ("entailment", "not_entailment")),
    "MNLI": SentenceTask(("sentence1", "sentence2"), "gold_label", ("contradiction", "entailment", "neutral")),
}


@dataclass(frozen=True)
class Example:
    """One line.

    Args:
        texts: one or two, neither empty.
        label: one of the task's labels; None where the file has none (GLUE's test files).
        place: file and line, for messages.
        id: what the line calls itself (``id`` or ``index``), else its number among the examples, from 0.
    """

    texts: Tuple[str, ...]
    label: Optional[str]
    place: str
    id: str


def read_examples(path: str, task: SentenceTask, needs_labels: bool = True) -> List[Example]:
    """Reads a file, ``.tsv``, ``.csv`` or ``.jsonl``, each with or without ``.gz``.

    Args:
        path: the file; TSV and CSV have a header. GLUE's TSV knows no quotes, CSV does.
        task: its columns and labels.
        needs_labels: False = a file without the label's column is welcome.

    Raises:
        InputError: naming file, line and fault: unreadable, no such column, a label outside the set, an empty text.
    """
    examples = []
    for place, row in _read_rows(path):
        missing = [name for name in task.columns if row.get(name) is None]
        has_label = row.get(task.label_column) is not None
        if missing or (needs_labels and not has_label):
            name = missing[0] if missing else task.label_column
            raise InputError(f"{place}: no column {name!r} (found: {', '.join(map(str, row)) or 'none'})")
        texts = tuple(" ".join(_text_of(row, name, place).split()) for name in task.columns)
        for name, text in zip(task.columns, texts):
            if not text:
                raise InputError(f"{place}: column {name!r} is empty")
        label = str(row[task.label_column]) if has_label else None
        if label is not None and label not in task.labels:
            raise InputError(f"{place}: label {label!r} is not one of {', '.join(task.labels)}")
        identity = next((str(row[name]) for name in ("id", "index") if row.get(name) is not None), str(len(examples)))
        examples.append(Example(texts, label, place, identity))
    if not examples:
        raise InputError(f"{path}: holds no examples")
    bare = [example.place for example in examples if example.label is None]
    if bare and len(bare) < len(examples):
        raise InputError(f"{bare[0]}: no label, expected one on every line or on none ({len(bare)} lines have none)")
    return examples


def _text_of(row: Mapping[str, object], name: str, place: str) -> str:
    value = row[name]
    if not isinstance(value, str):
        raise InputError(f"{place}: column {name!r} is {value!r}, expected a text")
    return value


def _read_rows(path: str) -> Iterator[Tuple[str, Mapping[str, object]]]:
    """Yields place (file and line) and column -> value."""
    name = path[:-3] if path.endswith(".gz") else path
    if name.endswith(".jsonl"):
        yield from read_json_lines(path)
    elif name.endswith((".tsv", ".csv")):
        yield from read_table(path, "," if name.endswith(".csv") else "\t")
    else:
        raise InputError(f"{path}: expected a .tsv, .csv or .jsonl file, or one of them with .gz")


def shorten(texts: Sequence[Sequence[str]], max_tokens: int) -> List[List[str]]:
    """Cuts the end of the longest text until all fit together with ``<s>`` and one ``</s>`` each.

    Args:
        texts: pieces of each text.
        max_tokens: to fit into; 0 = cut nothing.
    """
    cut = [list(text) for text in texts]
    while max_tokens and sum(map(len, cut)) + 1 + len(cut) > max_tokens and max(map(len, cut)) > 1:
        max(cut, key=len).pop()
    return cut
