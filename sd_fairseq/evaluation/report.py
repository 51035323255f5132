"""``sd-report``: dense, switchable and other systems side by side, from generate outputs and decision traces.

Prints one table with signatures and writes ``report.json``, ``skip_heatmap.png`` and ``tradeoff.png``: the columns of
"Switchable Decision" (ICML 2024, section 4) with intervals, and what stands behind its means.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import asdict, dataclass
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
from tabulate import tabulate
from tqdm import tqdm

from sd_fairseq.decision.trace import TraceRecord, read_trace
from sd_fairseq.evaluation.generation_output import GenerationOutput, read_generation
from sd_fairseq.evaluation.plots import draw_skip_heatmap, draw_tradeoff, load_pyplot
from sd_fairseq.evaluation.rouge import document_scores, rouge
from sd_fairseq.evaluation.skip_report import summarise_trace
from sd_fairseq.version import __version__

RESAMPLES = 5000
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
        ValueError: texts and trace cover different examples.
    """
    output = read_generation(outputs.split(","))
    records = sorted((record for path in traces.split(",") for record in read_trace(path)), key=lambda r: r.id)
    traced = [record.id for record in records]
    if traced != output.ids:
        odd = sorted(set(traced) ^ set(output.ids))
        example = f", example {odd[0]} is in one only" if odd else ", ids repeat in the trace"
        raise ValueError(f"{name}: {len(traced)} traced and {len(output.ids)} generated examples{example}")
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


def describe_system(system: System) -> Dict[str, Any]:
    """Scores a system and summarises its trace; ROUGE on 0-100."""
    figures: Dict[str, Any] = {}
    for name, score in rouge(*texts(system), count_empty=True).items():
        figures[name] = 100 * score.f.average
        figures[f"{name}_interval"] = [100 * score.f.low, 100 * score.f.high]
    figures.update(asdict(summarise_trace(system.records)))
    return figures


def compare_with_dense(system: System, dense: System) -> Dict[str, float]:
    """Paired bootstrap over examples of the ROUGE-L difference, system minus dense.

    Returns:
        ``difference`` (0-100), its 95 % interval ``low`` and ``high``, and the two-sided ``p``.
    """
    scores = [score_examples(one) for one in (system, dense)]
    return bootstrap_differences(scores[0] - scores[1], system.name)


def score_examples(system: System) -> np.ndarray:
    """Returns ROUGE-L of every example, [examples], 0-100."""
    return 100 * document_scores(*texts(system), count_empty=True)["rougeL"]


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


def signature(systems: Sequence[System], data: str) -> str:
    """Says under which conditions the scores were made."""
    searches = sorted({record.generation for system in systems for record in system.records})
    return "|".join(
        [
            "rouge:port-of-ROUGE-1.5.5(stem,bootstrap)",
            f"n:{len(systems[0].records)}",
            " or ".join(searches),
            f"data:{data}",
            "flops:generation(beam,cached,LM-head,policy)+paper(no-LM-head),1MAC=2FLOPs",
            f"sd_fairseq:{__version__}",
        ]
    )


def build_report(systems: Sequence[System], data: str) -> Dict[str, Any]:
    """Builds what ``report.json`` holds; the first system is the dense one."""
    report: Dict[str, Any] = {"signature": signature(systems, data), "data": data}
    for system in tqdm(systems, desc="scoring", leave=False, disable=None):
        report[system.name] = describe_system(system)
        if system is not systems[0]:
            report[system.name]["rougeL_minus_dense"] = compare_with_dense(system, systems[0])
    return report


