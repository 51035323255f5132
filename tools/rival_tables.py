"""Rows of results/rivals beside this package's own of results/debian/trained: the tables of docs/rivals.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

from learning_results import read_results
from learning_rows import GridRow, collect, compare_by_example, pair_by_seed
from row_names import row_order, split_row
from understanding_table import mean

RESULTS = Path(__file__).resolve().parents[1] / "results"
TIMES = RESULTS / "speed" / "rivals.json"
BASE, TRAINED_ON, BEAM_1 = "dense", "dense-trained-on", "dense-beam-1"
OURS = ("recommended", "recommended-6-3", "tolerance-0.25", "joint-budget-0.6", "joint-budget-0.5")
CONTROLS = ("static-0.7", "static-0.79", "random-0.7", "random-0.79")
ONE_HYPOTHESIS = "beam:1"  # in a signature
FREE_OF_COST = "lead"
NEAR = 0.04  # relative FLOPs, at most, between a rival and the row of ours that stands beside it
Cells = List[str]


def read_rows(folder: Path = RESULTS) -> Dict[str, GridRow]:
    """Reads rivals and our rows; of a row that both folders hold, ours counts."""
    rivals = folder / "rivals"
    rows = collect(read_results(str(rivals))) if any(rivals.glob("*.json")) else {}
    own = collect(read_results(str(folder / "debian" / "trained")))
    rows.update({name: own[name] for name in (BASE, TRAINED_ON, *OURS, *CONTROLS) if name in own})
    made = {name: row for name, row in rows.items() if row.runs}
    return {name: made[name] for name in sorted(made, key=row_order)}


def show(test: Dict[str, float]) -> str:
    """Renders a difference with its interval."""
    return "{difference:+.2f} [{low:+.2f}, {high:+.2f}]".format(**test)


def minus(rows: Dict[str, GridRow], row: str, other: str) -> str:
    """ROUGE-L of a row minus another's, seeds paired; empty where they share none."""
    pairs = pair_by_seed(rows[row], rows[other]) if other in rows and row != other else []
    return show(compare_by_example(pairs)) if pairs else ""


def cost(rows: Dict[str, GridRow], name: str) -> float:
    """FLOPs a document, as a share of what the base takes for it with four hypotheses."""
    base = mean(rows[BASE].values("gflops_per_example"))
    return mean(rows[name].values("gflops_per_example")) / base if split_row(name)[0] != FREE_OF_COST else 0.0


def counterpart(rows: Dict[str, GridRow], name: str) -> Optional[str]:
    """Names the row of ours that costs nearly as much as a rival; None = there is none.

    What keeps one hypothesis a document stands beside the base that does, too.
    """
    if name in OURS or split_row(name)[0] == FREE_OF_COST:
        return None
    if f"|{ONE_HYPOTHESIS}|" in rows[name].runs[0]["signature"]:
        return BEAM_1 if name != BEAM_1 and BEAM_1 in rows else None
    gaps = [(abs(cost(rows, one) - cost(rows, name)), one) for one in OURS if one in rows]
    return min(gaps)[1] if gaps and min(gaps)[0] <= NEAR else None


def quality() -> Iterator[Cells]:
    """Quality and FLOPs of all rows."""
    rows = read_rows()
    yield ["row", "seeds", "FLOPs", "ROUGE-L", "minus `dense-trained-on`", "minus its counterpart"]
    for name, row in rows.items():
        ours = counterpart(rows, name)
        beside = f"{minus(rows, name, ours)} (`{ours}`)" if ours and minus(rows, name, ours) else ""
        cells = [str(len(row.runs)), f"{cost(rows, name):.3f}", f"{mean(row.values('rougeL')):.2f}"]
        yield [f"`{name}`", *cells, minus(rows, name, TRAINED_ON), beside]


def methods() -> Iterator[Cells]:
    """What rivals need, and how often each decoder layer runs."""
    yield ["row", "batches", "beams", "exact caches", "% of tokens, by decoder layer", "chosen on `valid`"]
    for name, row in read_rows().items():
        run: Dict[str, Any] = row.runs[0]
        if "works" in run:
            works = ["yes" if run["works"][one] else "no" for one in ("batched", "beams", "exact_caches")]
            shares = [one["layer_shares"] for one in row.runs if one["layer_shares"]]
            layers = " ".join(f"{100 * mean(list(layer)):.0f}" for layer in zip(*shares))
            rules = {one["chosen"] for each in row.runs for one in each["tuning"].values()}
            yield [f"`{name}`", *works, layers, ", ".join(f"`{rule}`" for rule in sorted(rules))]


def read_times(path: Path = TIMES) -> Dict[str, Any]:
    """Reads what timing.py has measured; empty where it has not."""
    found: Dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["batches"] if path.exists() else {}
    return found


def times_of(figures: Dict[str, Any], row: str) -> Tuple[List[float], List[float]]:
    """Returns a row's medians in seconds, and its ratios to the dense row, one a seed."""
    own = [one for name, one in sorted(figures.items()) if name.rpartition("-")[0] == row]
    return [one["median"] for one in own], [one["times_as_fast"]["ratio"] for one in own]


def speed() -> Iterator[Cells]:
    """Seconds and memory of all rows."""
    yield ["row", "batch 1, s", "times as fast", "batch 16, s", "times as fast", "MB"]
    batches = read_times()
    if not batches:
        return
    names = dict.fromkeys(name.rpartition("-")[0] for name in batches["1"])
    for row in sorted(names, key=row_order):
        cells: Cells = []
        for size in ("1", "16"):
            seeds = [one for name, one in sorted(batches[size].items()) if name.rpartition("-")[0] == row]
            seconds, ratios = times_of(batches[size], row)
            spread = [bound for one in seeds for bound in one["times_as_fast"]["spread"]]
            fast = f"{mean(ratios):.2f} ({min(spread):.2f} to {max(spread):.2f})"
            cells += [f"{mean(seconds):.1f}", "" if row == BASE else fast]
        memory = [one["megabytes"] for name, one in batches["16"].items() if name.rpartition("-")[0] == row]
        yield [f"`{row}`", *cells, f"{mean(memory):.0f}"]
