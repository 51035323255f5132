"""What decisions per input are worth: the reports of ``sd-fit`` as one table."""

from __future__ import annotations

import glob
import json
import os
from typing import Any, Dict, List, Optional

from learning_results import ResultError
from tabulate import tabulate

HEADER = (
    *("fit", "pairs", "paths", "FLOPs", "nats: dense", "static", "policy", "oracle", "policy better than static by"),
    *(
        "of what skipping costs",
        "four lengths better by (at FLOPs)",
        "static as good at",
        "paths taken",
        "held out: pairs",
        "policy better by",
    ),
)
GAIN = "{difference:+.4f} [{low:+.4f}, {high:+.4f}]"


def read_fits(folder: str) -> Dict[str, Dict[str, Any]]:
    """Reads the reports of a folder: name -> report.

    Raises:
        ResultError: there is none, or one that policy_fit did not write.
    """
    found = {}
    for path in sorted(glob.glob(os.path.join(glob.escape(folder), "*.json"))):
        try:
            with open(path, encoding="utf-8") as text:
                report = json.load(text)
            _cells(report)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ResultError(f"{path}: not what policy_fit writes ({type(error).__name__}: {error})") from error
        found[os.path.splitext(os.path.basename(path))[0]] = report
    if not found:
        raise ResultError(f"{folder}: holds no report of policy_fit")
    return found


def _cells(report: Dict[str, Any]) -> List[str]:
    gain = {name: float(report["gain_over_static"][name]) for name in ("difference", "low", "high")}
    nats = [float(report["nll_" + name]) for name in ("dense", "static", "policy", "oracle")]
    skipping = nats[1] - nats[0]
    share = f"{gain['difference'] / skipping:.1%}" if skipping > 0 else "-"
    return [
        *(str(int(report[name])) for name in ("examples", "paths")),
        f"{float(report['flops_generation']):.3f}",
        *(f"{value:.3f}" for value in nats),
        GAIN.format(**gain),
        share,
        _ranges(report.get("gain_of_length_ranges")),
        "{:.3f}".format(float(report["static_flops_at_equal_loss"])),
        str(int(report["distinct_paths"])),
        *_held_out(report.get("held_out")),
    ]


def _ranges(gain: Optional[Dict[str, Any]]) -> str:
    """Renders the control: a path for each range of lengths."""
    return "-" if gain is None else GAIN.format(**gain) + " ({:.3f})".format(float(gain["flops_ranges"]))


def _held_out(report: Optional[Dict[str, Any]]) -> List[str]:
    if report is None:
        return ["-", "-"]
    gain = {name: float(report["gain_over_static"][name]) for name in ("difference", "low", "high")}
    return [str(int(report["examples"])), GAIN.format(**gain)]


def render_fits(folder: str) -> str:
    """Renders one line a report, Markdown.

    Raises:
        ResultError: see :func:`read_fits`.
    """
    lines = [[name, *_cells(report)] for name, report in read_fits(folder).items()]
    return tabulate(lines, HEADER, tablefmt="github", disable_numparse=True)
