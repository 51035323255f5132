"""Every ROUGE-L difference with an interval that a document states in its text is one that the results give."""

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
from learning_results import read_results
from learning_rows import collect, compare_by_example, pair_by_seed
from learning_table import BLOCK

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (
    *("learning", "learning_policy", "learning_even", "learning_h200", "learning_again", "learning_budget"),
    *("learning_look_back", "learning_look_back_policy", "learning_late_freeze"),
    *("learning_mixture", "learning_mixture_full", "learning_mixture_corpus", "learning_mixture_policy"),
)
NUMBER = r"([-+]?\d+\.\d\d)"
STATED = re.compile(NUMBER + r"\s+\[" + NUMBER + r",\s+" + NUMBER + r"\](?!\s+nats)")


def learning_text(name):
    """The text of a document about the grid, without its filled tables."""
    text = (ROOT / name).read_text(encoding="utf-8")
    if name == "README.md":
        text = text[text.index("## Learning") : text.index("## Wall-clock")]
    return BLOCK.sub("", text)


def differences():
    """(mean difference, pairs) of every two rows of a folder that share seeds: all together, and each alone."""
    for folder in FOLDERS:
        if (ROOT / "results" / folder).is_dir():
            rows = collect(read_results(str(ROOT / "results" / folder)))
            for one, other in itertools.combinations(rows.values(), 2):
                pairs = pair_by_seed(one, other)
                for chosen in [pairs, *([pair] for pair in pairs)] if pairs else []:
                    scores = [np.mean(a["rougeL_by_example"]) - np.mean(b["rougeL_by_example"]) for a, b in chosen]
                    yield float(np.mean(scores)), chosen


def reported():
    """Differences with intervals that sd-report wrote of two generations beside the grid."""
    for path in sorted((ROOT / "results" / "learning_mixture_fitted").glob("*.json")):
        for system in json.loads(path.read_text(encoding="utf-8")).values():
            if isinstance(system, dict) and "rougeL_minus_dense" in system:
                yield system["rougeL_minus_dense"]


def gains():
    """Gains in nats with intervals that policy_fit reported, or constraint_check of two trained models."""
    for path in sorted((ROOT / "results" / "learning_fit").glob("*.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        yield from (report[name] for name in ("gain_over_static", "gain_of_length_ranges"))
        yield report["held_out"]["gain_over_static"]
    for path in sorted((ROOT / "results" / "learning_mixture_deployed").glob("*.json")):
        yield json.loads(path.read_text(encoding="utf-8"))["violation"]


def is_one_of(claim, tests, tolerance):
    """Tells whether (difference, low, high) is one of these intervals, or of their opposites."""
    for test in tests:
        bounds = [test["difference"], test["low"], test["high"]]
        turned = [-test["difference"], -test["high"], -test["low"]]
        if any(np.allclose(claim, values, rtol=0, atol=tolerance) for values in (bounds, turned)):
            return True
    return False


def test_stated_gains_of_decisions_per_input_are_those_of_a_fit():
    text = learning_text("docs/learning.md")
    section = text[text.index("## What decisions per input are worth") : text.index("## Estimators")]
    three = STATED.pattern.replace(r"\d\d)", r"\d\d\d)")
    stated = [tuple(float(number) for number in match) for match in re.findall(three, section)]
    assert len(stated) > 5
    assert not [claim for claim in stated if not is_one_of(claim, gains(), 0.00051)]


@pytest.fixture(scope="module")
def found():
    return list(differences())


@pytest.mark.parametrize("name", ["README.md", "docs/learning.md"])
def test_stated_intervals_are_those_of_two_rows(name, found):
    stated = [tuple(float(number) for number in match) for match in STATED.findall(learning_text(name))]
    assert len(stated) > 5
    unknown = []
    for claim in stated:
        close = (compare_by_example(pairs) for mean, pairs in found if abs(abs(mean) - abs(claim[0])) < 0.006)
        if not is_one_of(claim, reported(), 0.0051) and not is_one_of(claim, close, 0.0051):
            unknown.append(claim)
    assert not unknown
