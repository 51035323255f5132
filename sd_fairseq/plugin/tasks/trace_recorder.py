"""Follows a generation: the decision trace, one record a sentence, and the summary at the end."""

from __future__ import annotations

import atexit
from collections import deque
from typing import Any, Deque, Dict, List, Optional, Sequence, Tuple

import torch
from torch import Tensor

from sd_fairseq.cost.path_flops import Lengths, ModelShape, dense_flops, path_flops
from sd_fairseq.decision.decisions import Decisions, DecisionSpace
from sd_fairseq.decision.token_strategies import count_kept_tokens, parse_token_strategies
from sd_fairseq.decision.trace import TraceRecord, to_json_line
from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.plugin.models.options import model_shape
from sd_fairseq.plugin.tasks.generation_summary import GenerationSummary
from sd_fairseq.whole_files import GrowingFile


class TraceRecorder:
    """Follows what a generation decided, executed and took: a record a sentence, and a summary at the end.

    Args:
        path: file of JSON lines, whole when the generation ends; None = none is wanted.

    Raises:
        InputError: the file cannot be written.
    """

    def __init__(self, path: Optional[str] = None):
        self.path = path
        self.file: Optional[GrowingFile] = None
        if path:
            try:
                self.file = GrowingFile(path)
            except OSError as error:
                raise InputError(f"--sd-trace {path}: cannot be written ({error.strerror})") from error
            atexit.register(self.file.finish)
        self.summary = GenerationSummary()
        self.generation = ""
        self.beam = 1
        self.dataset: Any = None
        self.waiting: Deque[List[int]] = deque()  # local ids of the batches to come
        self.recorded = self.expected = self.first_id = self.next_first_id = 0

    def describe_generation(self, args: Any, generator: Any) -> None:
        """Notes the search's options, the part of every score's signature."""
        self.beam = getattr(generator, "beam_size", 1)
        fields = {
            "beam": self.beam,
            "lenpen": getattr(args, "lenpen", 1),
            "nrng": getattr(args, "no_repeat_ngram_size", 0),
            "minlen": getattr(args, "min_len", 1),
            "maxlen": f"{getattr(args, 'max_len_a', 0)}x+{getattr(args, 'max_len_b', 200)}",
        }
        self.generation = "|".join(f"{key}:{value}" for key, value in fields.items())

    def expect(self, dataset: Any, batches: Sequence[Sequence[int]], shard: int, num_shards: int) -> None:
        """Notes which sentences are to come.

        Args:
            dataset: the sentences.
            batches: of the whole data set.
            shard, num_shards: this process decodes every ``num_shards``-th batch from ``shard`` on.
        """
        mine = batches[shard::num_shards]
        self.dataset = dataset
        self.first_id, self.next_first_id = self.next_first_id, self.next_first_id + len(dataset)
        self.waiting = deque([int(index) for index in batch] for batch in mine)
        self.expected = self.recorded + sum(len(batch) for batch in mine)
        self.summary.shard = (shard, num_shards)

    def observe(self, models: List[Any], sample: Dict[str, Any]) -> Dict[str, Any]:
        """Returns the batch with a place for the encoder to leave its decisions, and with the sentences' ids.

        Raises:
            InputError: a trace is wanted of an ensemble, whose members decide differently.
        """
        if len(models) > 1 and self.path:
            raise InputError(f"--sd-trace records one model's decisions, found an ensemble of {len(models)}")
        if "id" not in sample:  # fairseq-interactive's batches have none
            sample = {**sample, "id": self.identify(sample["net_input"]["src_tokens"], models[0].encoder.padding_idx)}
        if not hasattr(models[0], "space"):
            return sample
        return {**sample, "net_input": {**sample["net_input"], "decision_log": []}}

    def identify(self, src_tokens: Tensor, padding: int) -> Tensor:
        """Finds the running ids of a batch's rows, which fairseq has sorted by length.

        Args:
            src_tokens: LongTensor [B, S].
            padding: index of the padding symbol.

        Returns:
            LongTensor [B].
        """
        rows: Dict[Tuple[int, ...], List[int]] = {}
        for index in self.waiting.popleft() if self.waiting else ():
            tokens = self.dataset[index]["source"]
            rows.setdefault(tuple(tokens.tolist()), []).append(self.first_id + index)
        found = [rows.get(tuple(row[row.ne(padding)].tolist())) for row in src_tokens.cpu()]
        return torch.tensor([ids.pop(0) if ids else self.recorded + place for place, ids in enumerate(found)])

    def record(self, models: List[Any], sample: Dict[str, Any], hypotheses: List[List[dict]], seconds: float) -> None:
        """Takes in a batch.

        Args:
            models: that generated; of an ensemble only sentences and seconds are counted.
            sample: what :meth:`observe` returned.
            hypotheses: fairseq's finalized hypotheses, best first, of each sentence.
            seconds: time of the batch.
        """
        model = models[0]
        src_tokens = sample["net_input"]["src_tokens"].cpu()
        batch_size = src_tokens.size(0)
        self.recorded += batch_size
        if len(models) > 1 or not hasattr(model, "decoder") or not all(hypotheses):
            self.summary.count(batch_size, seconds)
            return
        space, shape = space_and_shape(model)
        log = sample["net_input"].get("decision_log")
        decisions = log[0].to(torch.device("cpu")) if log else space.keep_all(batch_size, torch.device("cpu"))
        # A sentence leaves the search when its last hypothesis ends: the longest one tells the steps it was decoded.
        steps = torch.tensor([max(len(one["tokens"]) for one in group) for group in hypotheses])
        lengths = Lengths(src_tokens.ne(model.encoder.padding_idx).sum(dim=1), steps, self.beam)
        common = {
            "beam": self.beam,
            "seconds": seconds / batch_size,
            "generation": self.generation,
            "model": getattr(model.args, "arch", type(model).__name__),
        }
        records = describe_batch(space, shape, decisions, lengths, sample["id"].tolist(), hypotheses, common)
        self.summary.add(records, seconds)
        if self.file is not None:
            self.file.write("".join(to_json_line(record) + "\n" for record in records))
            if self.expected == self.recorded and not self.summary.interactive:
                self.file.finish()


