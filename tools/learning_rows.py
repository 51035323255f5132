"""Rows of the trade-off grid: the results of all seeds of a row, what compares, and paired comparisons."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, List, Sequence, Tuple

import numpy as np
from learning_results import BY_EXAMPLE, ResultError

from sd_fairseq.evaluation.report import bootstrap_differences

SAME_FOR_ALL = ("subset", "updates", "max_tokens", "data")
SAME_FOR_A_SEED = ("base",)
Pair = Tuple[Dict[str, Any], Dict[str, Any]]  # two results of one seed


@dataclass
class GridRow:
    """All seeds of a row.

    Args:
        runs: its results, by seed.
        failures: seed -> what went wrong.
    """

    runs: List[Dict[str, Any]] = field(default_factory=list)
    failures: Dict[int, str] = field(default_factory=dict)

    def values(self, name: str) -> List[float]:
        """One figure of every run that has it."""
        return [float(run[name]) for run in self.runs if run[name] is not None]


def collect(results: Sequence[Dict[str, Any]]) -> Dict[str, GridRow]:
    """Groups results by row; seeds ascend.

    Args:
        results: as :func:`~learning_results.read_results` returns them.
    """
    rows: Dict[str, GridRow] = {}
    for result in results:
        row = rows.setdefault(result["row"], GridRow())
        if "failed" in result:
            row.failures[result["seed"]] = result["failed"]
        else:
            row.runs.append(result)
    return rows


def check_comparable(results: Sequence[Dict[str, Any]]) -> None:
    """Refuses results that were not made alike: other data or updates, or another base for the same seed.

    Raises:
        ResultError: naming two rows and what differs.
    """
    first: Dict[Any, Any] = {}
    for result in results:
        settings = result.get("settings", {})
        place = f"row {result['row']}, seed {result['seed']}"
        checked = {name: (settings.get(name), None) for name in SAME_FOR_ALL}
        checked.update({name: (settings.get(name), result["seed"]) for name in SAME_FOR_A_SEED})
        if "failed" not in result:
            checked["examples"] = (result["examples"], None)
        for name, (value, group) in checked.items():
            known, known_place = first.setdefault((name, group), (value, place))
            if known != value:
                raise ResultError(f"{place} has {name} {value!r}, {known_place} has {known!r}: they do not compare")


def pair_by_seed(row: GridRow, reference: GridRow) -> List[Pair]:
    """Pairs the runs of two rows by seed, where both hold scores by example."""
    others = {run["seed"]: run for run in reference.runs if BY_EXAMPLE in run}
    return [(run, others[run["seed"]]) for run in row.runs if BY_EXAMPLE in run and run["seed"] in others]


def compare_by_example(pairs: Sequence[Pair]) -> Dict[str, float]:
    """Bootstraps the ROUGE-L of the first minus that of the second of each pair, averaged over the pairs."""
    differences = [np.array(one[BY_EXAMPLE]) - np.array(other[BY_EXAMPLE]) for one, other in pairs]
    return bootstrap_differences(np.mean(differences, axis=0), pairs[0][0]["row"])
