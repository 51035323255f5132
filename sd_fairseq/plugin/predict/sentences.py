"""``python -m sd_fairseq.plugin.predict.sentences``: classifies the lines of a file and says what each one skipped.

Writes one JSON line an example: id, label, probabilities, the file's own label where it has one, and all of
:class:`~sd_fairseq.decision.trace.TraceRecord` (decisions, lengths, both FLOPs figures, seconds). Prints a summary.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
from torch import Tensor

import sd_fairseq.plugin  # noqa: F401  # registers models and tasks
from sd_fairseq.cost.path_flops import Lengths
from sd_fairseq.decision.trace import TraceRecord
from sd_fairseq.evaluation.classification_score import count_confusions, score_confusions
from sd_fairseq.evaluation.skip_report import SkipReport, summarise_trace
from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.plugin.models.classification import classification_head_shape
from sd_fairseq.plugin.models.hub_interface import SwitchableHubInterface
from sd_fairseq.plugin.models.switchable_bart import SwitchableBARTModel
from sd_fairseq.plugin.predict.sentence_files import Example, SentenceTask, read_examples, shorten
from sd_fairseq.plugin.tasks.trace_recorder import describe_batch, space_and_shape
from sd_fairseq.whole_files import PlaceError, check_places, write_text


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
        traces = describe_batch(
            self.space,
            self.shape,
            log[0].to(torch.device("cpu")),
            Lengths(lengths, lengths),
            ids,
            [[{"tokens": one}] for one in tokens],
            {
                "beam": 1,
                "seconds": seconds,
                "generation": f"head:{self.head}",
                "model": getattr(self.hub.model.args, "arch", type(self.hub.model).__name__),
            },
        )
        return {
            row: Prediction(example, self.labels[int(p.argmax())], dict(zip(self.labels, p.tolist())), trace)
            for row, example, p, trace in zip(ids, examples, probabilities, traces)
        }


def summarise(predictions: Sequence[Prediction], labels: Sequence[str]) -> Dict[str, Any]:
    """Collects scores (where the file has labels), FLOPs, seconds and skip rates."""
    report: SkipReport = summarise_trace([one.trace for one in predictions])
    summary: Dict[str, Any] = {"examples": len(predictions)}
    if all(one.example.label is not None for one in predictions):
        truth = [list(labels).index(str(one.example.label)) for one in predictions]
        answers = [list(labels).index(one.label) for one in predictions]
        score = score_confusions(count_confusions(truth, answers), len(labels))
        summary.update(accuracy=score.accuracy, f1=score.f1, matthews=score.matthews)
    summary.update(
        flops_generation=report.flops_generation,
        flops_paper=report.flops_paper,
        seconds=report.seconds,
        skip_rates=report.skip_rates,
        token_strategies=report.token_strategies,
        distinct_paths=report.distinct_paths,
        top_path_share=report.top_path_share,
    )
    return summary


def load_predictor(options: argparse.Namespace, overrides: Dict[str, Any]) -> Tuple[SentencePredictor, SentenceTask]:
    """Loads checkpoint, BPE and what ``prepare.py`` noted about the data."""
    try:
        with open(os.path.join(options.data, "prepared.json"), encoding="utf-8") as text:
            record = json.load(text)
    except (OSError, ValueError) as error:
        raise InputError(f"{options.data}: was not made by examples/glue/prepare.py ({error})") from error
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
    folder, name = os.path.split(os.path.abspath(options.path))
    hub = SwitchableBARTModel.from_pretrained(folder, name, os.path.abspath(options.data), **bpe_options, **overrides)
    if options.cuda:
        hub.cuda()
    return SentencePredictor(hub, hub.bpe, task.labels, int(record.get("max_tokens", 0))), task


def build_parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    parser = argparse.ArgumentParser(prog="python -m sd_fairseq.plugin.predict.sentences", description=__doc__)
    parser.add_argument("data", metavar="DATA", help="folder made by examples/glue/prepare.py")
    parser.add_argument("--path", required=True, metavar="CHECKPOINT", help="trained checkpoint")
    parser.add_argument("--input", required=True, metavar="FILE", help=".tsv, .csv or .jsonl, plain or .gz")
    parser.add_argument("--output", metavar="FILE", help="predictions, JSON lines")
    parser.add_argument("--summary", metavar="FILE", help="scores, FLOPs and skip rates, JSON")
    parser.add_argument("--dense", action="store_true", help="skip nothing (a comparison on the same weights)")
    parser.add_argument("--columns", nargs="+", metavar="NAME", help="columns of the texts, if others than of the data")
    parser.add_argument("--label-column", metavar="NAME", help="column of the label, if another than of the data")
    parser.add_argument("--gpt2-folder", metavar="FOLDER", help="encoder.json and vocab.bpe, for data of GPT-2's BPE")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="examples side by side (default: 32)")
    parser.add_argument("--cuda", action="store_true", help="run on the GPU")
    return parser


def write_whole(path: str, text: str) -> None:
    """Writes beside the place and renames, so that the file is whole or absent."""
    try:
        write_text(path, text)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Runs the command; returns its exit code."""
    options = build_parser().parse_args(arguments)
    try:
        if options.batch_size < 1:
            raise InputError(f"--batch-size {options.batch_size} is not 1 or more")
        check_places([options.output, options.summary], [options.input, options.path])
        predictor, task = load_predictor(options, {"sd_policy": "dense"} if options.dense else {})
        examples = read_examples(options.input, task, needs_labels=False)
        predictions = predictor.predict(examples, options.batch_size)
        summary = summarise(predictions, task.labels)
        if options.output:
            write_whole(options.output, "".join(one.to_json_line() + "\n" for one in predictions))
        if options.summary:
            write_whole(options.summary, json.dumps(summary, indent=1) + "\n")
    except (InputError, PlaceError) as error:
        print(f"sd_fairseq: error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
