#!/usr/bin/env python3
"""Wall-clock of generation: the fast generator against fairseq, Hugging Face transformers and CTranslate2.

BART's shape with random weights, the same in all (each candidate hashes what it holds); the number of target tokens is
forced, so time depends on the path only. Each candidate has a process of its own; they take turns. transformers and
CTranslate2 are measured where they are installed.

    python benchmarks/generation.py                          batch 1, source 800, target 64, beam 4
    python benchmarks/generation.py --batch-sizes 1,4,16 --source-lengths 128,512,1024 --peers fairseq
    python benchmarks/generation.py --device cuda --precisions fp16 --batch-sizes 1,16,64      on a GPU
"""

import argparse
import importlib.util
import itertools
import os
import sys
import tempfile
from typing import Any, Dict, List, Optional

import measure
import torch
import turns

DENSE = {"attention": 0.0, "ffn": 0.0, "token": 0.0}
# Ours, and what it is compared with; one group after the other, so that few models are in memory at once.
GROUPS = {
    "fp32": ["fairseq fp32", "transformers fp32", "ctranslate2 fp32"],
    "bf16": ["fairseq bf16", "transformers bf16", "ctranslate2 int8"],
    "fp16": ["fairseq fp16", "transformers fp16"],
    "int8": ["fairseq fp32", "ctranslate2 int8"],
}
ON_CPU = ("ctranslate2",)  # what is not measured on a GPU


class Bench:
    """The files of one run, and how its workers are started.

    Args:
        args: the command line.
        folder: for the weights' file and converted models.
    """

    def __init__(self, args: argparse.Namespace, folder: str):
        self.args, self.folder, self.peer_names = args, folder, args.peers.split(",")
        self.common = {"size": args.size, "threads": args.threads, "weights": os.path.join(folder, "model.pt")}
        self.common["device"] = args.device
        self.converted: Dict[str, Dict[str, Any]] = {}
        with turns.Workers() as workers:
            workers.start("weights")
            answer = workers.ask("weights", "build", software="weights", **self.common)
        if answer is None:
            raise SystemExit("the random weights could not be written: nothing is measured")
        self.checksums: Dict[str, str] = answer["checksums"]

    def start(self, workers: turns.Workers, precision: str) -> None:
        """Starts ours of one precision, and what it is measured against."""
        skipping = f"ours {precision} at the paper's rates"
        for name, rates in ((f"ours {precision}", DENSE), (skipping, measure.PAPER_RATES)):
            self.start_one(workers, name, "ours", precision, rates=rates)
            if name not in workers.running:
                raise SystemExit(f"{name} failed: there is nothing to compare")
        for name in GROUPS[precision]:
            software, its_precision = name.split()
            if software == "fairseq" or self.is_wanted(software):
                self.start_one(workers, name, software, its_precision)

    def is_wanted(self, software: str) -> bool:
        """Tells whether a peer is to be measured and can be."""
        if software not in self.peer_names or (software in ON_CPU and self.args.device != "cpu"):
            return False
        if importlib.util.find_spec(software) is None:
            print(f"{software}: left out: it is not installed", file=sys.stderr)
            return False
        return True

    def start_one(self, workers: turns.Workers, name: str, software: str, precision: str, **more: Any) -> None:
        """Starts a worker and lets it build its model; one that cannot is left out."""
        facts: Dict[str, Any] = {}
        if software == "ctranslate2":
            converted = self.convert(name, precision)
            if converted is None:
                return
            facts, more = converted, {**more, "folder": self.converted_folder(precision)}
        workers.start(name)
        answer = workers.ask(name, "build", software=software, precision=precision, **self.common, **more)
        if answer is not None:
            check_weights(name, {**facts, **answer}, self.checksums)

    def converted_folder(self, precision: str) -> str:
        """Where CTranslate2's model of a precision lies."""
        return os.path.join(self.folder, "ctranslate2-" + precision)

    def convert(self, name: str, precision: str) -> Optional[Dict[str, Any]]:
        """Converts the weights for CTranslate2, once; what it read them as, None where that failed."""
        if precision not in self.converted:
            request = {"precision": precision, "folder": self.converted_folder(precision), **self.common}
            with turns.Workers() as workers:
                workers.start(name)
                answer = workers.ask(name, "build", software="conversion", **request)
            if answer is None:
                return None
            self.converted[precision] = answer
        return self.converted[precision]


