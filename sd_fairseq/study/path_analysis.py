"""What predicts the path? Length, source, section and first word of a document against what the policy decided.

A decision tree guesses each example's path from one property at a time, on examples that it has not seen (5-fold). The
guess of the most frequent path is what it must beat: a policy that collapsed leaves nothing to predict, one that looks
at its input can be told from it. Line n of PAIRS (a JSON object with "document") is example n of the trace.

Source: section 1 of "Switchable Decision" (ICML 2024) claims decisions "for each data instance" and does not test it.
"""

from __future__ import annotations

import warnings
from collections import Counter
from typing import Any, Dict, List, Sequence, Tuple

import numpy as np

from sd_fairseq.decision.trace import TraceRecord
from sd_fairseq.errors import InputError
from sd_fairseq.evaluation.plots import load_pyplot
from sd_fairseq.user_files import read_json_lines
from sd_fairseq.whole_files import whole

FOLDS = 5
LEAVES = 12
SHOWN_PATHS = 6
BINS = 8
FREQUENT_WORDS = 40  # first words; the others are one


def name_paths(records: Sequence[TraceRecord]) -> List[str]:
    """Names each example's path after its rank, P1 the most frequent, and its token strategy."""
    ranks = [path for path, _ in Counter(record.path for record in records).most_common()]
    return ["P{} {}".format(ranks.index(record.path) + 1, record.token_strategy) for record in records]


def read_pairs(path: str) -> List[Dict[str, Any]]:
    """Reads the pairs behind a trace.

    Raises:
        InputError: a line that is no JSON object with a document, or an unreadable file.
    """
    pairs = []
    for place, pair in read_json_lines(path):
        if not isinstance(pair.get("document"), str):
            raise InputError(f"{place}: expected a JSON object with a document")
        pairs.append(pair)
    return pairs


def check_ids(records: Sequence[TraceRecord], pairs: Sequence[Dict[str, Any]]) -> None:
    """Refuses a trace of other pairs.

    Raises:
        ValueError: an id that no pair has.
    """
    outside = [record.id for record in records if record.id >= len(pairs)]
    if outside:
        raise ValueError(f"example {outside[0]} of the trace is none of {len(pairs)} pairs")


def describe_examples(records: Sequence[TraceRecord], pairs: Sequence[Dict[str, Any]]) -> Dict[str, np.ndarray]:
    """Returns the properties of every example as columns for a tree, name -> [N, features].

    Args:
        records: of the trace.
        pairs: all pairs of the split; a record's id is its place.

    Raises:
        ValueError: an id that no pair has.
    """
    check_ids(records, pairs)
    mine = [pairs[record.id] for record in records]
    columns = {"length": np.array([[record.source_tokens] for record in records], dtype=float)}
    for name in ("domain", "section"):
        if all(isinstance(pair.get(name), str) for pair in mine):
            columns[name] = one_hot([pair[name] for pair in mine])
    columns["first word"] = one_hot([(pair["document"].split() or [""])[0].lower() for pair in mine])
    columns["all of these"] = np.concatenate(list(columns.values()), axis=1)
    return columns


def one_hot(values: Sequence[str]) -> np.ndarray:
    """Returns a 0/1 column for each of the most frequent values, [N, <= FREQUENT_WORDS]."""
    frequent = [value for value, _ in Counter(values).most_common(FREQUENT_WORDS)]
    return np.array([[float(value == one) for one in frequent] for value in values])


def flops_by_domain(records: Sequence[TraceRecord], pairs: Sequence[Dict[str, Any]]) -> Dict[str, float]:
    """Returns the mean relative FLOPs of each source's examples; empty where pairs do not name their sources."""
    found: Dict[str, List[float]] = {}
    for record in records:
        domain = pairs[record.id].get("domain")
        if isinstance(domain, str):
            found.setdefault(domain, []).append(record.flops_generation / record.flops_generation_dense)
    return {domain: float(np.mean(found[domain])) for domain in sorted(found)}


