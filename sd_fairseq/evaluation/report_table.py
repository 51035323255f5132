"""The table of a report: one column a system, one row a figure, at most 100 characters wide."""

from __future__ import annotations

import textwrap
from typing import Any, Callable, Dict, List, Sequence, Tuple

WIDTH = 100
LABEL_WIDTH = 26
COLUMN_WIDTH = 16  # four systems beside the labels; more go into a block below
SITES = ("encoder_attention", "encoder_ffn", "decoder_attention", "decoder_cross_attention", "decoder_ffn", "token")
FIGURES: Sequence[Tuple[str, Callable[[Dict[str, Any]], str]]] = (
    ("FLOPs, generation", lambda system: f"{system['flops_generation']:.3f}"),
    ("FLOPs, paper", lambda system: f"{system['flops_paper']:.3f}"),
    ("FLOPs, corpus", lambda system: f"{system['flops_corpus']:.3f}"),
    ("GFLOPs / example", lambda system: f"{system['gflops_per_example']:.4f}"),
    ("seconds", lambda system: f"{system['seconds']:.1f}"),
)
PATHS: Sequence[Tuple[str, Callable[[Dict[str, Any]], str]]] = (
    ("distinct paths", lambda system: str(system["distinct_paths"])),
    ("top path, %", lambda system: f"{100 * system['top_path_share']:.1f}"),
    ("paths' entropy, bits", lambda system: f"{system['path_entropy']:.2f}"),
)


def render(report: Dict[str, Any], names: Sequence[str]) -> str:
    """Renders the table, the paired differences and the signature.

    Args:
        report: what ``report.json`` holds.
        names: the systems, in the order of the columns.
    """
    each_block = (WIDTH - LABEL_WIDTH) // (COLUMN_WIDTH + 2)
    lines: List[str] = []
    for start in range(0, len(names), each_block):
        lines += _block(report, names[start : start + each_block]) + [""]
    for name in names:
        for base in ("dense", "dense_control"):
            test = report[name].get(f"rougeL_minus_{base}")
            if test:
                low, high = test["low"], test["high"]
                lines += textwrap.wrap(
                    f"{name} - {base}: R-L {test['difference']:+.2f}, 95 % interval [{low:+.2f}, {high:+.2f}], "
                    f"p = {test['p']:.4f} (paired bootstrap)",
                    WIDTH,
                )
    return "\n".join(lines + [report["signature"]])


def _block(report: Dict[str, Any], names: Sequence[str]) -> List[str]:
    """One block of columns; a site that no system of the report can skip has no row."""
    systems = [report[name] for name in names]
    rows: List[List[str]] = []
    heads = [textwrap.wrap(name, COLUMN_WIDTH) or [""] for name in names]
    for line in range(max(map(len, heads))):
        label = "" if line else "system"
        rows.append([label] + [head[line] if line < len(head) else "" for head in heads])
    rows.append(["-" * LABEL_WIDTH] + ["-" * COLUMN_WIDTH for _ in names])
    for metric, label in (("rouge1", "R-1"), ("rouge2", "R-2"), ("rougeL", "R-L")):
        rows.append([label] + [f"{system[metric]:.2f}" for system in systems])
        intervals = [system[f"{metric}_interval"] for system in systems]
        rows.append(["  95 % interval"] + [f"[{low:.2f}, {high:.2f}]" for low, high in intervals])
    rows += [[label] + [show(system) for system in systems] for label, show in FIGURES]
    for site in SITES:
        if any(site in figures["skip_rates"] for figures in report.values() if isinstance(figures, dict)):
            rates = [system["skip_rates"].get(site) for system in systems]
            label = "skip %, " + site.replace("_", " ").replace("cross attention", "cross-att.")
            rows.append([label] + ["-" if rate is None else f"{100 * rate:.1f}" for rate in rates])
    rows += [[label] + [show(system) for system in systems] for label, show in PATHS]
    return [
        (row[0].ljust(LABEL_WIDTH) + "".join("  " + cell.rjust(COLUMN_WIDTH) for cell in row[1:])).rstrip()
        for row in rows
    ]