def describe_batch(
    space: DecisionSpace,
    shape: ModelShape,
    decisions: Decisions,
    lengths: Lengths,
    ids: List[int],
    hypotheses: List[List[dict]],
    common: Dict[str, Any],
) -> List[TraceRecord]:
    """Makes one record an example; arguments as in :class:`TraceRecorder`, all on the CPU."""
    kept = count_kept_tokens(lengths.source, space.token_strategies).gather(1, decisions.token_choice.unsqueeze(1))
    flops = {}
    for definition in ("generation", "paper"):
        flops[f"flops_{definition}"] = path_flops(definition, shape, space, decisions, lengths).tolist()
        flops[f"flops_{definition}_dense"] = dense_flops(definition, shape, space, lengths).tolist()
    records = []
    for row, identity in enumerate(ids):
        records.append(
            TraceRecord(
                id=identity,
                source_tokens=int(lengths.source[row]),
                kept_source_tokens=int(kept[row, 0]),
                target_tokens=len(hypotheses[row][0]["tokens"]),
                decoder_steps=int(lengths.target[row]),
                **space.describe(decisions, row),
                **{name: int(values[row]) for name, values in flops.items()},
                **common,
            )
        )
    return records


def space_and_shape(model: Any) -> Tuple[DecisionSpace, ModelShape]:
    """Returns a model's decision space and dimensions; a plain BART has nothing to switch and no policy."""
    if hasattr(model, "space"):
        return model.space, model.shape
    args = model.args
    space = DecisionSpace(args.encoder_layers, args.decoder_layers, (), parse_token_strategies("keep"))
    return space, model_shape(args, len(model.decoder.dictionary), None)
