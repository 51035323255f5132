"""Chooses among searched paths by a rule: one for all, one for each task, one for each range of lengths.

Rules spend the same: the cheapest sum of losses at which the FLOPs of the whole corpus stay within a budget. Every
group of examples gets one path; the best combination is found exactly. With the rule "each" no task pays for another:
every task takes the cheapest path whose loss stays within a tolerance of its dense path's, the same tolerance for all,
as small as the budget allows.
"""

from __future__ import annotations

import math
from itertools import product
from typing import Dict, List, NamedTuple, Sequence, Tuple

import torch
from torch import Tensor

from sd_fairseq.study.path_search import choose_paths

SLACK = 0.003  # relative FLOPs that a combination may exceed its budget by: paths are few
ONE_SLACK = 0.015  # the same of one path for all, which cannot make up a budget of several; in that control's favour
RANGES = 4  # of lengths, as many examples each
RULES = ("one", "task", "length", "each", "kind")
MOST_KINDS, FOLDS = 8, 10  # that are looked for among the requests, and parts of the examples that tell how many


class Option(NamedTuple):
    """A choice of paths for some groups.

    Args:
        flops, loss: what it adds to the means over all examples.
        paths: one for each group so far.
    """

    flops: float
    loss: float
    paths: Tuple[int, ...]


def pareto(options: Sequence[Option]) -> List[Option]:
    """Returns the options that no cheaper one is as good as; FLOPs ascend."""
    kept: List[Option] = []
    for option in sorted(options):
        if not kept or option.loss < kept[-1].loss:
            kept.append(option)
    return kept


def choose_by_group(loss: Tensor, flops: Tensor, groups: Sequence[int], budget: float) -> Dict[int, int]:
    """Returns the path of every group: the lowest mean loss with mean FLOPs of at most the budget.

    Args:
        loss: float64 [paths, N].
        flops: float64 [paths, N]; their mean over the examples is what the budget bounds.
        groups: of the examples, [N].
        budget: relative FLOPs; where nothing is that cheap, the cheapest combination is taken.
    """
    about = torch.tensor(list(groups))
    names = sorted(set(groups))
    combined = [Option(0.0, 0.0, ())]
    for name in names:
        here = (about == name).nonzero().view(-1)
        parts = [values[:, here].sum(dim=1) / len(about) for values in (flops, loss)]
        single = pareto([Option(float(parts[0][path]), float(parts[1][path]), (path,)) for path in range(len(loss))])
        pairs = product(combined, single)
        combined = pareto([Option(a.flops + b.flops, a.loss + b.loss, a.paths + b.paths) for a, b in pairs])
    slack = SLACK if len(names) > 1 else ONE_SLACK
    within = [option for option in combined if option.flops <= budget + slack] or combined[:1]
    return dict(zip(names, within[-1].paths))


def choose_for_each(
    loss: Tensor, flops: Tensor, dense_loss: Tensor, groups: Sequence[int], budget: float
) -> Tuple[Dict[int, int], float]:
    """Returns the path of every group, and the smallest tolerance that all of them keep within the budget.

    Args:
        loss, flops, groups, budget: as of :func:`choose_by_group`.
        dense_loss: float64 [N].
    """
    about = torch.tensor(list(groups))
    names = sorted(set(groups))
    rises, costs = {}, {}
    for name in names:
        here = (about == name).nonzero().view(-1)
        rises[name] = (loss[:, here] - dense_loss[here]).mean(dim=1)
        costs[name] = flops[:, here].sum(dim=1) / len(about)

    def cheapest(tolerance: float) -> Dict[int, int]:
        allowed = {name: costs[name].masked_fill(rises[name] > tolerance, math.inf) for name in names}
        return {name: int(one.argmin()) for name, one in allowed.items()}

    least = max(float(one.min()) for one in rises.values())  # below it some task has no path at all
    tolerances = sorted({float(rise) for one in rises.values() for rise in one if float(rise) >= least})
    for tolerance in tolerances:
        chosen = cheapest(tolerance)
        if sum(float(costs[name][path]) for name, path in chosen.items()) <= budget + SLACK:
            break
    return chosen, tolerance


def find_kinds(states: Tensor, loss: Tensor, flops: Tensor, budget: float) -> List[int]:
    """Finds kinds of requests without being told any: clusters of what the policy reads, returned as groups [N].

    As many as serve best: for one to eight clusters, every tenth of the examples takes the paths that the others of its
    cluster would choose, and the number with the least loss at the budget wins (k-means of scikit-learn).

    Args:
        states: float32 [N, C]; each dimension is standardised.
        loss, flops, budget: as of :func:`choose_by_group`.
    """
    from sklearn.cluster import KMeans

    standard = ((states - states.mean(0)) / states.std(0).clamp(min=1e-6)).numpy()
    found: List[Tuple[float, List[int]]] = []
    for kinds in range(1, MOST_KINDS + 1):
        groups = KMeans(kinds, n_init=20, random_state=0).fit_predict(standard).tolist()
        chosen = cross_choose(loss, flops, groups, budget)
        found.append((float(loss.gather(0, chosen.unsqueeze(0)).mean()), groups))
    return min(found, key=lambda one: one[0])[1]  # the fewest of those that serve alike


def cross_choose(loss: Tensor, flops: Tensor, groups: Sequence[int], budget: float) -> Tensor:
    """Returns the path of every example, LongTensor [N], that the other examples of its group would choose.

    Examples are told apart in ten parts; FLOPs over all of them meet the budget.

    Args:
        loss, flops, groups, budget: as of :func:`choose_by_group`.
    """
    about, count = torch.tensor(list(groups)), loss.size(1)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    expected = torch.empty_like(loss)
    for part in range(FOLDS):
        apart = torch.zeros(count, dtype=torch.bool)
        apart[order[part::FOLDS]] = True
        for group in about.unique():
            mine, others = (about == group) & apart, (about == group) & ~apart
            source = others if bool(others.any()) else ~apart
            expected[:, mine] = loss[:, source].mean(dim=1, keepdim=True)
    return choose_paths(expected, flops, budget)


def find_edges(lengths: Sequence[int]) -> List[int]:
    """Returns the longest source of each range of lengths but the last."""
    order = sorted(lengths)
    return [order[len(order) * part // RANGES - 1] for part in range(1, RANGES)]


def find_groups(rule: str, tasks: Sequence[str], lengths: Sequence[int], edges: Sequence[int]) -> List[int]:
    """Returns the group of every example.

    Args:
        rule: of :data:`RULES`.
        tasks: of the examples; the order of their names numbers the groups.
        lengths: of the examples, source tokens.
        edges: of :func:`find_edges`.
    """
    if rule == "one":
        return [0] * len(tasks)
    if rule in ("task", "each"):
        names = sorted(set(tasks))
        return [names.index(task) for task in tasks]
    return [sum(length > edge for edge in edges) for length in lengths]
