"""The four tasks of the mixed traffic: how their files are read, asked as text, and answered.

An example's source is ``head + text``: the instruction (and SQuAD's question) stands in front and is never cut, the
text behind it may be. Texts have every run of white space made one blank.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from sd_fairseq.errors import InputError
from sd_fairseq.evaluation.squad_data import Question, read_questions
from sd_fairseq.user_files import read_json_lines, read_table

SENTIMENT = "Is the following sentence positive or negative? "
TITLE = "Write a short title for this package description: "
SUMMARY = "Summarize: "
QUESTION = "Answer the question from the context: question: {} context: "
LABELS = {"0": "negative", "1": "positive"}
TASKS = ("sst2", "debian", "scitldr", "squad")
UNSEEN = "xsum"  # a task that no training sees
# How answers are scored.
KINDS = {"sst2": "label", "debian": "summary", "scitldr": "summary", "squad": "answer", UNSEEN: "summary"}
QUESTION_WORDS = ("how many", "how much", "who", "whom", "whose", "when", "where", "which", "why", "how", "what")
# Examples of an epoch: 16 : 12 : 4 : 8, the shares of the traffic, too.
WEIGHTS = {"sst2": 16000, "debian": 12000, "scitldr": 4000, "squad": 8000}


@dataclass(frozen=True)
class Example:
    """One pair.

    Args:
        task: of :data:`KINDS`.
        key: tells it from the others of its task.
        head: what stands in front of the text and is never cut.
        text: may be cut.
        references: right answers; the first one is trained on.
        span: words of ``text`` (from, to) that hold the answer, where that is known.
        group: the kind of question within its task; "" = they are not told apart.
    """

    task: str
    key: str
    head: str
    text: str
    references: Tuple[str, ...]
    span: Optional[Tuple[int, int]] = None
    group: str = ""

    @property
    def content(self) -> str:
        """What may stand in one split only, whatever the letters' case: a text; of SQuAD a context."""
        return self.text.lower()


Splits = Dict[str, List[Example]]  # train (a pool), valid, test


def plain(text: str) -> str:
    """Returns a text with every run of white space made one blank."""
    return " ".join(text.split())


def find_file(folder: str, names: Sequence[str]) -> str:
    """Returns the first of some files that is there, gzipped or not.

    Raises:
        InputError: none is.
    """
    for name in names:
        for path in (os.path.join(folder, name), os.path.join(folder, name + ".gz")):
            if os.path.isfile(path):
                return path
    raise InputError("{}: no file {} (or .gz)".format(folder, " or ".join(names)))


def by_hash(text: str) -> str:
    """Returns a digest that puts texts into an order of no meaning, the same for everyone."""
    return hashlib.sha1(text.encode("utf-8")).hexdigest()


def halves(examples: List[Example]) -> Tuple[List[Example], List[Example]]:
    """Returns examples 1, 3, 5... and 2, 4, 6..., as ``examples/tradeoff/split.py`` does."""
    return examples[0::2], examples[1::2]


def carve(examples: List[Example], count: int) -> Tuple[List[Example], List[Example]]:
    """Takes examples by the lowest hashes of their contents, all of one content together; returns the others and them.

    Args:
        examples: of a training set.
        count: about so many; those of the last content that is begun are left out of both.
    """
    order = sorted(examples, key=lambda one: (by_hash(one.content), one.key))
    taken = order[:count]
    contents = {one.content for one in taken}
    return [one for one in examples if one.content not in contents], taken


def read_sst2(folder: str, valid: int) -> Splits:
    """SST-2: GLUE's train and dev; ``valid`` is carved from train.

    Raises:
        InputError: a file that is missing or of another form.
    """

    def read(name: str) -> List[Example]:
        found = []
        for place, row in read_table(find_file(folder, [name]), "\t"):
            sentence, label = plain(row.get("sentence") or ""), LABELS.get(row.get("label") or "")
            if not sentence or label is None:
                raise InputError("{}: expected a sentence and a label 0 or 1".format(place))
            found.append(Example("sst2", "{}-{}".format(name[:-4], len(found)), SENTIMENT, sentence, (label,)))
        return found

    pool, carved = carve(read("train.tsv"), valid)
    return {"train": pool, "valid": carved, "test": read("dev.tsv")}


def read_texts(task: str, head: str, path: str, keys: Tuple[str, str, Optional[str]]) -> List[Example]:
    """Reads JSON lines of texts (or lists of sentences) and summaries (or lists of references).

    Args:
        task, head: of the examples.
        path: the file.
        keys: of the text, of the summary, and of what names the example; None = its line does.

    Raises:
        InputError: a line of another form.
    """

    def listed(value: Any) -> List[str]:
        parts = [value] if isinstance(value, str) else value if isinstance(value, list) else []
        return [plain(part) for part in parts if isinstance(part, str) and part.strip()]

    found = []
    for number, (place, pair) in enumerate(read_json_lines(path), start=1):
        text, references = " ".join(listed(pair.get(keys[0]))), listed(pair.get(keys[1]))
        if not text or not references:
            raise InputError("{}: expected texts {!r} and {!r}".format(place, keys[0], keys[1]))
        name = pair.get(keys[2]) if keys[2] else None
        key = name if isinstance(name, str) and name else "{}-{}".format(os.path.basename(path).split(".")[0], number)
        found.append(Example(task, key, head, text, tuple(references)))
    return found


