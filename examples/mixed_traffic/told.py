"""What rows are given instead of learning it: a path, a policy that follows a rule, a probability.

    told.py path   DATA ... --flops 0.7 --output PATH.json       the best searched path for all
    told.py policy DATA ... --rule task --flops 0.7 --output POLICY.pt --report POLICY.json
    told.py policy DATA ... --rule each --flops 0.7 --output POLICY.pt --report POLICY.json
    told.py worth  DATA ... --flops 0.7 --output WORTH.json      what each rule is worth before any training
    told.py keep   DATA ... --flops 0.7 --output KEEP.json       for random decisions at these FLOPs

``policy`` chooses a path for each task, for each kind of request that it finds in the states, or for each of four
ranges of lengths, and teaches a policy network to say it: the checkpoint is the base with that policy, so it trains and
generates as every other. It reads what the learned policy reads, for lengths only the number of tokens. The report says
how often it follows the rule on examples that it has not seen: near 1, or the row is not what its name says.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
from typing import Any, Dict, List, Tuple

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path[:0] = [ROOT, HERE]

import torch  # noqa: E402
from choose import choose_by_group, choose_for_each, cross_choose, find_edges, find_groups, find_kinds  # noqa: E402

from sd_fairseq.commands.shared import add_batches, add_model  # noqa: E402
from sd_fairseq.errors import InputError, run  # noqa: E402
from sd_fairseq.user_files import read_json_object  # noqa: E402
from sd_fairseq.whole_files import check_places, write_json  # noqa: E402

STEPS, BATCH, RATE, DECAY = 1500, 128, 3e-3, 1e-2  # a rule is simple; the policy only has to say it surely
APART = 10  # one example in so many tells how often the rule is followed


class Table:
    """The searched paths of a table, and the task and length of its examples.

    Args:
        args: with the options of :func:`build_parser`.

    Raises:
        InputError: table and index of other examples.
    """

    def __init__(self, args: argparse.Namespace):
        from sd_fairseq.study.path_scorer import load
        from sd_fairseq.study.path_tables import read_scored

        self.index = read_json_object(args.index)
        examples = len(self.index["tasks"])
        self.scorer = load(argparse.Namespace(**vars(args), examples=examples, sample="examples", every=0))
        self.scored = read_scored(args.table, self.scorer)
        if len(self.scored.dense_flops) != examples:
            raise InputError("{}: {} examples, {} has others".format(args.index, examples, args.table))

    @property
    def costs(self) -> torch.Tensor:
        """FLOPs of every path and example, [paths, N], whose mean is the share of the corpus's."""
        return self.scored.flops * self.scored.weights("corpus")

    def group(self, rule: str, flops: float) -> List[int]:
        """Returns every example's group by a rule."""
        if rule == "kind":
            return find_kinds(self.scored.states, self.scored.loss, self.costs, flops)
        lengths = self.index["lengths"]
        return find_groups(rule, self.index["tasks"], lengths, find_edges(lengths))

    def choose(self, rule: str, flops: float) -> Tuple[List[int], Dict[str, Any]]:
        """Returns every example's path by a rule, and what is to be reported of it."""
        tasks, lengths = self.index["tasks"], self.index["lengths"]
        edges = find_edges(lengths)
        costs = self.costs
        groups = self.group(rule, flops)
        more: Dict[str, Any] = {}
        if rule == "each":
            paths, tolerance = choose_for_each(self.scored.loss, costs, self.scored.dense_loss, groups, flops)
            more["tolerance"] = tolerance
        else:
            paths = choose_by_group(self.scored.loss, costs, groups, flops)
        chosen = [paths[group] for group in groups]
        rows = torch.tensor(chosen).unsqueeze(0)
        named = {
            "task": sorted(set(tasks)),
            "each": sorted(set(tasks)),
            "length": ["to {}".format(edge) for edge in edges] + ["longer"],
        }
        kinds = ["kind {}".format(group + 1) for group in range(max(groups) + 1)] if rule == "kind" else ["all"]
        names = named.get(rule, kinds)
        found = {
            "rule": rule,
            "edges": edges if rule == "length" else [],
            "flops_corpus": float(costs.gather(0, rows).mean()),
            "loss": float(self.scored.loss.gather(0, rows).mean()),
            "loss_dense": float(self.scored.dense_loss.mean()),
            **more,
            "paths": {names[group]: self.describe(path) for group, path in paths.items()},
        }
        return chosen, found

    def describe(self, path: int) -> str:
        """Writes a path as --sd-static-path takes it."""
        scored, space = self.scored, self.scorer.model.space
        decisions = space.to_decisions(scored.keep[path : path + 1], scored.token_choice[path : path + 1])
        return ",".join("{}={}".format(*site) for site in space.describe(decisions, 0).items())


