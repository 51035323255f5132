"""The tables of the documents, from results/ and docs/matrix.json; none has more than six columns.

    python tools/document_tables.py docs/results.md docs/speed.md docs/compatibility.md

puts each table between its lines ``<!-- table NAME -->`` and ``<!-- /table -->``; ``--check`` says what differs.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence

from estimator_table import ROWS
from learning_results import CONSTRAINT, read_results
from learning_rows import GridRow, collect, compare_by_example, pair_by_seed
from tabulate import tabulate
from understanding_table import SITES, mean
from understanding_table import collect as collect_tasks
from understanding_table import read_results as read_tasks

from sd_fairseq.whole_files import write_text

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
BLOCK = re.compile(r"^<!-- table (\S+) -->\n(.*?)^<!-- /table -->$", re.MULTILINE | re.DOTALL)
MOST_COLUMNS = 6
MATRIX = ("Python", "fairseq", "torch", "numpy", "result", "date")
Cells = List[str]


def show(test: Dict[str, float], digits: int = 2) -> str:
    """Renders a difference with its interval."""
    return "{difference:+.{d}f} [{low:+.{d}f}, {high:+.{d}f}]".format(d=digits, **test)


def load(place: str) -> Any:
    """Reads a JSON file of results/."""
    return json.loads((RESULTS / place).read_text(encoding="utf-8"))


def grid(folder: str) -> Dict[str, GridRow]:
    """Reads a folder of rows."""
    return collect(read_results(str(RESULTS / folder)))


def minus(rows: Dict[str, GridRow], row: str, other: str) -> str:
    """ROUGE-L of a row minus another's, all seeds together; empty for itself or where the other is missing."""
    pairs = pair_by_seed(rows[row], rows.get(other, GridRow()))
    return show(compare_by_example(pairs)) if pairs and row != other else ""


def flops(row: GridRow, name: str = "flops_generation") -> str:
    """Mean relative FLOPs, and the range where seeds differ by more than half a percent."""
    values = row.values(name)
    if max(values) - min(values) <= 0.005:
        return f"{mean(values):.3f}"
    return f"{mean(values):.3f} ({min(values):.3f}-{max(values):.3f})"


def quality() -> Iterator[Cells]:
    """Rows trained in full."""
    rows = grid("debian/trained")
    yield ["row", "FLOPs", "ROUGE-L", "minus the base", "seeds that lose", "minus `dense-trained-on`"]
    for name, row in rows.items():
        losses = sum(run["significant_loss"] for run in row.runs)
        lost = "" if name == "dense" else f"{losses} of {len(row.runs)}"
        cells = [flops(row), f"{mean(row.values('rougeL')):.2f}", minus(rows, name, "dense"), lost]
        yield [f"`{name}`", *cells, minus(rows, name, "dense-trained-on")]


def controls() -> Iterator[Cells]:
    """Rows against what costs as much without a policy that has learned."""
    rows = grid("debian/trained")
    yield ["row", "FLOPs", "control", "its FLOPs", "row minus control"]
    for name, control in (
        *(("tolerance-0.25", "random-0.79"), ("budget-0.7", "random-0.7"), ("joint-budget-0.7", "random-0.7")),
        *(("tolerance-0.25", "static-0.79"), ("budget-0.7", "static-0.7"), ("joint-budget-0.7", "static-0.7")),
        ("recommended", "random-0.7"),
        ("recommended", "static-0.7"),
    ):
        if name in rows:
            yield [f"`{name}`", flops(rows[name]), f"`{control}`", flops(rows[control]), minus(rows, name, control)]
    rows = grid("debian/all_lengths")
    for name in ("tolerance-0.25", "fitted-0.78"):
        control = "static-0.79"
        cells = [flops(rows[name]), f"`{control}`, all lengths", flops(rows[control]), minus(rows, name, control)]
        yield [f"`{name}`, all lengths, seed 1", *cells]


PAPERS = (
    *("encoder-only", "decoder-only", "token-only", "tokens-too", "layerwise", "as-printed", "lexicographic"),
    *("fixed-0.2", "fixed-1.0", "fixed-1.5", "random-deployed", "score-function", "tolerance-0.25"),
)
ONLY_PAPERS = set(PAPERS) - {"score-function", "tolerance-0.25", "tokens-too"}


