"""Results of the trade-off grid: one JSON file for each row and seed, made of generations, traces and training logs.

Source: "Switchable Decision" (ICML 2024), the columns of Tables 7, 8, 10 and 11, and the paper's claim that the policy
converges within 5,000 updates.
"""

from __future__ import annotations

import json
import math
import os
from typing import Any, Dict, List, Optional, Sequence, Tuple

from row_names import row_order, split_row

from sd_fairseq.evaluation.report import (
    System,
    build_report,
    check_same_examples,
    compare_with_dense,
    describe_system,
    score_examples,
)
from sd_fairseq.evaluation.report import signature as describe_conditions
from sd_fairseq.whole_files import write_json

METRICS = ("rouge1", "rouge2", "rougeL")
NUMBER: Tuple[type, ...] = (int, float)
OPTIONAL: Tuple[type, ...] = (int, float, type(None))
FIELDS: Dict[str, Tuple[type, ...]] = {
    **{metric: NUMBER for metric in METRICS},
    **{metric + "_interval": (list,) for metric in METRICS},
    "dense_rougeL": NUMBER,
    "rougeL_minus_dense": (dict,),
    "significant_loss": (bool,),
    "flops_generation": NUMBER,
    "flops_paper": NUMBER,
    "seconds": NUMBER,
    "distinct_paths": (int,),
    "top_path_share": NUMBER,
    "path_entropy": NUMBER,
    "skip_rates": (dict,),
    "updates": (int,),
    "updates_to_converge": OPTIONAL,
    "violation_last": OPTIONAL,
    "examples": (int,),
    "signature": (str,),
    "command": (list,),
    "versions": (dict,),
}
BY_EXAMPLE = "rougeL_by_example"  # 0-100, in the order of the data; older results are without
CONSTRAINT = "constraint"  # what constraint_check measured of the trained row; older results are without
FREE_OF_COST = "lead"  # sentences that are copied
CONVERGED_WITHIN = 0.01  # relative FLOPs
VIOLATION_UPDATES = 50


class ResultError(ValueError):
    """A results file that cannot be used; the message is one line naming it."""


def measure(row: str, seed: int, system: System, dense: System, data: str) -> Dict[str, Any]:
    """Scores a row beside the dense row of the same seed.

    Args:
        row, seed: its name and seed.
        system, dense: both rows' generations; the same for row ``dense``.
        data: name of the data set, for the signature.

    Raises:
        ValueError: the two were not run on the same examples.
    """
    if row == dense.name:
        figures = describe_system(dense)
        figures["rougeL_minus_dense"] = compare_with_dense(dense, dense)
        dense_score, conditions = figures["rougeL"], describe_conditions([dense], data)
    else:
        check_same_examples([dense, system])
        report = build_report([dense, system], data)
        figures = report[system.name]
        dense_score, conditions = report[dense.name]["rougeL"], report["signature"]
    significant = figures["rougeL_minus_dense"]["high"] < 0
    return {
        "row": row,
        "seed": seed,
        **figures,
        "dense_rougeL": dense_score,
        "significant_loss": significant,
        BY_EXAMPLE: [round(float(score), 2) for score in score_examples(system)],
        "signature": conditions,
    }


