#!/usr/bin/env python3
"""Draws time against FLOPs and prints the README's table from the JSON files of the benchmarks.

python benchmarks/table.py results/bench
"""

import argparse
import glob
import json
import os
from typing import Any, Dict, List

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  # the backend must be chosen first
from tabulate import tabulate  # noqa: E402


def read(folder: str) -> List[Dict[str, Any]]:
    """Reads the rows of every JSON file in ``folder``."""
    rows: List[Dict[str, Any]] = []
    for path in sorted(glob.glob(os.path.join(folder, "*.json"))):
        with open(path, encoding="utf-8") as file:
            rows += json.load(file)
    if not rows:
        raise SystemExit(f"no benchmark results in {folder}: run benchmarks/generation.py or make bench first")
    return rows


def describe(row: Dict[str, Any]) -> str:
    """What was measured beside the case: precision, sizes, skip rates."""
    names = ("size", "precision", "rates", "batch", "source", "target", "beam", "constraint_interval")
    return ", ".join(f"{name} {row[name]}" for name in names if name in row)


def table(rows: List[Dict[str, Any]]) -> str:
    """The README's table: both numbers of every ratio."""
    lines = []
    for row in rows:
        if row["case"] == "skip-rate-sweep":
            continue
        unit = row.get("unit", "s")
        low, high = row["spread"]
        extra = [f"{name} {row[name]}" for name in MEASURES if name in row]
        ours, peer = f"{row['ours_s']:.4g} {unit}", f"{row['peer']} {row['peer_s']:.4g} {unit}"
        lines.append(
            (row["case"], describe(row), ours, peer, f"{row['ratio']:.2f} [{low:.2f}, {high:.2f}]", "; ".join(extra))
        )
    return tabulate(lines, headers=("case", "setting", "ours", "peer", "peer / ours", "beside"), tablefmt="github")


MEASURES = ("flops_ratio", "weights_ratio", "time_saved_per_flops_saved", "time_per_kept_weights", "policy_share")


def draw(rows: List[Dict[str, Any]], path: str) -> None:
    """Draws the sweep: time of the path relative to dense against its FLOPs."""
    figure, axes = plt.subplots(figsize=(5, 4))
    groups: Dict[str, List[Dict[str, Any]]] = {}
    for row in rows:
        if row["case"] == "skip-rate-sweep":
            groups.setdefault(f"{row['precision']}, source {row['source']}, beam {row['beam']}", []).append(row)
    for name, group in sorted(groups.items()):
        group.sort(key=lambda row: row["flops_ratio"])
        axes.plot([row["flops_ratio"] for row in group], [1 / row["ratio"] for row in group], marker="o", label=name)
    axes.plot([0, 1], [0, 1], linestyle=":", color="grey", label="time = FLOPs")
    axes.set_xlabel("FLOPs relative to the dense path")
    axes.set_ylabel("time relative to the dense path")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Prints the table and writes ``time_and_flops.png`` into the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="of the benchmarks' JSON files")
    args = parser.parse_args()
    rows = read(args.folder)
    print(table(rows))
    if any(row["case"] == "skip-rate-sweep" for row in rows):
        draw(rows, os.path.join(args.folder, "time_and_flops.png"))


if __name__ == "__main__":
    main()
