"""Classifies the lines of a file and says what each one skipped (``sd-classify``)."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from typing import Any, Dict, List, Sequence, Tuple

import torch
from torch import Tensor

import sd_fairseq.plugin  # noqa: F401  # registers models and tasks
from sd_fairseq.decision.trace import TraceRecord
from sd_fairseq.evaluation.classification_score import count_confusions, score_confusions
from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.plugin.models.classification import classification_head_shape
from sd_fairseq.plugin.models.hub_interface import SwitchableHubInterface
from sd_fairseq.plugin.predict.sentence_files import Example, SentenceTask, read_examples, shorten
from sd_fairseq.plugin.predict.shared import (
    check_batch_size,
    describe_windows,
    load_hub,
    summarise_paths,
    write_summary,
)
from sd_fairseq.plugin.tasks.trace_recorder import space_and_shape
from sd_fairseq.user_files import read_json_object
from sd_fairseq.whole_files import check_places, write_text


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What is known about one example afterwards.

    Args:
        example: the example.
        label: the most probable class.
        probabilities: of every class.
        trace: its path, lengths, FLOPs and time; ``target_tokens`` are the decoder's input, run in one step.
    """

    example: Example
    label: str
    probabilities: Dict[str, float]
    trace: TraceRecord

    def to_json_line(self) -> str:
        """Renders one JSON line, without the line end."""
        values: Dict[str, Any] = {"id": self.example.id, "label": self.label, "probabilities": self.probabilities}
        if self.example.label is not None:
            values["gold"] = self.example.label
        values.update({k: v for k, v in dataclasses.asdict(self.trace).items() if k != "id"})
        return json.dumps(values)


class SentencePredictor:
    """Classifies texts with a trained checkpoint, in batches.

    Args:
        hub: what ``SwitchableBARTModel.from_pretrained`` returned.
        bpe: has ``encode(text)``, which gives pieces separated by blanks.
        labels: the classes in the order of the head's outputs.
        max_tokens: longer examples are cut as they were for training; 0 = never.
    """

    def __init__(self, hub: SwitchableHubInterface, bpe: Any, labels: Sequence[str], max_tokens: int = 0):
        self.hub, self.bpe, self.labels, self.max_tokens = hub.eval(), bpe, list(labels), max_tokens
        self.head = hub.task.cfg.classification_head_name
        self.space, shape = space_and_shape(hub.model)
        head = classification_head_shape(hub.model, self.head)
        self.shape = dataclasses.replace(shape, head=head)
        if head.widths[-1] != len(self.labels):
            raise InputError(f"the head {self.head!r} has {head.widths[-1]} classes, the labels are {self.labels}")

    def encode(self, example: Example) -> Tensor:
        """Encodes one example as the task does for training.

        Raises:
            InputError: longer than the model takes.
        """
        cfg, dictionary = self.hub.task.cfg, self.hub.task.source_dictionary
        parts: List[Tensor] = []
        pieces = [self.bpe.encode(text).split(" ") for text in example.texts]
        for index, text in enumerate(shorten(pieces, self.max_tokens)):
            first = cfg.init_token if index == 0 else cfg.separator_token
            if first is not None:
                parts.append(torch.tensor([first]))
            parts.append(dictionary.encode_line(" ".join(text), append_eos=True, add_if_not_exist=False).long())
        tokens = torch.cat(parts)
        limit = min(self.hub.max_positions)
        if tokens.numel() > limit:
            raise InputError(f"{example.place}: {tokens.numel()} tokens, the model takes {limit}")
        return tokens

    def predict(self, examples: Sequence[Example], batch_size: int = 32) -> List[Prediction]:
        """Classifies examples; the answers come in their order.

        Examples of similar length share a batch; no answer depends on its batch mates.
        """
        tokens = [self.encode(example) for example in examples]
        order = sorted(range(len(examples)), key=lambda index: -tokens[index].numel())
        found: Dict[int, Prediction] = {}
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            found.update(self._predict_batch(rows, [examples[row] for row in rows], [tokens[row] for row in rows]))
        return [found[row] for row in range(len(examples))]

    def _predict_batch(self, ids: List[int], examples: List[Example], tokens: List[Tensor]) -> Dict[int, Prediction]:
        padding = self.hub.task.source_dictionary.pad()
        batch = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True, padding_value=padding)  # [B, S]
        log: List[Any] = []
        started = time.perf_counter()
        with torch.no_grad():
            probabilities = self.hub.predict(self.head, batch, decision_log=log).exp().double().cpu()  # [B, K]
        seconds = (time.perf_counter() - started) / len(ids)
        lengths = torch.tensor([one.numel() for one in tokens])
        rows = [[{"tokens": one}] for one in tokens]
        traces = describe_windows(self, log[0], lengths, ids, rows, f"head:{self.head}", seconds)
        return {
            row: Prediction(example, self.labels[int(p.argmax())], dict(zip(self.labels, p.tolist())), trace)
            for row, example, p, trace in zip(ids, examples, probabilities, traces)
        }


