"""The grid of the trade-off with what rivals need besides: students, tuned rules, sentences that are copied."""

import os
import re
from dataclasses import replace
from typing import Any, Dict, List, Tuple

import torch
from grid import TUNED_ON, Grid
from recipe import BASE, Row, generate_command, last_value, render
from row_names import split_row
from steps import locked, read_json, say, write_json
from tuning import TUNED, candidates, choose

from sd_fairseq.cost.path_flops import Lengths, ModelShape, dense_flops
from sd_fairseq.decision.decisions import DecisionSpace
from sd_fairseq.decision.token_strategies import parse_token_strategies
from sd_fairseq.decision.trace import TraceRecord
from sd_fairseq.evaluation.report import PLAIN, System, prepared, read_system, score_examples
from sd_fairseq.evaluation.skip_report import summarise_trace

LEAD = "lead"  # its number is that of the sentences
SENTENCE_ENDS = r"(?<=[.!?])\s+"
# family -> works in batches, under beam search, and with caches that hold what the whole model would have written
WORKS: Dict[str, Tuple[bool, bool, bool]] = {
    "calm": (True, True, False),
    "calm-plain": (True, True, False),
    "free": (True, False, True),
}
OTHERS_WORK = (True, True, True)


class RivalGrid(Grid):
    """Makes rows of rivals; see :class:`grid.Grid`."""

    def find_values(self, row: Row, seed: int) -> Dict[str, str]:
        """Finds what the row's {placeholders} stand for, those of rivals too."""
        values = super().find_values(row, seed)
        for inside, (name, text) in row.placeholders().items():
            if name == "student":
                values[inside] = self.make_student(text)
            elif name == "rule":
                rule, _, flops = text.partition(":")
                values[inside] = choose(self.tune(rule, row, seed), float(flops))["rule"]
        return values

    def make_student(self, layers: str) -> str:
        """Returns a checkpoint of the base with fewer layers, made where it is not there yet.

        Args:
            layers: ``ENCODER-DECODER``.
        """
        place = "$OUT/students/{}.pt".format(layers)
        encoder, _, decoder = layers.partition("-")
        command = ["python", "examples/rivals/shrink.py", "$BASE", place]
        command += ["--encoder-layers", encoder, "--decoder-layers", decoder]
        self.commands[place] = render(command)
        with locked(self.resolve("$OUT/students")):
            if not os.path.exists(self.resolve(place)):
                self.run(command, self.resolve("$OUT/students/{}.log".format(layers)))
        return place

    def tune(self, name: str, row: Row, seed: int) -> List[Dict[str, Any]]:
        """Generates valid under every candidate of a rule.

        A row that trains under its rule is tuned with the base, which is what it starts from.

        Returns:
            Of each candidate ``rule``, ``flops_generation`` and ``rougeL``.
        """
        weights = row.weights or BASE
        if weights != BASE:
            self.train(weights, seed)
        owner = weights if weights == BASE else "{}-{}".format(weights, seed)
        folder = "$OUT/tune-{}-{}".format(name, owner)
        layers = int(last_value(self.settings.size, "--decoder-layers"))
        with locked(self.resolve(folder)):
            return [self.try_rule(rule, name, weights, seed, folder) for rule in candidates(name, layers)]

    def try_rule(self, rule: str, name: str, weights: str, seed: int, folder: str) -> Dict[str, Any]:
        """Generates valid under one candidate, once; see :meth:`tune`."""
        trial = Row("dense", (), (), weights, (*TUNED[name][0], "--sd-path", rule))
        command, _ = generate_command(trial, seed, TUNED_ON, self.settings, {})
        stem = "{}/{}".format(folder, re.sub(r"[^\w.]+", "-", rule))
        command[command.index("--sd-trace") + 1] = stem + ".trace.jsonl"
        self.commands[stem] = render(command, stem + ".txt")
        place = self.resolve(stem)
        found: Any = read_json(place + ".json")
        if found is None:
            say("{}: trying {}".format(weights, rule))
            self.run(command, place + ".log", place + ".txt")
            system = read_system("trial", place + ".txt", place + ".trace.jsonl")
            flops = summarise_trace(system.records).flops_generation
            found = {"rule": rule, "flops_generation": flops, "rougeL": float(score_examples(system).mean())}
            write_json(place + ".json", found)
            for ending in (".txt", ".trace.jsonl"):
                os.remove(place + ending)
        return found

    def generate(self, name: str, seed: int, subset: str) -> None:
        """Generates a split with a row; sentences that are copied take no generation of their own."""
        if split_row(name)[0] != LEAD:
            super().generate(name, seed, subset)

    def read(self, name: str, seed: int, subset: str) -> System:
        """Reads what a row generated; its FLOPs are shares of the base's, whatever its own layers."""
        family, number = split_row(name)
        if family == LEAD:
            return lead(name, self.read("dense", seed, subset), int(number or 1))
        system = super().read(name, seed, subset)
        return replace(system, records=self.measure_by_base(system.records))

    def measure_by_base(self, records: List[TraceRecord]) -> List[TraceRecord]:
        """Returns records whose dense FLOPs are those of the base, over the same sources and as many steps."""
        size = self.settings.size
        encoder, decoder = (int(last_value(size, "--{}-layers".format(stack))) for stack in ("encoder", "decoder"))
        first = records[0]
        if (len(first.encoder_ffn), len(first.decoder_ffn)) == (encoder, decoder):
            return records
        space = DecisionSpace(encoder, decoder, (), parse_token_strategies("keep"))
        source, steps = (
            torch.tensor([getattr(one, name) for one in records]) for name in ("source_tokens", "decoder_steps")
        )
        lengths = Lengths(source, steps, first.beam)
        shape = base_shape(size, self.places["DATA"])
        dense = {name: dense_flops(name, shape, space, lengths).tolist() for name in ("generation", "paper")}
        return [
            replace(one, flops_generation_dense=int(generation), flops_paper_dense=int(paper))
            for one, generation, paper in zip(records, dense["generation"], dense["paper"])
        ]

    def make(self, name: str, seed: int) -> Dict[str, Any]:
        """Makes a row's result, with what rivals are asked besides."""
        result = super().make(name, seed)
        row, system = self.rows[name], self.read(name, seed, self.options.subset)
        texts = prepared(system, PLAIN)
        for metric in ("rouge1", "rouge2"):
            scores = 100 * PLAIN.by_document(*texts, metric)
            result[metric + "_by_example"] = [round(float(score), 2) for score in scores]
        shares = [one.layer_shares for one in system.records if one.layer_shares is not None]
        result["layer_shares"] = [sum(layer) / len(shares) for layer in zip(*shares)] or None
        result["works"] = dict(zip(("batched", "beams", "exact_caches"), WORKS.get(split_row(name)[0], OTHERS_WORK)))
        tuned = {inside: text for inside, (kind, text) in row.placeholders().items() if kind == "rule"}
        result["tuning"] = {
            inside: {
                "tried": self.tune(text.partition(":")[0], row, seed),
                "chosen": self.find_values(row, seed)[inside],
            }
            for inside, text in tuned.items()
        }
        return result


def base_shape(size: Tuple[str, ...], data: str) -> ModelShape:
    """Returns the dimensions of the base.

    Args:
        size: its options, as the recipe has them.
        data: folder whose dictionary tells the vocabulary.
    """
    from fairseq.data import Dictionary

    names = ("encoder-embed-dim", "decoder-embed-dim", "encoder-ffn-embed-dim", "decoder-ffn-embed-dim")
    dims = [int(last_value(size, "--" + name)) for name in names]
    return ModelShape(*dims, vocabulary=len(Dictionary.load(os.path.join(data, "dict.target.txt"))))


def lead(name: str, dense: System, sentences: int) -> System:
    """Returns the system that copies the first sentences of a source, at no cost.

    Args:
        name: of the system.
        dense: any system of the same documents; its sources are read.
        sentences: that are copied.
    """
    texts = {
        identity: " ".join(re.split(SENTENCE_ENDS, source.strip())[:sentences])
        for identity, source in dense.output.sources.items()
    }
    records = [replace(one, flops_generation=0, flops_paper=0, seconds=0.0) for one in dense.records]
    return System(name, replace(dense.output, hypotheses=texts, lengths={}), records)
