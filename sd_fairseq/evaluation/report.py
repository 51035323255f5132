"""``sd-report``: dense, switchable and other systems side by side, from generate outputs and decision traces.

Prints one table with signatures and writes ``report.json``, ``skip_heatmap.png`` and ``tradeoff.png``: the columns of
"Switchable Decision" (ICML 2024, section 4) with intervals, and what stands behind its means.
"""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
from tqdm import tqdm

from sd_fairseq.decision.trace import TraceRecord, read_trace
from sd_fairseq.errors import InputError, QuietParser, end_quietly, run
from sd_fairseq.evaluation.generated_scores import Scoring
from sd_fairseq.evaluation.generation_output import GenerationOutput, read_generation
from sd_fairseq.evaluation.plots import draw_skip_heatmap, draw_tradeoff, load_pyplot
from sd_fairseq.evaluation.report_table import render
from sd_fairseq.evaluation.rouge_words import warn_unscorable
from sd_fairseq.evaluation.skip_report import summarise_trace
from sd_fairseq.version import __version__
from sd_fairseq.whole_files import check_places, whole, write_json

RESAMPLES = 5000
PLAIN = Scoring()
RESERVED_NAMES = ("signature", "data")  # keys of report.json beside the systems


@dataclass(frozen=True)
class System:
    """One system's files, read.

    Args:
        name: as in the table.
        output: its texts.
        records: its trace, in the order of the ids.
    """

    name: str
    output: GenerationOutput
    records: List[TraceRecord]


def check_names(names: Sequence[str]) -> None:
    """Refuses names that would stand for two things in the report.

    Raises:
        ValueError: a name that repeats or is a key of the report itself.
    """
    if len(set(names)) != len(names):
        raise ValueError(f"system names must differ, found {', '.join(names)}")
    for name in names:
        if name in RESERVED_NAMES:
            raise ValueError(f"a system cannot be called {name!r}, which is a key of report.json")


def read_system(name: str, outputs: str, traces: str) -> System:
    """Reads a system; several shards are separated by commas.

    Raises:
        ValueError: texts and trace cover different examples or are of different runs.
    """
    output = read_generation(outputs.split(","))
    records = sorted((record for path in traces.split(",") for record in read_trace(path)), key=lambda r: r.id)
    traced = [record.id for record in records]
    if traced != output.ids:
        odd = sorted(set(traced) ^ set(output.ids))
        example = f", example {odd[0]} is in one only" if odd else ", ids repeat in the trace"
        raise ValueError(f"{name}: {len(traced)} traced and {len(output.ids)} generated examples{example}")
    for record in records:
        length = output.lengths.get(record.id, record.target_tokens)
        if length != record.target_tokens:
            raise ValueError(
                f"{name}: example {record.id} has {length} tokens in {outputs} and {record.target_tokens} in {traces}; "
                "expected texts and trace of one run"
            )
    return System(name, output, records)


def check_same_examples(systems: Sequence[System]) -> None:
    """Refuses systems that were not run on the same pairs.

    Raises:
        ValueError: naming what differs.
    """
    first = systems[0]
    for other in systems[1:]:
        odd = sorted(set(first.output.ids) ^ set(other.output.ids))
        if odd:
            raise ValueError(f"{first.name} and {other.name} differ in {len(odd)} examples, the first is {odd[0]}")
        for identity in first.output.ids:
            if first.output.references[identity] != other.output.references[identity]:
                raise ValueError(f"{first.name} and {other.name} have different references for example {identity}")


def texts(system: System) -> Tuple[List[str], List[str]]:
    """Returns hypotheses and references in the order of the ids."""
    hypotheses = [system.output.hypotheses[identity] for identity in system.output.ids]
    return hypotheses, [system.output.references[identity] for identity in system.output.ids]


def prepared(system: System, scoring: Scoring) -> Tuple[List[str], List[str]]:
    """Returns hypotheses and references as they are scored, in the order of the ids."""
    hypotheses, references = ([scoring.prepare(text) for text in side] for side in texts(system))
    return hypotheses, references


