"""Draws the pictures of docs/results.md and docs/speed.md from results/.

python tools/draw_results.py docs
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

from document_tables import RESULTS, grid
from learning_rows import compare_by_example, pair_by_seed
from understanding_table import SITES, mean

from sd_fairseq.evaluation.plots import load_pyplot
from sd_fairseq.whole_files import whole

DPI = 240  # twice as fine as a screen
# label -> (rows, colour, where the label stands: row, offset in points)
SERIES: Dict[str, Tuple[Sequence[str], str, str, Tuple[int, int]]] = {
    "learned jointly; at 0.70 the preset": (
        ("joint-budget-0.5", "joint-budget-0.6", "recommended"),
        "#c8641b",
        "recommended",
        (8, 40),
    ),
    "policy first, then the backbone": (
        ("budget-0.5", "budget-0.6", "budget-0.7", "tolerance-0.25"),
        "#2f6f9f",
        "budget-0.5",
        (12, -6),
    ),
    "one static path": (("static-0.7", "static-0.79"), "#4b8b3b", "static-0.79", (10, -14)),
    "random decisions": (("random-0.7", "random-0.79"), "#7a7f85", "random-0.79", (10, -4)),
}
SOURCES = {"debian": "Debian", "scitldr": "SciTLDR", "xsum": "XSum", "cnndm": "CNN/DailyMail"}
# part of the model -> colour, the point where its name stands, offset
PARTS = {
    "encoder": ("#2f6f9f", 4, (10, -12)),
    "decoder": ("#c8641b", 3, (-58, 8)),
    "generation": ("#4b8b3b", 7, (-74, 4)),
}
# report of sd-explain-paths, the row's file -> name and colour
PATHS = (
    ("trained-0.7", "trained/budget-0.7-1", "budget 0.7, backbone trained", "#2f6f9f"),
    ("trained-0.5", "trained/budget-0.5-1", "budget 0.5, backbone trained", "#c8641b"),
)


def draw_quality(path: str) -> None:
    """Draws ROUGE-L minus the dense model trained as long against FLOPs, with paired intervals."""
    plt = load_pyplot()
    rows = grid("debian/trained")
    control = rows["dense-trained-on"]
    figure, axes = plt.subplots(figsize=(7.6, 4.6))
    axes.axhline(0, color="#22282d", linewidth=0.8)
    axes.text(0.975, 0.05, "dense, trained as long", ha="right", fontsize=9, color="#22282d")
    for label, (names, color, anchor, offset) in SERIES.items():
        points = []
        for name in names:
            test = compare_by_example(pair_by_seed(rows[name], control))
            flops = mean(rows[name].values("flops_generation"))
            points.append((flops, test["difference"]))
            axes.vlines(flops, test["low"], test["high"], color=color, linewidth=1.4, alpha=0.75)
            if name == anchor:
                place = {"xytext": offset, "textcoords": "offset points", "color": color, "fontsize": 10}
                axes.annotate(label, points[-1], **place)
        axes.plot(*zip(*points), color=color, marker="o", linewidth=1.4, markersize=6)
    axes.set_xlim(0.48, 0.98)
    axes.set_xlabel("FLOPs of generation, share of the dense path's")
    axes.set_ylabel("ROUGE-L minus dense trained as long")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    with whole(path) as part:
        figure.savefig(part, dpi=DPI, bbox_inches="tight", format="png")
    plt.close(figure)


def draw_speed(path: str) -> None:
    """Draws time against FLOPs over skip rates, beside the line on which all FLOPs saved are time saved."""
    plt = load_pyplot()
    rows: List[Dict[str, Any]] = json.loads((RESULTS / "speed/cpu/sweep.json").read_text(encoding="utf-8"))
    figure, axes = plt.subplots(figsize=(6.4, 4.6))
    axes.plot([0, 1], [0, 1], color="#22282d", linewidth=0.8, linestyle="--")
    axes.text(0.40, 0.36, "time falls as FLOPs do", fontsize=9, rotation=38, color="#22282d")
    for part, (color, place, offset) in PARTS.items():
        found = sorted((row["flops_ratio"], row["ours_s"] / row["peer_s"]) for row in rows if row["part"] == part)
        axes.plot(*zip(*found), color=color, marker="o", linewidth=1.4, markersize=5)
        axes.annotate(part, found[place], xytext=offset, textcoords="offset points", fontsize=10, color=color)
    axes.set_xlabel("share of the dense path's FLOPs")
    axes.set_ylabel("share of the dense path's time")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    with whole(path) as part:
        figure.savefig(part, dpi=DPI, bbox_inches="tight", format="png")
    plt.close(figure)


def draw_sources(path: str) -> None:
    """Draws what share of the FLOPs a source's documents take, and says what the paths skip."""
    plt = load_pyplot()
    figure, axes = plt.subplots(figsize=(7.6, 3.4))
    for report, row, label, color in PATHS:
        found = json.loads((RESULTS / f"mixture/paths/{report}.json").read_text(encoding="utf-8"))
        rates = json.loads((RESULTS / f"mixture/{row}.json").read_text(encoding="utf-8"))["skip_rates"]
        flops = [found["flops_by_domain"][source] for source in SOURCES]
        axes.plot(flops, range(len(SOURCES)), color=color, marker="o", linewidth=1.0, markersize=7)
        skips = [f"{name} {100 * rates[site]:.0f} %" for site, name in SITES.items() if rates.get(site, 0) >= 0.005]
        text = f"{label}: skips {', '.join(skips)}"
        axes.text(
            0.0, 1.24 - 0.08 * PATHS.index((report, row, label, color)), text, transform=axes.transAxes, color=color
        )
    axes.set_yticks(range(len(SOURCES)))
    axes.set_yticklabels(SOURCES.values())
    axes.set_xlabel("mean FLOPs of the source's documents, share of their dense paths'")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    with whole(path) as part:
        figure.savefig(part, dpi=DPI, bbox_inches="tight", format="png")
    plt.close(figure)


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Draws all pictures into a folder; returns the exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if len(given) != 1:
        print("usage: draw_results.py FOLDER", file=sys.stderr)
        return 2
    draw_quality(str(Path(given[0]) / "quality_and_flops.png"))
    draw_speed(str(Path(given[0]) / "time_and_flops.png"))
    draw_sources(str(Path(given[0]) / "paths_by_source.png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
