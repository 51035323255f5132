"""Table of classification and question answering, dense against switchable, from the results' JSON files.

    python tools/understanding_table.py results/tasks
    python tools/understanding_table.py results/tasks --record NAME --summary SUMMARY.json
        --task SST-2 --row dense --seed 1 --metric accuracy --commands COMMANDS.txt

Source: "Switchable Decision" (ICML 2024), Tables 4, 5 (scores and FLOPs) and 10 (skip rates).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import platform
import sys
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence, Tuple

from tabulate import tabulate

from sd_fairseq.whole_files import write_json

ROWS = ("dense", "switchable")
PACKAGES = ("sd_fairseq", "torch", "numpy", "fairseq", "ve-fairseq", "fairseq-fixed", "scikit-learn", "sentencepiece")
FIELDS: Dict[str, Tuple[type, ...]] = {
    "task": (str,),
    "row": (str,),
    "seed": (int,),
    "metric": (str,),
    "value": (int, float),
    "flops_generation": (int, float),
    "seconds": (int, float),
    "skip_rates": (dict,),
    "command": (str,),
    "versions": (dict,),
}
SITES = {
    "encoder_attention": "enc. ATT",
    "encoder_ffn": "enc. FFN",
    "decoder_attention": "dec. ATT",
    "decoder_ffn": "dec. FFN",
    "token": "tokens",
}


class ResultError(ValueError):
    """A results file that cannot be used; the message is one line naming it."""


@dataclass(frozen=True)
class Cell:
    """Runs of one task, metric and row.

    Args:
        values: the metric, one a seed.
        flops: relative FLOPs, likewise.
        seconds: likewise.
        skip_rates: site -> mean over the seeds.
        examples: number of examples that were scored, 0 = unknown.
    """

    values: List[float]
    flops: List[float]
    seconds: List[float]
    skip_rates: Dict[str, float]
    examples: int


def check_result(values: Any, place: str) -> Dict[str, Any]:
    """Checks one result.

    Raises:
        ResultError: a missing or wrongly typed key, or an impossible value.
    """
    if not isinstance(values, dict):
        raise ResultError(f"{place}: found a JSON {type(values).__name__}, expected an object")
    for name, kinds in FIELDS.items():
        if name not in values:
            raise ResultError(f"{place}: no key {name!r}")
        if not isinstance(values[name], kinds) or isinstance(values[name], bool):
            raise ResultError(f"{place}: {name!r} is {values[name]!r}, expected {kinds[-1].__name__}")
        if isinstance(values[name], float) and not math.isfinite(values[name]):
            raise ResultError(f"{place}: {name!r} is {values[name]}")
    if values["row"] not in ROWS:
        raise ResultError(f"{place}: row {values['row']!r} is not one of {', '.join(ROWS)}")
    if values["flops_generation"] <= 0:
        raise ResultError(f"{place}: 'flops_generation' is {values['flops_generation']}, expected more than 0")
    return values


def read_results(folder: str) -> List[Dict[str, Any]]:
    """Reads every JSON file of a folder; a file holds one result or a list of them.

    Raises:
        ResultError: an unreadable file, no file, or the same run twice.
    """
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(".json"))
    except OSError as error:
        raise ResultError(f"{folder}: {error.strerror}") from error
    results: List[Dict[str, Any]] = []
    seen: Dict[Tuple[Any, ...], str] = {}
    for path in (os.path.join(folder, name) for name in names):
        try:
            with open(path, encoding="utf-8") as text:
                content = json.load(text)
        except (OSError, ValueError) as error:
            raise ResultError(f"{path}: cannot be read ({error})") from error
        for result in content if isinstance(content, list) else [content]:
            check_result(result, path)
            key = tuple(result[name] for name in ("task", "metric", "row", "seed"))
            if key in seen:
                raise ResultError(f"{path}: {key} is also in {seen[key]}")
            seen[key] = path
            results.append(result)
    if not results:
        raise ResultError(f"{folder}: holds no results")
    return results


def collect(results: Sequence[Dict[str, Any]]) -> Dict[Tuple[str, str], Dict[str, Cell]]:
    """Groups results: (task, metric) -> row -> :class:`Cell`."""
    groups: Dict[Tuple[str, str], Dict[str, List[Dict[str, Any]]]] = {}
    for result in results:
        rows = groups.setdefault((result["task"], result["metric"]), {})
        rows.setdefault(result["row"], []).append(result)
    return {key: {row: make_cell(runs) for row, runs in rows.items()} for key, rows in groups.items()}


def make_cell(runs: Sequence[Dict[str, Any]]) -> Cell:
    """Puts the seeds of one row together."""
    sites = {site for run in runs for site in run["skip_rates"]}
    return Cell(
        values=[float(run["value"]) for run in runs],
        flops=[float(run["flops_generation"]) for run in runs],
        seconds=[float(run["seconds"]) for run in runs],
        skip_rates={site: mean([float(run["skip_rates"].get(site, 0.0)) for run in runs]) for site in sites},
        examples=max(int(run.get("examples", 0)) for run in runs),
    )


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean of at least one value."""
    return math.fsum(values) / len(values)


