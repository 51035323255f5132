"""Fits a policy to searched paths, and measures what decisions per input are worth on examples it has not seen.

Three steps, the backbone standing still: a greedy search (as ``path_search``) on a few pairs; the best paths that it
tried are scored on many pairs, teacher-forced; a policy network is fitted to that table of losses and FLOPs by the
exact gradient of its expected cost (``sd_fairseq/learning/path_table.py``). The report compares, at equal mean FLOPs:

* static: the best one path of the table for all (or a mixture of two), chosen on these very examples;
* policy: decisions per input of policies fitted on other examples (ten folds);
* ranges: a path for each of four ranges of length (by dense FLOPs), chosen on the other half of the examples: what a
  rule without a network would gain;
* oracle: the best path of each example, chosen by the very loss that is reported: a bound that nothing reaches.

FLOPs are relative to the dense path; their mean is over the examples, each counting alike as in training, or (with
``--flops-average corpus``) of all examples together, as time is: long documents then count more than short ones.

With ``--held-out SPLIT`` the policy that is written meets the static path that the table chooses on pairs that neither
has seen.

The checkpoint written holds BASE's weights and a policy fitted on all pairs; it starts a training
(``--finetune-from-model``, with ``--sd-policy-freeze-update 1`` to train the backbone on its paths alone) or generates.
"""

from __future__ import annotations

import argparse
import os
from typing import Any, Dict, Optional, Tuple

import torch
from fairseq import checkpoint_utils
from omegaconf import OmegaConf
from torch import nn

from sd_fairseq.decision.policy import PolicyNetwork
from sd_fairseq.learning.path_table import FitSettings, PathTable, choose, chosen_scores, cross_fit, fit_policy, folds
from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.plugin.models.conversion import overrides_for
from sd_fairseq.study.fit_report import compare, compare_held_out
from sd_fairseq.study.path_scorer import Scorer, load
from sd_fairseq.study.path_search import greedy_search
from sd_fairseq.study.path_tables import (
    BAND,
    ScoredPaths,
    candidate_paths,
    example_weights,
    read_scored,
    score_paths,
    static_price,
    write_scored,
)
from sd_fairseq.whole_files import check_places, write_json, write_with

START = 0.6  # probability of the decisions that a fit starts from
PRICES = 12  # halvings of the interval in which the price of FLOPs is looked for


class Fitter:
    """Fits policies of one model to a table.

    Args:
        model: with a policy network of one stage; not changed.
        table: of its paths.
        settings: of the fit.
    """

    def __init__(self, model: Any, table: PathTable, settings: FitSettings):
        self.policy, self.table, self.settings = model.encoder.policy, table, settings
        self.space = model.space

    def build(self, path: int) -> nn.Module:
        """Makes a fresh policy that decides as one path of the table, whatever the input."""
        chosen = slice(path, path + 1)
        decisions = self.space.to_decisions(self.table.keep[chosen], self.table.token_choice[chosen])
        hidden = self.policy.hidden
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.seed)
            return PolicyNetwork(hidden.in_features, self.space, hidden.out_features, START, decisions)

    def fit(self, price: float) -> Tuple[nn.Module, int]:
        """Returns a policy fitted on nine tenths of the examples, and its epoch; the others tell when to stop."""
        parts = folds(len(self.table), 10, self.settings.seed)
        fitted = self.table.take(torch.cat(parts[1:]))
        network = self.build(fitted.cheapest(price))
        return network, fit_policy(network, fitted, self.table.take(parts[0]), price, self.settings)

    def find_price(self, flops: float) -> float:
        """Returns the price at which the fitted policy's mean FLOPs come closest to ``flops``."""
        start = static_price(self.table.loss.mean(dim=1), self.table.flops.mean(dim=1), flops)
        low, high, tried = 0.25 * start, 4 * start, []
        for _ in range(PRICES):
            price = (low * high) ** 0.5
            network, _ = self.fit(price)
            mean = float(chosen_scores(self.table, choose(network, self.table))[1].mean())
            tried.append((abs(mean - flops), price))
            low, high = (price, high) if mean > flops else (low, price)
        return min(tried)[1]


