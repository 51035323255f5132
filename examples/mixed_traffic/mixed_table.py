"""The tables and the picture of mixed traffic, from its results.

    python examples/mixed_traffic/mixed_table.py results/mixed_traffic
    python examples/mixed_traffic/mixed_table.py results/mixed_traffic --row by-task-0.7 --picture paths.png

A difference is of the same examples, over all seeds that both rows have, with a 95 % interval of a paired bootstrap.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path[:0] = [ROOT, HERE]

import numpy as np  # noqa: E402
from score import LOSS, MAIN, compare_many, show  # noqa: E402
from tabulate import tabulate  # noqa: E402
from tasks import KINDS, UNSEEN  # noqa: E402

from sd_fairseq.errors import InputError, run  # noqa: E402
from sd_fairseq.user_files import read_json_object  # noqa: E402
from sd_fairseq.whole_files import check_places, whole  # noqa: E402

TITLES = {"sst2": "SST-2", "debian": "Debian", "scitldr": "SciTLDR", "squad": "SQuAD", UNSEEN: "XSum"}
NAMES = {"accuracy": "accuracy", "rougeL": "R-L", "f1": "F1"}
PLAIN = ("dense", "dense-trained-on")
LEARNED = ("recommended", "fitted", "clustered")
WORTH = ("length", "kind", "task")
LEAST_QUESTIONS = 40  # of a kind, to be shown
# first -> what it is compared with, at equal FLOPs
CONTROLS = {
    "recommended": ("blind", "static", "by-length", "by-task", "random"),
    "clustered": ("static", "by-length", "by-task"),
    "fitted": ("static", "by-length", "by-task"),
    "by-task": ("static",),
    "by-length": ("static",),
    "fair": ("by-task", "static"),
}
SITES = {
    "encoder_attention": "encoder ATT",
    "encoder_ffn": "encoder FFN",
    "decoder_attention": "decoder ATT",
    "decoder_cross_attention": "cross ATT",
    "decoder_ffn": "decoder FFN",
}
Runs = Dict[str, Dict[int, Dict[str, Any]]]  # row -> seed -> result
Cells = List[str]


def read_runs(folder: str) -> Runs:
    """Reads the finished results of a folder; dense rows first, then by FLOPs and name.

    Raises:
        InputError: no result there, or a file that is none.
    """
    found: Runs = {}
    for name in sorted(os.listdir(folder)):
        if name.endswith(".json"):
            result = read_json_object(os.path.join(folder, name))
            parts = {"seed", "failed"} if "failed" in result else {"seed", "tasks", "traffic", "by_example"}
            if not isinstance(result.get("row"), str) or not parts <= set(result):
                raise InputError("{}: no result of run.py".format(os.path.join(folder, name)))
            if "failed" not in result:
                found.setdefault(result["row"], {})[result["seed"]] = result
    if not found:
        raise InputError("{}: holds no results".format(folder))
    order = sorted(found, key=lambda row: (row not in PLAIN, -_flops(row), row))
    return {row: found[row] for row in order}


def _flops(row: str) -> float:
    tail = row.rpartition("-")[2]
    return float(tail) if tail.startswith("0.") else 1.0


def tasks_of(runs: Runs) -> List[str]:
    """Returns the tasks that all results have."""
    results = [result for seeds in runs.values() for result in seeds.values()]
    return [task for task in KINDS if all(task in result["tasks"] for result in results)]


def mean_of(seeds: Mapping[int, Dict[str, Any]], *names: str) -> float:
    """Averages a figure over a row's seeds."""
    values = []
    for result in seeds.values():
        value: Any = result
        for name in names:
            value = value[name]
        values.append(float(value))
    return float(np.mean(values))


def quality(runs: Runs) -> Iterator[Cells]:
    """Scores of every row."""
    tasks = tasks_of(runs)
    measures = [MAIN[KINDS[task]] for task in tasks]
    yield ["row (seeds)", "FLOPs", *("{} {}".format(TITLES[a], NAMES[b]) for a, b in zip(tasks, measures))]
    for row, seeds in runs.items():
        scores = ["{:.1f}".format(mean_of(seeds, "tasks", *pair)) for pair in zip(tasks, measures)]
        flops = "{:.3f}".format(mean_of(seeds, "traffic", "flops_corpus"))
        yield ["`{}` ({})".format(row, len(seeds)), flops, *scores]


