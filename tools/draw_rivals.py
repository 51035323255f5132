"""Draws quality against FLOPs, and against seconds, of rivals beside this package's rows.

python tools/draw_rivals.py docs
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Callable, Dict, List, Optional, Sequence, Tuple

from learning_rows import compare_by_example, pair_by_seed
from rival_tables import OURS, TRAINED_ON, cost, read_rows, read_times, times_of
from row_names import split_row
from understanding_table import mean

from sd_fairseq.evaluation.plots import load_pyplot
from sd_fairseq.whole_files import whole

DPI = 240  # twice as fine as a screen
# name -> families, colour; each row's own name stands at its point
SERIES: Dict[str, Tuple[Sequence[str], str]] = {
    "learned per document (ours)": (
        ("recommended", "recommended-6", "recommended-int8", "tolerance", "joint-budget"),
        "#c8641b",
    ),
    "by position": (("hsd", "hsd-trained", "skipdecode", "uls"), "#2f6f9f"),
    "by confidence": (("calm", "calm-plain", "free"), "#7a4a9f"),
    "smaller or rounded": (
        ("student-6", "student-3", "distilled-6", "distilled-3", "layerdrop-6", "layerdrop-3", "int8", "dq-6"),
        "#4b8b3b",
    ),
}
LOWEST = -6.0  # rows that lose more ROUGE-L stand at the edge


def series_of(row: str) -> Optional[str]:
    """Names the series of a row; None = it is in none."""
    if row in OURS:
        return next(iter(SERIES))
    return next((label for label, (families, _) in SERIES.items() if split_row(row)[0] in families), None)


def draw(path: str, place_of: Callable[[str], Optional[float]], label: str) -> int:
    """Draws ROUGE-L minus the dense model trained as long; returns the number of rows drawn.

    Args:
        path: PNG file to write; nothing is written where there is no row.
        place_of: a row's place on the horizontal axis; None = unknown.
        label: of that axis.
    """
    rows = read_rows()
    points: List[Tuple[str, str, float, Dict[str, float]]] = []
    for name, row in rows.items():
        series, place = series_of(name), place_of(name)
        pairs = pair_by_seed(row, rows[TRAINED_ON])
        if series is not None and place is not None and pairs:
            points.append((series, name, place, compare_by_example(pairs)))
    if not points:
        return 0
    plt = load_pyplot()
    figure, axes = plt.subplots(figsize=(7.6, 5.0))
    axes.axhline(0, color="#22282d", linewidth=0.8)
    for series, name, place, test in points:
        color, lost = SERIES[series][1], max(test["difference"], LOWEST)
        axes.vlines(place, max(test["low"], LOWEST), max(test["high"], LOWEST), color=color, linewidth=1.2, alpha=0.7)
        axes.plot(place, lost, color=color, marker="o" if test["difference"] >= LOWEST else "v", markersize=5)
        axes.annotate(
            name, (place, lost), xytext=(5, 3), textcoords="offset points", fontsize=6, color=color, rotation=20
        )
    for number, series in enumerate(dict.fromkeys(one[0] for one in points)):
        axes.text(0.02, 0.05 + 0.05 * number, series, transform=axes.transAxes, fontsize=10, color=SERIES[series][1])
    axes.set_ylim(LOWEST - 0.3, None)
    axes.set_xlabel(label)
    axes.set_ylabel("ROUGE-L minus dense trained as long")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    with whole(path) as part:
        figure.savefig(part, dpi=DPI, bbox_inches="tight", format="png")
    plt.close(figure)
    return len(points)


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Draws both pictures into a folder; returns the exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if len(given) != 1 or given[0].startswith("-"):
        print("usage: draw_rivals.py FOLDER", file=sys.stderr)
        return 2
    rows, times = read_rows(), read_times().get("1", {})

    def seconds(name: str) -> Optional[float]:
        own, _ = times_of(times, name)
        dense, _ = times_of(times, "dense")
        return mean(own) / mean(dense) if own and dense else None

    draw(
        str(Path(given[0]) / "rivals_flops.png"), lambda name: cost(rows, name), "FLOPs a document, share of the base's"
    )
    draw(str(Path(given[0]) / "rivals_seconds.png"), seconds, "seconds at batch 1, share of the base's")
    return 0


if __name__ == "__main__":
    sys.exit(main())