def render_scores(cells: Dict[Tuple[str, str], Dict[str, Cell]]) -> str:
    """Renders the score table, Markdown.

    The noise column is the standard error of one score of a share (accuracy, EM) over the scored examples; a difference
    of less than that is none.
    """
    lines = []
    for (task, metric), rows in cells.items():
        for row in (name for name in ROWS if name in rows):
            cell, dense = rows[row], rows.get("dense")
            difference = ""
            if row == "switchable" and dense is not None:
                difference = f"{mean(cell.values) - mean(dense.values):+.2f}"
            lines.append(
                [
                    task,
                    metric,
                    row,
                    show_range(cell.values),
                    difference,
                    show_noise(cell),
                    f"{mean(cell.flops):.3f}",
                    f"{mean(cell.seconds):.2f}",
                    len(cell.values),
                ]
            )
    header = ["task", "metric", "row", "score", "difference", "noise", "FLOPs", "seconds", "seeds"]
    return tabulate(lines, header, tablefmt="github", disable_numparse=True)


def show_range(values: Sequence[float]) -> str:
    """Renders a mean and, of several seeds, smallest and largest."""
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{mean(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def show_noise(cell: Cell) -> str:
    """Renders the standard error in points, if the number of examples is known."""
    share = min(max(mean(cell.values) / 100, 0.0), 1.0)
    return f"±{100 * math.sqrt(share * (1 - share) / cell.examples):.2f}" if cell.examples else ""


def render_skip_rates(cells: Dict[Tuple[str, str], Dict[str, Cell]]) -> str:
    """Renders Table 10's figures of the switchable rows, percent skipped a site, Markdown; each task once."""
    shown: Dict[str, List[str]] = {}
    for (task, _), rows in cells.items():
        if "switchable" in rows and task not in shown:
            rates = rows["switchable"].skip_rates
            shown[task] = [f"{100 * rates[site]:.1f}" if site in rates else "-" for site in SITES]
    lines = [[task, *rates] for task, rates in shown.items()]
    return tabulate(lines, ["task, % skipped", *SITES.values()], tablefmt="github", disable_numparse=True)


def find_versions() -> Dict[str, str]:
    """Lists Python and the installed packages that a result depends on."""
    versions = {"python": platform.python_version(), "machine": platform.machine()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def write_result(path: str, result: Dict[str, Any]) -> None:
    """Checks a result and writes it beside its place, then renames.

    Raises:
        ResultError: see :func:`check_result`, or the file cannot be written.
    """
    check_result(result, path)
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        write_json(path, result)
    except OSError as error:
        raise ResultError(f"{path}: cannot be written ({error.strerror})") from error


def record(options: argparse.Namespace) -> None:
    """Makes one results file of a prediction's summary."""
    try:
        with open(options.summary, encoding="utf-8") as text:
            summary = json.load(text)
        with open(options.commands, encoding="utf-8") as text:
            command = text.read().strip()
    except (OSError, ValueError, TypeError) as error:
        raise ResultError(f"--record needs --summary and --commands ({error})") from error
    wanted = (options.metric, "flops_generation", "seconds", "skip_rates")
    missing = [name for name in wanted if name not in summary]
    if missing:
        raise ResultError(f"{options.summary}: no key {missing[0]!r}")
    result = {
        "task": options.task,
        "row": options.row,
        "seed": options.seed,
        "metric": options.metric,
        "value": summary[options.metric],
        "command": command,
        "versions": find_versions(),
        **{key: value for key, value in summary.items() if key != options.metric},
    }
    write_result(os.path.join(options.folder, options.record + ".json"), result)


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Runs the command; returns its exit code."""
    summary = str(__doc__).split("\n", 1)[0]
    parser = argparse.ArgumentParser(prog="tools/understanding_table.py", description=summary)
    parser.add_argument("folder", help="folder of results, *.json")
    parser.add_argument("--record", metavar="NAME", help="write NAME.json instead, from the options below")
    parser.add_argument("--summary", metavar="FILE", help="what a prediction command wrote with --summary")
    parser.add_argument("--commands", metavar="FILE", help="the exact commands, for the record")
    parser.add_argument("--task", metavar="NAME")
    parser.add_argument("--row", choices=ROWS)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--metric", default="accuracy", metavar="NAME", help="key of the summary (default: accuracy)")
    options = parser.parse_args(arguments)
    try:
        if options.record:
            record(options)
        else:
            cells = collect(read_results(options.folder))
            print(render_scores(cells) + "\n\n" + render_skip_rates(cells))
    except ResultError as error:
        print(f"understanding_table: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