def read_scitldr(folder: str, valid: int) -> Splits:
    """SciTLDR-A: abstract -> TLDR; dev is halved, its odd lines are ``valid``.

    Raises:
        InputError: a file that is missing or of another form.
    """
    keys = "source", "target", None
    pool, dev = (
        read_texts("scitldr", SUMMARY, find_file(folder, [name + ".jsonl"]), keys) for name in ("train", "dev")
    )
    tuned, test = halves(dev)
    return {"train": pool, "valid": tuned[:valid], "test": test}


def read_debian(folder: str, valid: int) -> Splits:
    """Debian: description -> synopsis; ``valid.jsonl`` is halved, its odd lines are ``valid``.

    Raises:
        InputError: a file that is missing or of another form.
    """
    keys = "document", "summary", "package"
    pool, rest = (
        read_texts("debian", TITLE, find_file(folder, [name + ".jsonl"]), keys) for name in ("train", "valid")
    )
    tuned, test = halves(rest)
    return {"train": pool, "valid": tuned[:valid], "test": test}


def question_kind(question: str) -> str:
    """Returns the first question word of a question, "who" for its other cases, "other" where there is none."""
    words = " {} ".format(" ".join("".join(one if one.isalnum() else " " for one in question.lower()).split()))
    found = [word for word in QUESTION_WORDS if " {} ".format(word) in words]
    if not found:
        return "other"
    first = min(found, key=lambda word: (words.index(" {} ".format(word)), QUESTION_WORDS.index(word)))
    return {"whom": "who", "whose": "who", "how much": "how many"}.get(first, first)


def as_example(question: Question) -> Example:
    """Returns a question with its answers; the first one's place among the context's words is known."""
    first = question.answers[0]
    start = len(question.context[: first.start].split())
    if question.context[: first.start] and not question.context[: first.start][-1].isspace():
        start -= 1  # the answer begins within a word
    stop = len(question.context[: first.start + len(first.text)].split())
    references = tuple(dict.fromkeys(plain(answer.text) for answer in question.answers))
    head, context = QUESTION.format(plain(question.text)), plain(question.context)
    return Example("squad", question.id, head, context, references, (max(start, 0), stop), question_kind(question.text))


def read_squad(folder: str, valid: int) -> Splits:
    """SQuAD 1.1: a train file and dev; ``valid`` is carved from train, whole contexts of it.

    Raises:
        InputError: a file that is missing or of another form.
    """

    def read(names: Sequence[str]) -> List[Example]:
        path = find_file(folder, names)
        questions = read_questions(path)
        if any(not one.answers for one in questions):
            raise InputError("{}: a question without an answer; expected SQuAD 1.1".format(path))
        return [as_example(one) for one in questions]

    pool, carved = carve(read(("train-v1.1.json", "train-subset-v1.1.json")), valid)
    return {"train": pool, "valid": carved, "test": read(("dev-v1.1.json",))}


def read_unseen(path: str, count: int) -> List[Example]:
    """XSum's form, JSON lines of ``document`` and ``summary``: the first ``count`` in an order of no meaning.

    Raises:
        InputError: a line of another form.
    """
    found = read_texts(UNSEEN, SUMMARY, path, ("document", "summary", "id"))
    return sorted(found, key=lambda one: (by_hash(one.content), one.key))[:count]


READERS: Dict[str, Callable[[str, int], Splits]] = {
    "sst2": read_sst2,
    "debian": read_debian,
    "scitldr": read_scitldr,
    "squad": read_squad,
}


def read_task(task: str, folder: str, valid: int) -> Splits:
    """Reads a task; what stands in ``valid`` or ``test`` is taken out of ``train``.

    Args:
        task: of :data:`TASKS`.
        folder: of its files.
        valid: examples to tune on, at most.

    Raises:
        InputError: a file that is missing or of another form, or a split that is empty.
    """
    splits = READERS[task](folder, valid)
    held_out = {one.content for one in splits["test"]}
    splits["valid"] = [one for one in splits["valid"] if one.content not in held_out]
    held_out.update(one.content for one in splits["valid"])
    splits["train"] = [one for one in splits["train"] if one.content not in held_out]
    for split, examples in splits.items():
        if not examples:
            raise InputError("{}: no example of {} is left for {}".format(folder, task, split))
    return splits


def cut(example: Example, fits: Callable[[str], bool], around: bool) -> Example:
    """Takes words off a text until the source is short enough.

    Args:
        example: its ``head`` stays as it is.
        fits: tells whether a source is short enough.
        around: keep the answer's words in the middle of what is left, where they are known; else its beginning.

    Raises:
        InputError: not even one word (or the answer) fits behind the instruction.
    """
    if fits(example.head + example.text):
        return example
    words = example.text.split()
    first, last = example.span if around and example.span else (0, 1)

    def window(count: int) -> Tuple[int, int]:
        start = max(0, min((first + last - count) // 2, len(words) - count)) if around and example.span else 0
        return start, start + count

    low, high = last - first, len(words)  # low fits, high does not
    if not fits(example.head + " ".join(words[slice(*window(low))])):
        raise InputError("{} {}: the instruction and its answer are longer than the limit".format(*_name(example)))
    while high - low > 1:
        middle = (low + high) // 2
        if fits(example.head + " ".join(words[slice(*window(middle))])):
            low = middle
        else:
            high = middle
    start, stop = window(low)
    return replace(example, text=" ".join(words[start:stop]), span=None)


def _name(example: Example) -> Tuple[str, str]:
    return example.task, example.key
