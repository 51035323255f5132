"""Collects the decision trace of a generation: one record a sentence, written batch by batch."""

from __future__ import annotations

from collections import deque
from typing import Any, Deque, Dict, List, Optional, Sequence, Tuple

import torch

from sd_fairseq.cost.layer_work import LayerWork, scheduled_work
from sd_fairseq.cost.path_flops import Lengths, ModelShape, dense_flops, path_flops
from sd_fairseq.decision.decisions import Decisions, DecisionSpace
from sd_fairseq.decision.rules import DecisionRule
from sd_fairseq.decision.token_strategies import count_kept_tokens, parse_token_strategies
from sd_fairseq.decision.trace import TraceRecord
from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.plugin.guards.trace_place import check_trace, data_files
from sd_fairseq.plugin.models.options import model_shape
from sd_fairseq.plugin.tasks.trace_file import TraceFile


class TraceRecorder:
    """Records what a generation decided, executed and took.

    Args:
        path: file to write, JSON lines.
        data: folders of the data, which the file must not overwrite, as fairseq has them: with colons between.

    Raises:
        InputError: it cannot be written, or is a file of the data.
    """

    def __init__(self, path: str, data: str = ""):
        check_trace(path, data_files(data))
        self.file = TraceFile(path)
        self.recorded, self.expected = 0, 0
        self.waiting: Deque[List[int]] = deque()
        self.generation = ""
        self.beam = 1

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

    def expect(self, batches: Sequence[Sequence[int]], shard: int, num_shards: int) -> None:
        """Notes how many more sentences are to come.

        Args:
            batches: of the whole data set.
            shard, num_shards: this process decodes every ``num_shards``-th batch from ``shard`` on.
        """
        self.expected = self.recorded + sum(len(batch) for batch in batches[shard::num_shards])

    def number_lines(self, dataset: Any, lines_before: int) -> None:
        """Lets every batch of fairseq-interactive, which passes no ids on, leave its lines' numbers here.

        Args:
            dataset: of one buffer; its batches are made in this process and in the order of their use.
            lines_before: lines of the buffers before it.
        """
        collate = dataset.collater

        def remember(samples: Any, *args: Any, **kwargs: Any) -> Any:
            batch = collate(samples, *args, **kwargs)
            self.waiting.append([lines_before + one for one in batch["id"].tolist()])  # collating sorts by length
            return batch

        dataset.collater = remember

    def observe(self, models: List[Any], sample: Dict[str, Any]) -> Dict[str, Any]:
        """Returns the batch with a place for the encoder to leave its decisions.

        Raises:
            InputError: an ensemble, whose members decide differently.
        """
        if len(models) > 1:
            raise InputError(f"--sd-trace records one model's decisions, found an ensemble of {len(models)}")
        return log_decisions(models, sample)

    def record(self, model: Any, sample: Dict[str, Any], hypotheses: List[List[dict]], seconds: float) -> None:
        """Writes a batch's records; the file takes its place when all expected sentences are in.

        Args:
            model: the model that generated.
            sample: what :meth:`observe` returned.
            hypotheses: fairseq's finalized hypotheses, best first, of each sentence.
            seconds: time of the batch.
        """
        batch_size = len(hypotheses)
        space, shape = space_and_shape(model)
        decisions, lengths = read_batch(model, space, sample, hypotheses, self.beam)
        # fairseq-interactive's batches have no ids: the lines are counted through all its buffers
        running = self.waiting.popleft() if self.waiting else []
        ids = sample["id"].tolist() if "id" in sample else running
        records = describe_batch(
            space,
            shape,
            decisions,
            lengths,
            ids,
            hypotheses,
            {
                "beam": self.beam,
                "seconds": seconds / batch_size,
                "generation": self.generation,
                "model": getattr(model.args, "arch", type(model).__name__),
                "rule": rule_of(model).text,
            },
        )
        self.recorded += len(records)
        self.file.append(records, self.recorded >= self.expected)


def log_decisions(models: List[Any], sample: Dict[str, Any]) -> Dict[str, Any]:
    """Returns the batch with a place for the encoder to leave its decisions; itself where nothing decides."""
    if len(models) > 1 or not hasattr(models[0], "space"):
        return sample
    return {**sample, "net_input": {**sample["net_input"], "decision_log": []}}


def read_batch(
    model: Any, space: DecisionSpace, sample: Dict[str, Any], hypotheses: List[List[dict]], beam: int
) -> Tuple[Decisions, Lengths]:
    """Returns what a batch decided and how long its sentences were, on the CPU; arguments as in the recorder."""
    src_tokens = sample["net_input"]["src_tokens"].cpu()
    log = sample["net_input"].get("decision_log")
    cpu = torch.device("cpu")
    decided = [one for one in log or [] if isinstance(one, Decisions)]
    counted = [one for one in log or [] if isinstance(one, LayerWork)]
    decisions = decided[0].to(cpu) if decided else space.keep_all(src_tokens.size(0), cpu)
    # A sentence leaves the search when its last hypothesis ends: the longest one tells the steps it was decoded.
    steps = torch.tensor([max(len(one["tokens"]) for one in group) for group in hypotheses])
    work = counted[0].to(cpu) if counted else scheduled_work(rule_of(model), steps, beam)
    return decisions, Lengths(src_tokens.ne(model.encoder.padding_idx).sum(dim=1), steps, beam, work)


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
    encoded = shape.encoded_tokens(lengths.source)
    kept = count_kept_tokens(encoded, space.token_strategies).gather(1, decisions.token_choice.unsqueeze(1))
    kept = kept + (lengths.source - encoded).unsqueeze(1)  # what the encoder does not run is not dropped either
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
                layer_tokens=describe_work(lengths.work, row),
                **common,
            )
        )
    return records


def describe_work(work: Optional[LayerWork], row: int) -> str:
    """Describes what a sentence's decoder layers ran, see :class:`TraceRecord`."""
    return "" if work is None else ",".join(str(count) for count in work.tokens[row].tolist())


def rule_of(model: Any) -> DecisionRule:
    """Returns what decides at every step which decoder layers a model runs."""
    return getattr(getattr(model, "decoder", None), "rule", None) or DecisionRule()


def space_and_shape(model: Any) -> Tuple[DecisionSpace, ModelShape]:
    """Returns a model's decision space and dimensions; a plain BART has nothing to switch and no policy."""
    if hasattr(model, "space"):
        return model.space, model.shape
    args = model.args
    space = DecisionSpace(args.encoder_layers, args.decoder_layers, (), parse_token_strategies("keep"))
    return space, model_shape(args, len(model.decoder.dictionary), None)