def pairs_of(runs: Runs) -> Iterator[Tuple[str, str]]:
    """Names the rows that are compared: with their controls, then with the dense model trained as long."""
    dense = next((row for row in reversed(PLAIN) if row in runs), None)
    for row in runs:
        family, _, flops = row.rpartition("-")
        for control in CONTROLS.get(family, ()):
            other = "{}-{}".format(control, flops)
            if other in runs:
                yield row, other
    for row in runs:
        if dense and row not in PLAIN:
            yield row, dense


def differences(runs: Runs, names: Optional[Sequence[Tuple[str, str]]] = None) -> Iterator[Cells]:
    """Losses and scores of a row minus another's.

    Args:
        runs: of :func:`read_runs`.
        names: which pairs; None = those of :func:`pairs_of`.
    """
    tasks = tasks_of(runs)
    measures = [MAIN[KINDS[task]] for task in tasks]
    yield ["row - control", "loss, nats", *("{} {}".format(TITLES[a], NAMES[b]) for a, b in zip(tasks, measures))]
    for row, other in names or pairs_of(runs):
        seeds = [seed for seed in runs[row] if seed in runs[other]]
        if seeds:
            found = compare_many([(runs[row][seed], runs[other][seed]) for seed in seeds])
            cells = [show(found["traffic"][LOSS])] if "traffic" in found else [""]
            cells += [
                "{difference:+.1f} [{low:+.1f}, {high:+.1f}]".format(**found[a][b]) for a, b in zip(tasks, measures)
            ]
            yield ["`{}` - `{}`".format(row, other), *cells]


def spending(runs: Runs) -> Iterator[Cells]:
    """What share of its dense FLOPs each task takes."""
    tasks = tasks_of(runs)
    yield ["row", "paths", *(TITLES[task] for task in tasks)]
    for row, seeds in runs.items():
        if row not in PLAIN:
            shares = ["{:.2f}".format(mean_of(seeds, "tasks", task, "flops_corpus")) for task in tasks]
            yield ["`{}`".format(row), "{:.0f}".format(mean_of(seeds, "distinct_paths")), *shares]


def inside(runs: Runs) -> Iterator[Cells]:
    """Kinds of questions within a task: what rows by kind, else learned ones, spend on them and gain over one path."""
    shown = ("clustered",) if any(row.startswith("clustered") for row in runs) else LEARNED
    yield ["row - control", "questions", "FLOPs of row; control", "loss, nats", "F1"]
    for row, other in pairs_of(runs):
        if not row.startswith(shown) or not other.startswith("static"):
            continue
        seeds = [seed for seed in runs[row] if seed in runs[other]]
        for kind, places in members(runs[row][seeds[0]] if seeds else {}).items():
            pairs = [(only(runs[row][seed], places), only(runs[other][seed], places)) for seed in seeds]
            found = compare_many(pairs)["squad"]
            spent = [
                float(np.mean([runs[name][seed]["groups"]["squad"][kind]["flops_corpus"] for seed in seeds]))
                for name in (row, other)
            ]
            label = "{} ({})".format(kind, len(places))
            gain = "{difference:+.1f} [{low:+.1f}, {high:+.1f}]".format(**found["f1"])
            yield ["`{}` - `{}`".format(row, other), label, "{:.2f}; {:.2f}".format(*spent), show(found[LOSS]), gain]


def members(result: Mapping[str, Any]) -> Dict[str, List[int]]:
    """Returns the places of SQuAD's questions by their kinds, the most frequent first; rare kinds are left out."""
    groups = {kind: one["places"] for kind, one in result.get("groups", {}).get("squad", {}).items()}
    order = sorted(groups, key=lambda kind: (-len(groups[kind]), kind))
    return {kind: groups[kind] for kind in order if len(groups[kind]) >= LEAST_QUESTIONS}


def only(result: Mapping[str, Any], places: Sequence[int]) -> Dict[str, Any]:
    """Returns of a result what :func:`score.compare_many` reads, of some of SQuAD's questions."""
    values = result["by_example"]["squad"]
    kept = {name: [values[name][place] for place in places] for name in (LOSS, "f1")}
    return {"traffic": {"shares": {"squad": 1.0}}, "by_example": {"squad": kept}}