def write_fitted(args: argparse.Namespace, model: Any, policy: nn.Module) -> None:
    """Writes the checkpoint with the fitted policy in the place of its own.

    Raises:
        InputError: it cannot be written.
    """
    overrides = overrides_for(args.path, args.model_overrides, args.data)
    state = checkpoint_utils.load_checkpoint_to_cpu(args.path, overrides)
    weights = {name: value.cpu() for name, value in model.state_dict().items()}
    for name, value in policy.state_dict().items():
        weights["encoder.policy." + name] = value
    cfg = state["cfg"]  # written as fairseq writes it, so that it can be read without being loaded
    cfg = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True) if OmegaConf.is_config(cfg) else cfg
    state = {**state, "args": None, "cfg": cfg, "model": weights, "last_optimizer_state": None}
    write_with(args.output, lambda stream: torch.save(state, stream))



def check_arguments(args: argparse.Namespace) -> None:
    """Refuses figures out of their range.

    Raises:
        InputError: naming the option; or a place that cannot be written.
    """
    for name, right, expected in (
        ("flops", 0 < args.flops < 1, "between 0 and 1"),
        ("paths", args.paths >= 2, "2 or more"),
        ("examples", args.examples == 0 or args.examples >= 20, "0 (all) or 20 and more"),
        ("search_examples", args.search_examples >= 1, "1 or more"),
    ):
        if not right:
            raise InputError(f"--{name.replace('_', '-')} {getattr(args, name)} is not {expected}")
    made = [args.output, args.report]  # told now, not after the work
    if args.table and os.path.isfile(args.table):
        check_places(made, [args.path, args.table])
    else:
        check_places([*made, args.table], [args.path])


def load_held_out(args: argparse.Namespace) -> Optional[Scorer]:
    """Loads all pairs of the split that is held out, or None where there is none."""
    if not args.held_out:
        return None
    others = {"gen_subset": args.held_out, "examples": 0, "sample": "examples", "every": 0}
    return load(argparse.Namespace(**{**vars(args), **others}))


def find_table(args: argparse.Namespace, scorer: Scorer) -> ScoredPaths:
    """Reads the table, or makes it: searches on a few pairs, scores the best paths on all.

    Raises:
        InputError: a table of something else, or that cannot be written, or no path near the FLOPs.
    """
    if args.table and os.path.exists(args.table):
        return read_scored(args.table, scorer)
    few = {**vars(args), "examples": args.search_examples, "sample": "examples", "every": 0}
    searcher = load(argparse.Namespace(**few))
    weights = example_weights(searcher.dense_flops, args.flops_average)
    chain = greedy_search(searcher, args.flops - BAND / 2, weights)
    keys = candidate_paths(searcher, chain, args.flops, args.paths, weights)
    scored = score_paths(scorer, keys, len(searcher.source_lengths))
    if args.table:
        write_scored(args.table, scored)
    return scored


def make(args: argparse.Namespace) -> Dict[str, Any]:
    """Carries the command out; returns the report.

    Raises:
        InputError: see the functions above.
    """
    check_arguments(args)
    scorer = load(argparse.Namespace(**{**vars(args), "sample": "examples", "every": 0}))
    if getattr(scorer.model.encoder.policy, "stages", ()) != (1,):
        raise InputError("only a policy network of one stage can be fitted (--sd-policy network)")
    held_out = load_held_out(args)
    scored = find_table(args, scorer)
    weights = scored.weights(args.flops_average)
    table = scored.to_table(weights)
    fitter = Fitter(scorer.model, table, FitSettings(seed=args.seed))
    price = fitter.find_price(args.flops)
    unseen = cross_fit(fitter.build, table, price, fitter.settings)
    policy, epoch = fitter.fit(price)
    found = {
        "examples": len(table),
        "search_examples": int(scored.searched),
        "flops_average": args.flops_average,
        "paths": len(table.keep),
        "price": price,
        "epoch": epoch,
        **compare(table, scored, unseen),
    }
    scorer.model.encoder.policy.load_state_dict(policy.state_dict())
    deployed, _ = scorer.score_policy()
    found.update(flops_deployed=float((deployed.flops * weights).mean()), nll_deployed=float(deployed.loss.mean()))
    if args.output:
        write_fitted(args, scorer.model, policy)
    if held_out is not None:
        found["held_out"] = compare_held_out(held_out, policy, table, args.flops_average)
    if args.report:
        write_json(args.report, found)
    return found
