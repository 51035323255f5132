"""Every figure with an interval that a document states, in a sentence or a table, is one that results/ gives.

So no two documents can state one finding differently, and none can state one that no file holds.
"""

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
import rival_tables
from learning_results import read_results
from learning_rows import collect, compare_by_example, pair_by_seed

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results"
FOLDERS = (
    *("debian/trained", "debian/policy_only", "debian/all_lengths"),
    *("mixture/policy_only", "mixture/trained", "mixture/corpus_trained", "mixture/corpus_policy_only"),
)
DOCUMENTS = sorted(
    str(path.relative_to(ROOT)) for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")) if path.exists()
)
NUMBER = r"([-+]?\d+\.\d+)"
STATED = re.compile(NUMBER + r"\s+\[" + NUMBER + r",\s+" + NUMBER + r"\]")


def load(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


def text_of(name):
    """A document without its code blocks: what a command printed once is an example, not a claim."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def find_triples(value):
    """Every (middle, low, high) in a report: differences, scores with intervals, ratios with the range of rounds."""
    if isinstance(value, list):
        for one in value:
            yield from find_triples(one)
    elif isinstance(value, dict):
        if {"difference", "low", "high"} <= set(value):
            yield value["difference"], value["low"], value["high"]
        if {"ratio", "spread"} <= set(value):
            yield (value["ratio"], *value["spread"])
        for name in value:
            if name + "_interval" in value:
                yield (value[name], *value[name + "_interval"])
        for one in value.values():
            yield from find_triples(one)


@pytest.fixture(scope="module")
def reported():
    """What single files hold, each interval and its opposite."""
    files = [path for path in sorted(RESULTS.rglob("*.json"))] + sorted((ROOT / "docs").glob("*report*.json"))
    triples = [triple for path in files for triple in find_triples(load(path))]
    return np.array(triples + [(-middle, -high, -low) for middle, low, high in triples])


@pytest.fixture(scope="module")
def compared():
    """(mean difference, pairs) of every two rows of a folder that share seeds: all together, and each alone."""
    found = []
    for rows in (*(collect(read_results(str(RESULTS / folder))) for folder in FOLDERS), rival_tables.read_rows()):
        for one, other in itertools.permutations(rows.values(), 2):
            pairs = pair_by_seed(one, other)
            for chosen in [pairs, *([pair] for pair in pairs)] if pairs else []:
                scores = [np.mean(a["rougeL_by_example"]) - np.mean(b["rougeL_by_example"]) for a, b in chosen]
                found.append((float(np.mean(scores)), chosen))
    return found


def is_found(claim, reported, compared):
    """Tells whether a stated interval, three texts, is one of the results', rounded."""
    tolerance = 0.51 * 10.0 ** -len(claim[0].split(".")[1])
    values = np.array([float(text) for text in claim])
    if (np.abs(reported - values).max(axis=1) <= tolerance).any():
        return True
    for mean, pairs in compared:
        if abs(mean - values[0]) <= tolerance:
            test = compare_by_example(pairs)
            if np.allclose(values, [test["difference"], test["low"], test["high"]], rtol=0, atol=tolerance):
                return True
    return False


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_stated_interval_is_one_of_the_results(name, reported, compared):
    claims = set(STATED.findall(text_of(name)))
    assert not sorted(claim for claim in claims if not is_found(claim, reported, compared))


def test_the_documents_state_intervals_and_a_wrong_one_is_seen(reported, compared):
    text = "\n".join(map(text_of, DOCUMENTS))
    assert len(set(STATED.findall(text))) > 30
    row = load(RESULTS / "debian" / "trained" / "budget-0.7-1.json")["rougeL_minus_dense"]
    right = [f"{row[name]:.2f}" for name in ("difference", "low", "high")]
    assert is_found(right, reported, compared)
    assert not is_found([right[0], right[1], f"{row['high'] + 0.02:.2f}"], reported, compared)
