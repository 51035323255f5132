"""The picture of the trade-off grid: ROUGE-L minus dense against FLOPs of generation, a marker a family of rows."""

from __future__ import annotations

from typing import Any, Dict, List, Sequence, Tuple

from row_names import split_row
from understanding_table import mean

from sd_fairseq.evaluation.plots import load_pyplot

MARKERS = "sovX^DP*<>phd8H1234"
COLORS = 10  # of the map "tab10"; with 19 markers no two of 190 families look alike
Runs = Sequence[Dict[str, Any]]
Interval = Tuple[float, float]


def draw_grid(rows: Dict[str, Runs], intervals: Dict[str, Interval], path: str) -> None:
    """Draws every row: its mean large, with its interval; its seeds small; rows that differ by a number are joined.

    Args:
        rows: name -> results of its seeds, at least one each, in the order of the table.
        intervals: name -> 95 % interval of its mean difference to dense, where that is known.
        path: PNG to write, whatever its ending.

    Raises:
        ValueError: matplotlib is missing.
    """
    plt = load_pyplot()
    figure, axes = plt.subplots(figsize=(8.6, 5.2))
    colors = plt.get_cmap("tab10")
    axes.axhline(0, color="#7f7f7f", linestyle="--", linewidth=1)
    for place, (family, members) in enumerate(group_families(rows).items()):
        marker, color = choose_look(place)
        look = {"marker": marker, "color": colors(color)}
        runs = [run for name in members for run in rows[name]]
        axes.plot(*_points(runs), linestyle="none", markersize=3.5, alpha=0.55, **look)
        means = [[mean(values) for values in _points(rows[name])] for name in members]
        label = family if len(members) == 1 and members[0] == family else f"{family} ({_numbers(members)})"
        line = "-" if len(members) > 1 else "none"
        axes.plot(*zip(*means), linestyle=line, linewidth=0.8, markersize=9, label=label, **look)
        for name, (flops, _) in zip(members, means):
            if name in intervals and name != "dense":
                axes.vlines(flops, *intervals[name], color=look["color"], linewidth=1.2, alpha=0.8)
    axes.set_xlabel("FLOPs of generation, relative to the dense path")
    axes.set_ylabel("ROUGE-L minus dense")
    axes.set_title("Quality against FLOPs: means with 95 % intervals (paired bootstrap), seeds (small)", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    figure.savefig(path, dpi=150, bbox_inches="tight", format="png")
    plt.close(figure)


def choose_look(place: int) -> Tuple[str, int]:
    """Returns the marker and the number of the colour of the family that is drawn in this place, from 0 on."""
    return MARKERS[place % len(MARKERS)], place % COLORS


def group_families(rows: Dict[str, Runs]) -> Dict[str, List[str]]:
    """Groups the names of rows by family, in their order."""
    families: Dict[str, List[str]] = {}
    for name in rows:
        families.setdefault(split_row(name)[0], []).append(name)
    return families


def _points(runs: Runs) -> Tuple[List[float], List[float]]:
    return [run["flops_generation"] for run in runs], [run["rougeL_minus_dense"]["difference"] for run in runs]


def _numbers(members: Sequence[str]) -> str:
    return ", ".join(f"{number:g}" for _, number in map(split_row, members) if number is not None)
