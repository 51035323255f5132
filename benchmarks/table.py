#!/usr/bin/env python3
"""Prints the README's table, and draws time against FLOPs, from the JSON files of the benchmarks.

python benchmarks/table.py results/speed/cpu
"""

import argparse
import glob
import json
import os
from typing import Any, Dict, List

import plot
from tabulate import tabulate


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
        if row["case"] == plot.CASE:
            continue
        unit = row.get("unit", "s")
        low, high = row["spread"]
        extra = [f"{name} {row[name]}" for name in MEASURES if name in row]
        ours, peer = f"{row['ours_s']:.4g} {unit}", f"{row['peer']} {row['peer_s']:.4g} {unit}"
        ratio, memory = f"{row['ratio']:.2f} [{low:.2f}, {high:.2f}]", peak_memory(row)
        lines.append((row["case"], describe(row), ours, peer, ratio, memory, "; ".join(extra)))
    headers = ("case", "setting", "ours", "peer", "peer / ours", "peak memory, GB", "beside")
    return tabulate(lines, headers=headers, tablefmt="github")


def peak_memory(row: Dict[str, Any]) -> str:
    """Ours and the peer's, each of a process of its own; nothing where it was not measured."""
    if "ours_memory_gb" not in row or "peer_memory_gb" not in row:
        return ""
    return f"ours {row['ours_memory_gb']:.2f}, peer {row['peer_memory_gb']:.2f}"


MEASURES = [
    *("flops_ratio", "weights_ratio", "time_saved_per_flops_saved", "time_per_kept_weights", "policy_share"),
    "same_tokens",
]


def main() -> None:
    """Prints the table and writes ``time_and_flops.png`` into the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="of the benchmarks' JSON files")
    args = parser.parse_args()
    rows = read(args.folder)
    print(table(rows))
    if plot.lines_of(rows):
        plot.save(plot.draw(rows), os.path.join(args.folder, "time_and_flops.png"))


if __name__ == "__main__":
    main()
