#!/usr/bin/env python3
"""Draws time against FLOPs, both relative to the dense path: the encoder, the decoder and the whole generation.

    python benchmarks/saving.py --sweep --output runs/bench/sweep.json
    python benchmarks/plot.py runs/bench/sweep.json

A point on the diagonal saves as much time as FLOPs; one below it more, one above it less.
"""

import argparse
import json
import os
from typing import Any, Dict, List

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  # the backend must be chosen first
from matplotlib.figure import Figure  # noqa: E402

CASE = "skip-rate-sweep"
MARKERS = {"encoder": "^", "decoder": "v", "generation": "o"}


def lines_of(rows: List[Dict[str, Any]]) -> Dict[str, List[Dict[str, Any]]]:
    """Groups the rows of sweeps into lines: one a part and setting, in the order of FLOPs."""
    lines: Dict[str, List[Dict[str, Any]]] = {}
    for row in (row for row in rows if row["case"] == CASE):
        name = f"{row['part']}, {row['precision']}, source {row['source']}, beam {row['beam']}"
        lines.setdefault(name, []).append(row)
    return {name: sorted(lines[name], key=lambda row: row["flops_ratio"]) for name in sorted(lines)}


def draw(rows: List[Dict[str, Any]]) -> Figure:
    """Draws every line with the range of its single rounds, and the diagonal.

    Raises:
        ValueError: there is no sweep among the rows.
    """
    lines = lines_of(rows)
    if not lines:
        raise ValueError("no skip-rate sweep among the results: run benchmarks/saving.py --sweep first")
    figure, axes = plt.subplots(figsize=(6, 4.5))
    for name, points in lines.items():
        flops, times = [row["flops_ratio"] for row in points], [1 / row["ratio"] for row in points]
        below = [max(0.0, time - 1 / row["spread"][1]) for time, row in zip(times, points)]
        above = [max(0.0, 1 / row["spread"][0] - time) for time, row in zip(times, points)]
        axes.errorbar(flops, times, yerr=[below, above], marker=MARKERS[points[0]["part"]], capsize=2, label=name)
    axes.plot([0, 1], [0, 1], linestyle=":", color="grey", label="time = FLOPs")
    axes.set_xlabel("FLOPs relative to the dense path")
    axes.set_ylabel("time relative to the dense path")
    axes.legend()
    figure.tight_layout()
    return figure


def save(figure: Figure, path: str) -> None:
    """Writes a figure as PNG, beside and renamed."""
    figure.savefig(path + ".tmp", dpi=120, format="png")
    os.replace(path + ".tmp", path)
    plt.close(figure)
    print(f"written: {path}")


def main() -> None:
    """Reads a sweep and draws it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sweep", help="JSON file of benchmarks/saving.py --sweep")
    parser.add_argument("--output", help="PNG file; beside the sweep and with its name by default")
    args = parser.parse_args()
    try:
        with open(args.sweep, encoding="utf-8") as file:
            figure = draw(json.load(file))
    except (OSError, ValueError) as error:
        raise SystemExit(f"{args.sweep}: {error}") from None
    save(figure, args.output or os.path.splitext(args.sweep)[0] + ".png")


if __name__ == "__main__":
    main()