def teach(table: Table, chosen: List[int], seed: int) -> Tuple[Any, float]:
    """Returns a policy that says the chosen paths, and how often it does on examples that it has not seen."""
    scored, model = table.scored, table.scorer.model
    policy = copy.deepcopy(model.encoder.policy).requires_grad_(True)
    if "state" in policy.inputs:
        policy.tell_apart(scored.states.mean(0), scored.states.std(0))
    rows = torch.tensor(chosen)
    keep, choice = scored.keep[rows], scored.token_choice[rows]
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(chosen), generator=generator)
    apart, known = order[::APART], torch.cat([order[part::APART] for part in range(1, APART)])
    optimizer = torch.optim.AdamW(policy.parameters(), lr=RATE, weight_decay=DECAY)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = RATE * (1 - step / STEPS)
        part = known[torch.randperm(len(known), generator=generator)[:BATCH]]
        wanted = model.space.to_decisions(keep[part], choice[part])
        loss = -policy([scored.states[part]]).log_prob(wanted).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        said = policy([scored.states[apart]]).mode()
    return policy, float(said.same_path(model.space.to_decisions(keep[apart], choice[apart])).float().mean())


def make_path(args: argparse.Namespace) -> None:
    """Finds the best path for all."""
    _, found = Table(args).choose("one", args.flops)
    write_json(args.output, {**found, "path": found["paths"]["all"]})
    print(found)


def make_policy(args: argparse.Namespace) -> None:
    """Teaches a policy a rule, and writes the base with it."""
    from sd_fairseq.study.policy_fit import write_fitted

    table = Table(args)
    chosen, found = table.choose(args.rule, args.flops)
    policy, share = teach(table, chosen, args.seed)
    write_fitted(args, table.scorer.model, policy)
    found["follows_the_rule"] = share
    write_json(args.report, found)
    print(found)


def make_worth(args: argparse.Namespace) -> None:
    """Compares the rules on examples that their paths were not chosen by, at equal FLOPs of the corpus."""
    from sd_fairseq.study.path_search import interval

    table, tasks = Table(args), {}  # type: ignore[var-annotated]
    rises: Dict[str, torch.Tensor] = {}
    report: Dict[str, Any] = {"flops_corpus": args.flops, "examples": len(table.index["tasks"]), "rules": {}}
    for rule in ("one", "length", "kind", "task"):
        groups = table.group(rule, args.flops)
        chosen = cross_choose(table.scored.loss, table.costs, groups, args.flops).unsqueeze(0)
        rises[rule] = table.scored.loss.gather(0, chosen)[0] - table.scored.dense_loss
        for task in sorted(set(table.index["tasks"])):
            mine = torch.tensor([one == task for one in table.index["tasks"]])
            tasks[task] = float(rises[rule][mine].mean())
        spent = float(table.costs.gather(0, chosen).mean())
        figures = {"groups": len(set(groups)), "flops_corpus": spent, "rise": float(rises[rule].mean()), **tasks}
        report["rules"][rule] = {**figures, "gain_over_one": interval(rises["one"] - rises[rule])}
    report["kind_less_length"] = interval(rises["kind"] - rises["length"])
    report["kind_less_task"] = interval(rises["kind"] - rises["task"])
    write_json(args.output, report)
    print(report)


def make_keep(args: argparse.Namespace) -> None:
    """Finds the keep-probability of random decisions at a share of the corpus's FLOPs.

    Raises:
        InputError: a share that is not reached.
    """
    from sd_fairseq.cost.path_flops import Lengths, expected_relative_flops
    from sd_fairseq.decision.given_policies import uniform_distribution

    table = Table(args)
    model, weights = table.scorer.model, table.scored.weights("corpus")
    batches, padding = table.scorer.batches, table.scorer.padding
    target_lengths = torch.cat([batch["target"].ne(padding).sum(1) for batch in batches])
    lengths = Lengths(table.scorer.source_lengths, target_lengths, args.beam)

    def expected(keep: float) -> float:
        distribution = uniform_distribution(model.space, keep, len(weights))
        return float((expected_relative_flops("generation", model.shape, distribution, lengths) * weights).mean())

    if not expected(0.0) < args.flops < expected(1.0):
        raise InputError("--flops {}: random decisions cost {:.3f} to 1".format(args.flops, expected(0.0)))
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if expected(middle) < args.flops else (low, middle)
    write_json(args.output, {"keep": round(low, 4), "flops_corpus": expected(low)})
    print(round(low, 4))


def work(args: argparse.Namespace) -> None:
    """Makes what is asked for."""
    if not 0 < args.flops < 1:
        raise InputError("--flops {} is not between 0 and 1".format(args.flops))
    check_places([args.output, getattr(args, "report", None)], [args.path, args.table, args.index])
    {"path": make_path, "worth": make_worth, "policy": make_policy, "keep": make_keep}[args.command](args)


def build_parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("path", "policy", "worth", "keep"):
        one = commands.add_parser(name)
        add_model(one, "train")
        one.add_argument("--table", required=True, help="of search.py")
        one.add_argument("--index", required=True, help="of search.py")
        one.add_argument("--flops", type=float, required=True, help="share of the corpus's FLOPs")
        add_batches(one)
        one.add_argument("--output", required=True, help="file to write")
        if name == "policy":
            text = "what the policy follows; each: the tasks, a tolerance for each; kind: clusters of requests"
            one.add_argument("--rule", choices=("task", "length", "each", "kind"), required=True, help=text)
            one.add_argument("--seed", type=int, default=1, help="of the fit")
            one.add_argument("--report", required=True, help="JSON file to write")
    return parser


if __name__ == "__main__":
    sys.exit(run(work, build_parser().parse_args(), "told.py"))