def summarise(predictions: Sequence[Prediction], labels: Sequence[str]) -> Dict[str, Any]:
    """Collects scores (where the file has labels), FLOPs, seconds and skip rates."""
    summary: Dict[str, Any] = {"examples": len(predictions)}
    if all(one.example.label is not None for one in predictions):
        truth = [list(labels).index(str(one.example.label)) for one in predictions]
        answers = [list(labels).index(one.label) for one in predictions]
        score = score_confusions(count_confusions(truth, answers), len(labels))
        summary.update(accuracy=score.accuracy, f1=score.f1, matthews=score.matthews)
    return {**summary, **summarise_paths([one.trace for one in predictions])}


def read_prepared(folder: str) -> Dict[str, Any]:
    """Reads what ``prepare.py`` noted about a data folder.

    Raises:
        InputError: a folder that it did not make.
    """
    try:
        record = read_json_object(os.path.join(folder, "prepared.json"))
        for name in ("columns", "labels"):
            if not isinstance(record.get(name), list) or not all(isinstance(one, str) for one in record[name]):
                raise InputError(f"{name!r} is {record.get(name)!r}, expected a list of texts")
        for name in ("label_column", "bpe"):
            if not isinstance(record.get(name), str):
                raise InputError(f"{name!r} is {record.get(name)!r}, expected a text")
    except InputError as error:
        raise InputError(f"{folder}: was not made by examples/glue/prepare.py ({error})") from error
    return record


def load_predictor(options: argparse.Namespace) -> Tuple[SentencePredictor, SentenceTask]:
    """Loads checkpoint, BPE and what ``prepare.py`` noted about the data."""
    record = read_prepared(options.data)
    if options.columns and len(options.columns) != len(record["columns"]):
        known = f"{len(record['columns'])}: {', '.join(record['columns'])}"
        raise InputError(f"--columns {' '.join(options.columns)}: expected as many as in training, {known}")
    task = SentenceTask(
        tuple(options.columns or record["columns"]),
        options.label_column or record["label_column"],
        tuple(record["labels"]),
    )
    bpe_options = {"bpe": "gpt2"}
    if record["bpe"] == "gpt2":
        if not options.gpt2_folder:
            raise InputError("the data are of GPT-2's BPE: give --gpt2-folder, with encoder.json and vocab.bpe")
        bpe_options["gpt2_encoder_json"] = os.path.join(options.gpt2_folder, "encoder.json")
        bpe_options["gpt2_vocab_bpe"] = os.path.join(options.gpt2_folder, "vocab.bpe")
    else:
        bpe_options = {"bpe": "sentencepiece"}
        bpe_options["sentencepiece_model"] = os.path.abspath(os.path.join(options.data, "sentencepiece.model"))
    hub = load_hub(options, bpe_options, "switchable_sentence_prediction")
    return SentencePredictor(hub, hub.bpe, task.labels, int(record.get("max_tokens", 0))), task



def classify(options: argparse.Namespace) -> Dict[str, Any]:
    """Classifies a file and writes what is wanted; returns the summary.

    Args:
        options: of ``sd-classify``.

    Raises:
        InputError: naming the option or the place in a file.
    """
    check_batch_size(options)
    check_places([options.output, options.summary], [options.input, options.path])
    predictor, task = load_predictor(options)
    # a column that is asked for must be there
    examples = read_examples(options.input, task, needs_labels=bool(options.label_column))
    predictions = predictor.predict(examples, options.batch_size)
    summary = summarise(predictions, task.labels)
    if options.output:
        write_text(options.output, "".join(one.to_json_line() + "\n" for one in predictions))
    write_summary(options, summary)
    return summary