def describe_system(system: System, scoring: Scoring = PLAIN) -> Dict[str, Any]:
    """Scores a system and summarises its trace; ROUGE on 0-100."""
    figures: Dict[str, Any] = {}
    for name, score in scoring.rouge(*prepared(system, scoring)).items():
        figures[name] = 100 * score.f.average
        figures[f"{name}_interval"] = [100 * score.f.low, 100 * score.f.high]
    figures.update(asdict(summarise_trace(system.records)))
    return figures


def compare_with_dense(system: System, dense: System, scoring: Scoring = PLAIN) -> Dict[str, float]:
    """Paired bootstrap over examples of the ROUGE-L difference, system minus dense.

    Returns:
        ``difference`` (0-100), its 95 % interval ``low`` and ``high``, and the two-sided ``p``.
    """
    scores = [score_examples(one, scoring) for one in (system, dense)]
    return bootstrap_differences(scores[0] - scores[1], system.name)


def score_examples(system: System, scoring: Scoring = PLAIN) -> np.ndarray:
    """Returns ROUGE-L of every example, [examples], 0-100."""
    return 100 * scoring.by_document(*prepared(system, scoring))


def bootstrap_differences(differences: np.ndarray, name: str) -> Dict[str, float]:
    """Resamples examples; see :func:`compare_with_dense` for what it returns.

    Args:
        differences: [examples], paired.
        name: for the progress bar.
    """
    generator = np.random.default_rng(1)
    count = len(differences)
    batches = tqdm(range(RESAMPLES // 100), desc=f"bootstrap {name}", leave=False, disable=None)
    means = np.concatenate([differences[generator.integers(0, count, (100, count))].mean(axis=1) for _ in batches])
    tail = min((means <= 0).mean(), (means >= 0).mean())
    low, high = np.quantile(means, [0.025, 0.975])
    return {
        "difference": float(differences.mean()),
        "low": float(low),
        "high": float(high),
        "p": float(min(1.0, 2 * max(tail, 1 / RESAMPLES))),
    }


def signature(systems: Sequence[System], data: str, scoring: Scoring = PLAIN) -> str:
    """Says under which conditions the scores were made; begins with what `--scoring sd_rouge` prints."""
    searches = sorted({record.generation for system in systems for record in system.records})
    flops = "flops:generation(beam,cached,LM-head,policy)+paper(no-LM-head),1MAC=2FLOPs"
    return "|".join([scoring.signature(len(systems[0].records)), " or ".join(searches), f"data:{data}", flops])


def build_report(
    systems: Sequence[System], data: str, scoring: Scoring = PLAIN, against: Optional[Sequence[str]] = None
) -> Dict[str, Any]:
    """Builds what ``report.json`` holds.

    Args:
        systems: in the order of the table.
        data: name of the data set.
        scoring: what decides the digits.
        against: ``dense``, ``dense_control`` or both: every later system is compared with them; None: with the first.
    """
    report: Dict[str, Any] = {"signature": signature(systems, data, scoring), "data": data}
    by_example = {system.name: score_examples(system, scoring) for system in systems}
    by_name = {system.name: system for system in systems}
    bases = {"dense": systems[0]} if against is None else {name: by_name[name] for name in against}
    for system in tqdm(systems, desc="scoring", leave=False, disable=None):
        figures = report[system.name] = describe_system(system, scoring)
        for name, base in bases.items():
            if systems.index(system) > systems.index(base):
                differences = by_example[system.name] - by_example[base.name]
                figures[f"rougeL_minus_{name}"] = bootstrap_differences(differences, system.name)
    return report


def write_report(report: Dict[str, Any], names: Sequence[str], folder: str, title: str, pictures: bool = True) -> None:
    """Writes ``report.json`` and the pictures; all are made beside their place before the first is renamed.

    Raises:
        InputError: the folder or a file in it cannot be written; what stood there stays.
    """
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made ({error.strerror})") from error
    systems = {name: report[name] for name in names}
    shown = "switchable" if "switchable" in systems else names[-1]
    files = ["report.json"] + (["skip_heatmap.png", "tradeoff.png"] if pictures else [])
    paths = [os.path.join(folder, name) for name in files]
    with ExitStack() as stack:
        parts = [stack.enter_context(whole(path)) for path in paths]
        if pictures:
            draw_skip_heatmap(systems[shown], f"{title}: {shown}", parts[1])
            draw_tradeoff(systems, title, parts[2])
        write_json(parts[0], report)


def build_parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    end_quietly()
    example = "example: sd-report --dense dense.txt dense.jsonl --switchable sd.txt sd.jsonl --output-dir report"
    about = "Compare generations in quality, FLOPs and paths."
    parser = QuietParser(prog="sd-report", description=about, epilog=example)
    parser.add_argument("--version", action="version", version="%(prog)s " + __version__)
    pair: Dict[str, Any] = {"nargs": 2, "metavar": ("GENERATION", "TRACE")}
    parser.add_argument("--dense", help="output and trace of the dense model", **pair)
    parser.add_argument("--dense-control", help="output and trace of the dense model trained as long", **pair)
    parser.add_argument("--switchable", help="output and trace with learned decisions", **pair)
    parser.add_argument("--random", help="output and trace with random decisions", **pair)
    parser.add_argument(
        "--add",
        nargs=3,
        action="append",
        default=[],
        metavar=("NAME", "GENERATION", "TRACE"),
        help="any other system; several shards of one are separated by commas",
    )
    parser.add_argument("--output-dir", required=True, help="folder for report.json and the pictures")
    parser.add_argument("--title", default="Switchable Decision", help="title of the pictures")
    parser.add_argument("--data-name", default="unnamed", help="name of the data set, for the signature")
    parser.add_argument("--ptb", action="store_true", help="tokenise texts first, as --sd-rouge-ptb (needs pysbd)")
    parser.add_argument("--eos", default=".", help="end of sentence, as --sd-rouge-eos (default: %(default)s)")
    parser.add_argument("--exceptions", metavar="FOLDER", help="irregular forms, as --sd-rouge-exceptions")
    return parser


def can_draw() -> bool:
    """Says whether pictures can be made; one line on standard error where they cannot."""
    try:
        load_pyplot()
    except ValueError as error:
        print(f"sd_fairseq: no pictures are drawn: {error}", file=sys.stderr)
        return False
    return True


def work(args: argparse.Namespace) -> None:
    """Reads, scores, writes and prints."""
    shown = ("dense", "dense_control", "switchable", "random")
    given = [(name, getattr(args, name)) for name in shown]
    files = [(name, *pair) for name, pair in given if pair] + [tuple(added) for added in args.add]
    if not files:
        raise InputError("no system is given, expected --dense, --dense-control, --switchable, --random or --add")
    names = [one[0] for one in files]
    check_names(names)
    made = [os.path.join(args.output_dir, name) for name in ("report.json", "skip_heatmap.png", "tradeoff.png")]
    check_places(made, [path for _, *pair in files for paths in pair for path in paths.split(",")], True)
    scoring = Scoring.load(args.eos, args.ptb, args.exceptions)
    systems = [read_system(*one) for one in files]
    check_same_examples(systems)
    for system in systems:
        unscorable = warn_unscorable(text for side in prepared(system, scoring) for text in side)
        if unscorable:
            print(f"sd_fairseq: warning: {system.name}: {unscorable}", file=sys.stderr)
    against = [name for name, pair in given[:2] if pair]
    report = build_report(systems, args.data_name, scoring, against)
    write_report(report, names, args.output_dir, args.title, can_draw())
    print(render(report, names))


def main(argv: Optional[List[str]] = None) -> int:
    """Runs the command; returns its exit code."""
    return run(work, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