def render(report: Dict[str, Any], names: Sequence[str]) -> str:
    """Renders the table, the comparisons and the signature."""
    sites = ["encoder_attention", "encoder_ffn", "decoder_attention", "decoder_cross_attention", "decoder_ffn", "token"]
    sites = [site for site in sites if any(site in report[name]["skip_rates"] for name in names)]
    rows: List[List[str]] = []
    for name in names:
        system = report[name]
        row = [name]
        for metric in ("rouge1", "rouge2", "rougeL"):
            low, high = system[f"{metric}_interval"]
            row.append(f"{system[metric]:.2f} [{low:.2f}, {high:.2f}]")
        row += [f"{system['flops_generation']:.3f}", f"{system['flops_paper']:.3f}"]
        row += [f"{system['flops_corpus']:.3f}"]
        row += [f"{system['gflops_per_example']:.4f}", f"{system['seconds']:.1f}"]
        row += [f"{100 * system['skip_rates'][site]:.1f}" if site in system["skip_rates"] else "-" for site in sites]
        row += [str(system["distinct_paths"]), f"{100 * system['top_path_share']:.1f}"]
        rows.append(row + [f"{system['path_entropy']:.2f}"])
    headers = [
        "system",
        "R-1",
        "R-2",
        "R-L",
        "FLOPs\ngeneration",
        "FLOPs\npaper",
        "FLOPs\ncorpus",
        "GFLOPs\n/example",
        "seconds",
    ]
    headers += ["skip %\n" + site.replace("_", "\n") for site in sites] + ["distinct\npaths"]
    headers += ["top path\n%", "paths'\nentropy\n(bits)"]
    lines = [tabulate(rows, headers, disable_numparse=True), ""]
    for name in names[1:]:
        test = report[name]["rougeL_minus_dense"]
        lines.append(
            f"{name} - {names[0]}: ROUGE-L {test['difference']:+.2f}, 95 % interval [{test['low']:+.2f}, "
            f"{test['high']:+.2f}], p = {test['p']:.4f} (paired bootstrap, {RESAMPLES} resamples)"
        )
    return "\n".join(lines + [report["signature"]])


def write_report(report: Dict[str, Any], names: Sequence[str], folder: str, title: str) -> None:
    """Writes the pictures and ``report.json``; all are made beside their place before the first is renamed.

    Raises:
        OSError: the folder or a file in it cannot be written; what stood there stays.
    """
    os.makedirs(folder, exist_ok=True)
    systems = {name: report[name] for name in names}
    shown = "switchable" if "switchable" in systems else names[-1]
    files = ("skip_heatmap.png", "tradeoff.png", "report.json")
    blocked = [name for name in files if os.path.isdir(os.path.join(folder, name))]
    if blocked:
        raise IsADirectoryError(f"{os.path.join(folder, blocked[0])} is a folder, expected a file or nothing")
    with tempfile.TemporaryDirectory(prefix=".report.", dir=folder) as made:
        draw_skip_heatmap(systems[shown], f"{title}: {shown}", os.path.join(made, "skip_heatmap.png"))
        draw_tradeoff(systems, title, os.path.join(made, "tradeoff.png"))
        with open(os.path.join(made, "report.json"), "w", encoding="utf-8") as text:
            json.dump(report, text, indent=1)
        for name in files:
            os.replace(os.path.join(made, name), os.path.join(folder, name))


def build_parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    example = "example: sd-report --dense dense.txt dense.jsonl --switchable sd.txt sd.jsonl --output-dir report"
    about = "Compare generations in quality, FLOPs and paths."
    parser = argparse.ArgumentParser(prog="sd-report", description=about, epilog=example)
    parser.add_argument("--version", action="version", version="%(prog)s " + __version__)
    pair: Dict[str, Any] = {"nargs": 2, "metavar": ("GENERATION", "TRACE")}
    parser.add_argument("--dense", required=True, help="output and trace of the dense model", **pair)
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
    return parser


def main(argv: Optional[List[str]] = None) -> int:
    """Runs the command; returns its exit code."""
    args = build_parser().parse_args(argv)
    files = [("dense", *args.dense)]
    files += [(name, *getattr(args, name)) for name in ("switchable", "random") if getattr(args, name)]
    files += [tuple(added) for added in args.add]
    try:
        check_names([name for name, _, _ in files])
        load_pyplot()
        systems = [read_system(*one) for one in files]
        check_same_examples(systems)
        report = build_report(systems, args.data_name)
        names = [system.name for system in systems]
        write_report(report, names, args.output_dir, args.title)
    except (ImportError, OSError, ValueError) as error:
        print(f"sd_fairseq: error: {error}", file=sys.stderr)
        return 1
    print(render(report, names))
    return 0


if __name__ == "__main__":
    sys.exit(main())