def predict(features: np.ndarray, paths: Sequence[str]) -> float:
    """Returns the share of paths that a small tree guesses right on examples it has not seen.

    Raises:
        ValueError: scikit-learn is missing.
    """
    try:
        from sklearn.model_selection import StratifiedKFold, cross_val_score
        from sklearn.tree import DecisionTreeClassifier
    except ImportError as error:
        raise ValueError("guesses need scikit-learn; install it with: pip install scikit-learn") from error
    tree = DecisionTreeClassifier(max_leaf_nodes=LEAVES, random_state=1)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # paths that fewer examples take than there are folds
        return float(cross_val_score(tree, features, np.array(paths), cv=folds).mean())


def analyse(records: Sequence[TraceRecord], pairs: Sequence[Dict[str, Any]]) -> Dict[str, Any]:
    """Returns how well every property predicts the path, beside the most frequent path's share; and FLOPs by source.

    Raises:
        ValueError: the trace is of other pairs.
    """
    check_ids(records, pairs)
    paths = name_paths(records)
    counts = Counter(paths)
    found: Dict[str, Any] = {"examples": len(paths), "distinct_paths": len(counts)}
    found["most_frequent"] = counts.most_common(1)[0][1] / len(paths)
    found["flops_by_domain"] = flops_by_domain(records, pairs)
    if len(counts) == 1:
        return {**found, "guessed": {}}
    columns = describe_examples(records, pairs)
    return {**found, "guessed": {name: predict(features, paths) for name, features in columns.items()}}


def share_by_bin(lengths: Sequence[int], paths: Sequence[str]) -> Tuple[List[str], Dict[str, List[float]]]:
    """Returns labels of bins of equal counts, and the shares of the frequent paths and of all others in each."""
    order = np.argsort(np.array(lengths), kind="stable")
    bins = [part for part in np.array_split(order, min(BINS, len(order))) if len(part)]
    labels = ["{}-{}".format(lengths[part[0]], lengths[part[-1]]) for part in bins]
    shown = [path for path, _ in Counter(paths).most_common(SHOWN_PATHS)]
    shares = {path: [float(np.mean([paths[i] == path for i in part])) for part in bins] for path in shown}
    rest = [1 - sum(shares[path][place] for path in shown) for place in range(len(bins))]
    return labels, ({**shares, "other paths": rest} if max(rest) > 1e-9 else shares)


def draw(records: Sequence[TraceRecord], pairs: Sequence[Dict[str, Any]], path: str) -> None:
    """Draws the share of every frequent path by length, and by domain where the pairs have one."""
    plt = load_pyplot()
    paths, lengths = name_paths(records), [record.source_tokens for record in records]
    panels = [("source tokens", *share_by_bin(lengths, paths))]
    if all(isinstance(pairs[record.id].get("domain"), str) for record in records):
        domains = sorted({pairs[record.id]["domain"] for record in records})
        of = [pairs[record.id]["domain"] for record in records]
        names = list(panels[0][2])
        shares: Dict[str, List[float]] = {name: [] for name in names}
        for domain in domains:
            mine = [one for one, where in zip(paths, of) if where == domain]
            for name in names:
                count = sum(one == name or (name == "other paths" and one not in names) for one in mine)
                shares[name].append(count / len(mine))
        panels.append(("source of the document", domains, shares))
    figure, axes = plt.subplots(1, len(panels), figsize=(4.6 * len(panels) + 1.5, 3.6), sharey=True, squeeze=False)
    for axis, (title, labels, bars) in zip(axes[0], panels):
        bottom = np.zeros(len(labels))
        for place, (name, values) in enumerate(bars.items()):
            axis.bar(labels, values, bottom=bottom, label=name, color=plt.get_cmap("tab10")(place))
            bottom += np.array(values)
        axis.set_xlabel(title)
        axis.tick_params(axis="x", labelrotation=45)
    axes[0][0].set_ylabel("share of the examples")
    axes[0][-1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    figure.suptitle(f"{len(set(paths))} distinct paths over {len(paths)} examples", fontsize=11)
    with whole(path) as part:
        figure.savefig(part, dpi=150, bbox_inches="tight", format="png")
    plt.close(figure)