def check_weights(name: str, facts: Dict[str, Any], checksums: Dict[str, str]) -> None:
    """Ends the benchmark when a candidate holds other weights than the file.

    Args:
        name: of the candidate.
        facts: its ``checksum``, and the ``kind`` (fp32, bf16) of weights that were hashed.
        checksums: of the file, by kind.
    """
    kind = facts["kind"]
    if facts["checksum"] != checksums[kind]:
        found, wanted = facts["checksum"][:12], checksums[kind][:12]
        raise SystemExit(f"{name} has other weights ({kind} {found}) than the rest ({wanted}): nothing is compared")


def compare(workers: turns.Workers, bench: Bench, precision: str, batch: int, source: int) -> List[Dict[str, Any]]:
    """Measures one precision of ours and its peers on one shape of batch, in turns."""
    args, ours, skipping = bench.args, f"ours {precision}", f"ours {precision} at the paper's rates"
    shape = {"batch": batch, "source": source, "target": args.target_length, "beam": args.beam}
    tokens = measure.random_sources(batch, source, measure.build_dictionary())["src_tokens"].tolist()
    facts = {}
    for name in list(workers.running):
        facts[name] = workers.ask(name, "prepare", tokens=tokens, target=args.target_length, beam=args.beam)
    answers = workers.take_turns(args.rounds)
    for name in (ours, skipping):
        if name not in answers:
            raise SystemExit(f"{name} failed: there is nothing to compare")
    common = {**shape, "size": args.size, "idle_cpu_share": turns.idle_share(answers), "device": args.device}
    paper = {"flops_ratio": facts[skipping]["flops_ratio"], **common}
    rows = [row_of(f"paper-rates-{precision}-vs-ours-dense", skipping, ours, answers, paper)]
    for name in [one for one in GROUPS[precision] if one in answers]:
        software, its_precision = name.split()
        peer = software if its_precision == precision and software == "fairseq" else name.replace(" ", "-")
        dense = "fairseq-dense" if peer == "fairseq" else peer
        alike = its_precision == precision != "int8"  # each quantises in its own way
        same = same_tokens(answers[ours], answers[name]) if alike else {}
        rows.append(row_of(f"dense-{precision}-vs-{peer}", ours, name, answers, {**common, **same}))
        rows.append(row_of(f"paper-rates-{precision}-vs-{dense}", skipping, name, answers, paper))
    return rows


def row_of(case: str, ours: str, peer: str, answers: Dict[str, Any], more: Dict[str, Any]) -> Dict[str, Any]:
    """One result: times and peak memory of two candidates."""
    memory = {"ours_memory_gb": turns.memory_of(answers[ours]), "peer_memory_gb": turns.memory_of(answers[peer])}
    known = {name: value for name, value in memory.items() if value is not None}
    mine, theirs = turns.seconds_of(answers[ours]), turns.seconds_of(answers[peer])
    return measure.row(case, mine, peer, theirs, **more, **known)


def same_tokens(ours: List[Dict[str, Any]], peers: List[Dict[str, Any]]) -> Dict[str, float]:
    """The share of equal tokens in the best hypotheses: all up to rounding, which decides between near ties."""
    pairs = [pair for mine, theirs in zip(ours[-1]["result"], peers[-1]["result"]) for pair in zip(mine, theirs)]
    return {"same_tokens": round(sum(mine == theirs for mine, theirs in pairs) / max(1, len(pairs)), 4)}


def main() -> None:
    """Measures and writes ``generation.json``."""
    parser = measure.arguments(__doc__.splitlines()[0], "generation")
    parser.add_argument("--batch-sizes", default="1")
    parser.add_argument("--source-lengths", default="800")
    parser.add_argument("--precisions", default="fp32,bf16", help="of ours: " + ", ".join(GROUPS))
    parser.add_argument("--target-length", type=int, default=64)
    parser.add_argument("--beam", type=int, default=4)
    parser.add_argument(
        "--peers", default="transformers,ctranslate2", help="beside fairseq; left out where not installed"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU")
    torch.set_num_threads(args.threads)  # for the record: this process computes nothing
    turns.end_workers_on_termination()
    rows: List[Dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(args, folder)
        for precision in args.precisions.split(","):
            with turns.Workers() as workers:
                bench.start(workers, precision)
                for batch, source in itertools.product(args.batch_sizes.split(","), args.source_lengths.split(",")):
                    rows += compare(workers, bench, precision, int(batch), int(source))
                    measure.write(args.output, rows)


if __name__ == "__main__":
    main()