def policy(names: Optional[Sequence[str]] = None) -> Iterator[Cells]:
    """What a policy decides before the backbone adapts.

    Args:
        names: which rows; None = those that stand in no table of the paper.
    """
    rows = grid("debian/policy_only")
    rows = {name: rows[name] for name in names or [one for one in rows if one not in ONLY_PAPERS] + ["dense"]}
    rows.setdefault("dense", grid("debian/policy_only")["dense"])
    yield ["row", "FLOPs", "minus the base", "paths", "beyond its tolerance, nats"]
    for name, row in rows.items():
        found = [run[CONSTRAINT]["violation"]["difference"] for run in row.runs if CONSTRAINT in run]
        beyond = f"{mean(found):+.3f} ({min(found):+.3f} to {max(found):+.3f})" if found else ""
        paths = f"{mean(row.values('distinct_paths')):.0f}"
        if name != "dense":
            yield [f"`{name}`", flops(row), minus(rows, name, "dense"), paths, beyond]


def skipped() -> Iterator[Cells]:
    """Percent skipped by site, rows trained in full."""
    yield ["row, % skipped", *SITES.values()]
    for name, row in grid("debian/trained").items():
        if name.split("-")[0] not in ("dense", "random", "static"):
            rates = [[100 * run["skip_rates"].get(site, 0.0) for run in row.runs] for site in SITES]
            yield [f"`{name}`", *(f"{mean(values):.0f}" for values in rates)]


def estimators() -> Iterator[Cells]:
    """How noisy an estimator is, and where its policy ends."""
    rows = grid("debian/policy_only")
    yield ["estimator", "noise / signal", "seconds", "row", "FLOPs", "minus the base"]
    for one in load("debian/noise.json")["estimators"]:
        figures = [one["estimator"], f"{one['noise_to_signal']:.1f}", f"{one['seconds']:.2f}"]
        name = ROWS.get(one["estimator"])
        yield figures + ([f"`{name}`", flops(rows[name]), minus(rows, name, "dense")] if name else ["", "", ""])