def read_training_log(path: str) -> List[Dict[str, float]]:
    """Reads the figures that fairseq-train logged with ``--log-format json``, by update.

    A training that was interrupted logs some updates twice; the later line counts.

    Raises:
        ResultError: a file that cannot be read.
    """
    found: Dict[float, Dict[str, float]] = {}
    try:
        with open(path, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                _, separator, content = line.partition("| train_inner | ")
                if separator:
                    figures = _numbers(content)
                    if "num_updates" in figures:
                        found[figures["num_updates"]] = figures
    except OSError as error:
        raise ResultError(f"{path}: {error.strerror}") from error
    return [found[update] for update in sorted(found)]


def _numbers(content: str) -> Dict[str, float]:
    try:
        given = json.loads(content)
        return {key: float(value) for key, value in given.items() if value is not None}
    except (ValueError, AttributeError, TypeError):  # a line that a kill has cut short
        return {}


def updates_to_converge(log: Sequence[Dict[str, float]]) -> Optional[int]:
    """Returns the first logged update of a policy from which on its FLOPs stay near the last ones; None = it has none.

    Batches differ in their documents' lengths, so the figures compared are means over a tenth of the log.
    """
    moved = [one for one in log if "sd_multiplier" in one]  # a policy that is frozen later does not move any more
    known = [(int(one["num_updates"]), one["sd_flops_generation"]) for one in moved if "sd_flops_generation" in one]
    if not known:
        return None
    width = max(1, len(known) // 10)
    means = [math.fsum(flops for _, flops in known[i : i + width]) / width for i in range(len(known) - width + 1)]
    far = [index for index, flops in enumerate(means) if abs(flops - means[-1]) > CONVERGED_WITHIN]
    return known[far[-1] + 1 if far else 0][0]


def violation_last(log: Sequence[Dict[str, float]]) -> Optional[float]:
    """Returns the mean logged violation of the last 50 updates that moved the policy; None = no policy was trained."""
    known = [(one["num_updates"], one["sd_violation"]) for one in log if "sd_violation" in one]
    if not known:
        return None
    recent = [violation for update, violation in known if update > known[-1][0] - VIOLATION_UPDATES]
    return math.fsum(recent) / len(recent)


def check_result(values: Any, place: str) -> Dict[str, Any]:
    """Checks one result, or the record of a row that failed.

    Raises:
        ResultError: an unknown row, a missing or wrongly typed key, or an impossible value.
    """
    if not isinstance(values, dict):
        raise ResultError(f"{place}: found a JSON {type(values).__name__}, expected an object")
    wanted: Dict[str, Tuple[type, ...]] = {"row": (str,), "seed": (int,)}
    wanted.update({"failed": (str,)} if "failed" in values else FIELDS)
    for name, kinds in wanted.items():
        if name not in values:
            raise ResultError(f"{place}: no key {name!r}")
        _check_value(values[name], kinds, f"{place}: {name!r}")
    try:
        split_row(values["row"])
    except ValueError as error:
        raise ResultError(f"{place}: {error}") from error
    if "failed" in values:
        return values
    for name in (metric + "_interval" for metric in METRICS):
        if len(values[name]) != 2:
            raise ResultError(f"{place}: {name!r} is {values[name]!r}, expected [low, high]")
        for value in values[name]:
            _check_value(value, NUMBER, f"{place}: {name!r}")
    for name in ("difference", "low", "high"):
        _check_value(values["rougeL_minus_dense"].get(name), NUMBER, f"{place}: 'rougeL_minus_dense' {name!r}")
    scores = values.get(BY_EXAMPLE, [0.0] * values["examples"])
    _check_value(scores, (list,), f"{place}: {BY_EXAMPLE!r}")
    if len(scores) != values["examples"]:
        raise ResultError(f"{place}: {BY_EXAMPLE!r} has {len(scores)} scores, expected {values['examples']}")
    for score in scores:
        _check_value(score, NUMBER, f"{place}: {BY_EXAMPLE!r}")
    if CONSTRAINT in values:
        _check_constraint(values[CONSTRAINT], f"{place}: {CONSTRAINT!r}")
    for site, rate in values["skip_rates"].items():
        _check_value(rate, NUMBER, f"{place}: 'skip_rates' {site!r}")
    for name in ("flops_generation", "flops_paper"):
        if values[name] < 0 or (values[name] == 0 and split_row(values["row"])[0] != FREE_OF_COST):
            raise ResultError(f"{place}: {name!r} is {values[name]}, expected more than 0")
    return values


def _check_constraint(constraint: Any, place: str) -> None:
    _check_value(constraint, (dict,), place)
    _check_value(constraint.get("violation"), (dict,), f"{place} 'violation'")
    for name in ("difference", "low", "high"):
        _check_value(constraint["violation"].get(name), NUMBER, f"{place} 'violation' {name!r}")


def _check_value(value: Any, kinds: Tuple[type, ...], place: str) -> None:
    wrong_flag = isinstance(value, bool) and bool not in kinds  # bool is an int to Python
    if wrong_flag or not isinstance(value, kinds):
        names = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
        raise ResultError(f"{place} is {value!r}, expected {names}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ResultError(f"{place} is {value}")


def read_result(path: str) -> Dict[str, Any]:
    """Reads and checks one file.

    Raises:
        ResultError: naming the file and what is wrong.
    """
    try:
        with open(path, encoding="utf-8") as text:
            content = json.load(text)
    except (OSError, ValueError) as error:
        raise ResultError(f"{path}: cannot be read ({error})") from error
    return check_result(content, path)


def read_results(folder: str) -> List[Dict[str, Any]]:
    """Reads every ``*.json`` of a folder, in the order of the table.

    Raises:
        ResultError: an unreadable file, no file, or the same row and seed twice.
    """
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(".json"))
    except OSError as error:
        raise ResultError(f"{folder}: {error.strerror}") from error
    seen: Dict[Tuple[str, int], str] = {}
    results = []
    for path in (os.path.join(folder, name) for name in names):
        result = read_result(path)
        key = result["row"], result["seed"]
        if key in seen:
            raise ResultError(f"{path}: row {key[0]}, seed {key[1]} is also in {seen[key]}")
        seen[key] = path
        results.append(result)
    if not results:
        raise ResultError(f"{folder}: holds no results")
    return sorted(results, key=lambda one: (row_order(one["row"]), one["row"], one["seed"]))


def write_result(path: str, result: Dict[str, Any]) -> None:
    """Checks a result and writes it beside its place, then renames.

    Raises:
        ResultError: see :func:`check_result`, or the file cannot be written.
    """
    check_result(result, path)
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        write_json(path, result)
    except OSError as error:
        raise ResultError(f"{path}: cannot be written ({error.strerror})") from error