def unseen(runs: Runs) -> Iterator[Cells]:
    """The task that no training saw."""
    yield ["row", "paths", "FLOPs", "R-L", "loss - static's", "R-L - static's"]
    for row, seeds in runs.items():
        figures = ["{:.3f}".format(mean_of(seeds, "traffic", "flops_corpus"))]
        figures.append("{:.1f}".format(mean_of(seeds, "tasks", UNSEEN, "rougeL")))
        cells = ["", ""]
        control = "static-{}".format(row.rpartition("-")[2])
        shared = [seed for seed in seeds if seed in runs.get(control, {})]
        if shared and row != control:
            found = compare_many([(seeds[seed], runs[control][seed]) for seed in shared])[UNSEEN]
            gain = "{difference:+.1f} [{low:+.1f}, {high:+.1f}]".format(**found["rougeL"])
            cells = [show(found[LOSS]), gain]
        yield ["`{}` ({})".format(row, len(seeds)), "{:.0f}".format(mean_of(seeds, "distinct_paths")), *figures, *cells]


def worth(folder: str) -> Iterator[Cells]:
    """What deciding by length, kind or task is worth before any training, of ``told.py worth``, one file a budget.

    Raises:
        InputError: a file of something else.
    """
    yield ["FLOPs", "one path", *("by {} - one path".format(rule) for rule in WORTH), "by kind - by length"]
    for name in sorted(os.listdir(folder), reverse=True):
        found = read_json_object(os.path.join(folder, name))
        if not isinstance(found.get("rules"), dict) or not {"one", *WORTH} <= set(found["rules"]):
            raise InputError("{}: nothing that told.py worth wrote".format(os.path.join(folder, name)))
        gains = [found["rules"][rule]["gain_over_one"] for rule in WORTH]
        cells = [show({"difference": -one["difference"], "low": -one["high"], "high": -one["low"]}) for one in gains]
        rise = "{:+.3f}".format(found["rules"]["one"]["rise"])
        yield ["{:.2f}".format(found["flops_corpus"]), rise, *cells, show(found["kind_less_length"])]


def draw_paths(runs: Runs, row: str, path: str) -> None:
    """Draws how often each task skips each sub-layer, one panel a task; grey where it always runs.

    Raises:
        InputError: no such row.
    """
    from sd_fairseq.evaluation.plots import load_pyplot

    if row not in runs:
        raise InputError("row {!r} is none of {}".format(row, ", ".join(runs)))
    plt, tasks = load_pyplot(), tasks_of(runs)
    result = runs[row][min(runs[row])]
    figure, panels = plt.subplots(1, len(tasks), figsize=(3.1 * len(tasks) + 0.6, 2.6), sharey=True, squeeze=False)
    for axes, task in zip(panels[0], tasks):
        rates = result["tasks"][task]["skip_rates_by_layer"]
        sites = [site for site in SITES if site in rates]
        depth = max(len(rates[site]) for site in sites)
        cells = [[np.nan if one is None else 100 * one for one in rates[site]] for site in sites]
        grid = np.array([line + [np.nan] * (depth - len(line)) for line in cells])
        axes.set_facecolor("#d9d9d9")
        image = axes.imshow(grid, cmap="cividis", vmin=0, vmax=100, aspect="auto")
        axes.set_xticks(range(depth))
        axes.set_xticklabels([str(layer + 1) for layer in range(depth)])
        axes.set_yticks(range(len(sites)))
        axes.set_yticklabels([SITES[site] for site in sites])
        axes.set_xlabel("layer")
        share = result["tasks"][task]["flops_corpus"]
        axes.set_title("{}: {:.0f} % of its FLOPs".format(TITLES[task], 100 * share), fontsize=10)
    figure.colorbar(image, ax=list(panels[0]), fraction=0.02, pad=0.01).set_label("requests that skip it (%)")
    with whole(path) as part:
        figure.savefig(part, dpi=200, bbox_inches="tight", format="png")
    plt.close(figure)


def work(args: argparse.Namespace) -> None:
    """Prints the tables, or draws the picture."""
    if not os.path.isdir(args.results):
        raise InputError("{}: no such folder".format(args.results))
    runs = read_runs(args.results)
    if args.picture:
        check_places([args.picture], [])
        draw_paths(runs, args.row, args.picture)
        return
    tables = (unseen,) if UNSEEN in tasks_of(runs) else (quality, differences, spending, inside)
    for table in tables:
        header, *lines = table(runs)
        print(tabulate(lines, header, tablefmt="github", disable_numparse=True), end="\n\n")


def build_parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", help="folder of ROW-SEED.json")
    parser.add_argument("--picture", help="PNG to write: which sub-layers each task skips")
    parser.add_argument("--row", default="recommended-0.7", help="of the picture (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(run(work, build_parser().parse_args(), "mixed_table.py"))