def fits() -> Iterator[Cells]:
    """What decisions per input are worth in nats."""
    yield ["data, FLOPs averaged over, policy sees", "FLOPs", "policy gains", "held out", "four lengths gain", "paths"]
    for path in sorted(RESULTS.glob("*/fits/*.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        average, _, rest = path.stem.partition("-")
        seen = rest.partition("-")[2] or "state"
        name = ", ".join((path.parts[-3], average, seen))
        gains = [report["gain_over_static"], report["held_out"]["gain_over_static"], report["gain_of_length_ranges"]]
        gained = [show(gain, 3) for gain in gains]
        yield [name, f"{report['flops_generation']:.3f}", *gained, str(report["distinct_paths"])]


def mixture() -> Iterator[Cells]:
    """The mixture of sources, backbone trained on the paths."""
    yield ["row", "seeds", "FLOPs", "FLOPs of the corpus", "ROUGE-L", "minus the base"]
    for folder in ("mixture/trained", "mixture/corpus_trained"):
        rows = grid(folder)
        for name, row in rows.items():
            parts = [run["gflops_per_example"] / run["gflops_per_example_dense"] for run in row.runs]
            seeds = ", ".join(str(run["seed"]) for run in row.runs)
            cells = [flops(row), f"{mean(parts):.3f}", f"{mean(row.values('rougeL')):.2f}"]
            if name != "dense" or folder == "mixture/trained":
                yield [f"`{name}`", seeds, *cells, minus(rows, name, "dense")]


def tasks() -> Iterator[Cells]:
    """Classification and question answering."""
    yield ["task", "metric", "dense", "switchable", "one score's noise", "FLOPs"]
    for (task, metric), rows in collect_tasks(read_tasks(str(RESULTS / "tasks"))).items():
        cell = rows["switchable"]
        share = mean(cell.values) / 100
        noise = 100 * (share * (1 - share) / cell.examples) ** 0.5
        scores = [f"{mean(rows[row].values):.1f}" for row in ("dense", "switchable")]
        yield [task, metric, *scores, f"{noise:.1f}", f"{mean(cell.flops):.2f}"]


def timed(files: Sequence[str], keep: Callable[[Dict[str, Any]], bool]) -> Iterator[Cells]:
    """Wall-clock rows beside a peer."""
    yield ["ours", "seconds", "beside", "its seconds", "times as fast", "FLOPs"]
    for row in (row for name in files for row in load("speed/" + name) if keep(row)):
        what = "at the paper's rates" if "paper-rates" in row["case"] else "nothing skipped"
        precision = next(word for word in row["case"].split("-") if word in ("fp32", "bf16", "int8", "fp16"))
        ratio = "{:.2f} [{:.2f}, {:.2f}]".format(row["ratio"], *row["spread"])
        share = f"{row['flops_ratio']:.2f}" if "flops_ratio" in row else "1"
        peer = row["peer"] + (", nothing skipped" if row["peer"].startswith("ours") else "")
        yield [f"{precision}, {what}", f"{row['ours_s']:.2f}", peer, f"{row['peer_s']:.2f}", ratio, share]


def shapes() -> Iterator[Cells]:
    """Wall-clock by batch and length."""
    yield ["batch", "source", "fairseq, s", "ours, s", "times as fast", "with skipping"]
    found = [row for name in ("lengths", "batches") for row in load(f"speed/cpu/generation_{name}.json")]
    for row in found:
        if row["case"] == "dense-bf16-vs-fairseq":
            same = [one for one in found if (one["batch"], one["source"]) == (row["batch"], row["source"])]
            skipping = next(one for one in same if one["case"] == "paper-rates-bf16-vs-fairseq-dense")
            ratios = ["{:.2f} [{:.2f}, {:.2f}]".format(one["ratio"], *one["spread"]) for one in (row, skipping)]
            yield [str(row["batch"]), str(row["source"]), f"{row['peer_s']:.2f}", f"{row['ours_s']:.2f}", *ratios]


def families() -> Iterator[Cells]:
    """Wall-clock of pretrained models beside Hugging Face's."""
    yield ["model", "precision", "beam", "transformers, s", "ours, s", "times as fast"]
    for row in load("speed/cpu/families.json"):
        model = {"t5": "T5 small", "llama": "SmolLM2 135M"}[row["family"]]
        ratio = "{:.2f} [{:.2f}, {:.2f}]".format(row["ratio"], *row["spread"])
        seconds = [f"{row[name]:.2f}" for name in ("peer_s", "ours_s")]
        yield [model, row["precision"], str(row["beam"]), *seconds, ratio]


def matrix() -> Iterator[Cells]:
    """What ``make matrix`` found last."""
    yield list(MATRIX)
    for row in json.loads((ROOT / "docs" / "matrix.json").read_text(encoding="utf-8")).values():
        yield [str(row[name]) for name in MATRIX]


def mixed(name: str) -> Iterator[Cells]:
    """A table of mixed traffic, by its function's name in ``examples/mixed_traffic/mixed_table.py``."""
    sys.path.append(str(ROOT / "examples" / "mixed_traffic"))
    import mixed_table

    folder = RESULTS / "mixed_traffic"
    if name == "worth":
        yield from mixed_table.worth(str(folder / "worth"))
    else:
        yield from getattr(mixed_table, name)(mixed_table.read_runs(str(folder)))


def rivals(name: str) -> Iterator[Cells]:
    """A table of rivals, by its function's name in ``rival_tables``."""
    import rival_tables

    yield from getattr(rival_tables, name)()


TABLES: Dict[str, Callable[[], Iterator[Cells]]] = {
    **{"quality": quality, "controls": controls, "policy": policy, "skipped": skipped, "estimators": estimators},
    **{"fits": fits, "mixture": mixture, "tasks": tasks, "shapes": shapes, "matrix": matrix, "families": families},
    **{"mixed-" + name: partial(mixed, name) for name in ("quality", "differences", "spending", "worth", "inside")},
    **{"rivals-" + name: partial(rivals, name) for name in ("quality", "methods", "speed")},
    "policy-paper": lambda: policy(PAPERS),
    "speed-cpu": lambda: timed(["cpu/generation.json", "cpu/generation_int8.json"], lambda row: True),
    "speed-gpu": lambda: timed(["gpu/generation.json"], lambda row: True),
}


def render(name: str) -> str:
    """Renders a table, Markdown.

    Raises:
        ValueError: an unknown name, or a table of more than six columns.
    """
    if name not in TABLES:
        raise ValueError(f"table {name!r} is none of {', '.join(TABLES)}")
    header, *lines = TABLES[name]()
    if len(header) > MOST_COLUMNS or any(len(line) != len(header) for line in lines):
        raise ValueError(f"table {name!r}: {len(header)} columns, expected at most {MOST_COLUMNS}, and all lines alike")
    return tabulate(lines, header, tablefmt="github", disable_numparse=True)


def fill(text: str) -> str:
    """Puts the tables where a document wants them."""
    return BLOCK.sub(lambda found: f"<!-- table {found[1]} -->\n{render(found[1])}\n<!-- /table -->", text)


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("documents", nargs="+")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 where a table differs")
    options = parser.parse_args(arguments)
    code = 0
    try:
        for path in options.documents:
            text = Path(path).read_text(encoding="utf-8")
            filled = fill(text)
            if options.check and filled != text:
                print(f"{path}: tables differ from results/; run python tools/document_tables.py {path}")
                code = 1
            elif not options.check:
                write_text(path, filled)
    except (OSError, ValueError, KeyError) as error:
        print(f"document_tables: error: {error}", file=sys.stderr)
        return 1
    return code


if __name__ == "__main__":
    sys.exit(main())
