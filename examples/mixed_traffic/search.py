"""Searches the paths that every row may take, and scores them: one table for all rows.

    python examples/mixed_traffic/search.py DATA --path BASE.pt --side train.jsonl --prepared prepared.json \\
        --output TABLE.npz --index TABLE.json

A greedy search for each task and one for the whole stream, all on pairs of the training set; the best paths of each are
scored on many other pairs of it. ``sd-fit --table TABLE.npz`` reads the table; TABLE.json names the task and the length
of each of its examples.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any, Dict, List, Sequence

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path[:0] = [ROOT, HERE]

import torch  # noqa: E402
from losses import add_amp, example_ids  # noqa: E402
from score import read_side  # noqa: E402

from sd_fairseq.commands.shared import add_batches, add_model  # noqa: E402
from sd_fairseq.errors import InputError, run  # noqa: E402
from sd_fairseq.user_files import read_json_object  # noqa: E402
from sd_fairseq.whole_files import check_places, write_json  # noqa: E402

TARGETS = (0.6, 0.7, 0.8, 0.9)  # relative FLOPs around which the best paths of a search are taken


class Stream:
    """All tasks as one list of examples, each counting as its task's share of the traffic says.

    It stands in for a scorer in the greedy search; what the tasks' scorers know is not scored again.

    Args:
        scorers: of each task's examples.
        shares: task -> share of the requests.
    """

    def __init__(self, scorers: Dict[str, Any], shares: Dict[str, float]):
        self.scorers, self.known = list(scorers.values()), {}
        self.model = self.scorers[0].model
        counts = [len(scorer.source_lengths) for scorer in self.scorers]
        total = sum(shares[task] for task in scorers)
        self.weights = torch.cat(
            [
                torch.full((count,), shares[task] / total * sum(counts) / count, dtype=torch.float64)
                for task, count in zip(scorers, counts)
            ]
        )

    @property
    def flops_weights(self) -> torch.Tensor:
        """What each example's relative FLOPs count in those of the whole corpus, float64 [N], 1 on average."""
        dense = self.weights * torch.cat([scorer.dense_flops for scorer in self.scorers])
        return dense / dense.mean()

    def score(self, key: Any) -> Any:
        """Scores one path; losses are weighted, so that their mean is the stream's."""
        from sd_fairseq.study.path_scorer import Scores

        if key not in self.known:
            parts = [scorer.score(key) for scorer in self.scorers]
            loss = torch.cat([one.loss for one in parts]) * self.weights
            halves = torch.cat([one.halves for one in parts], dim=1)
            self.known[key] = Scores(loss, halves, torch.cat([one.flops for one in parts]))
        return self.known[key]


def task_scorers(args: argparse.Namespace, model: Any, task: Any, names: Sequence[str]) -> Dict[str, Any]:
    """Makes a scorer for each task: its examples evenly spread over its lengths.

    Args:
        args: with search_examples, max_tokens, beam, gen_subset and cuda.
        model, task: loaded, with the split.
        names: task of every line of the split.

    Raises:
        InputError: a side file of another split.
    """
    from fairseq import utils

    from sd_fairseq.study.path_scorer import Scorer, check_batches, sample_evenly

    dataset = task.dataset(args.gen_subset)
    if len(dataset) != len(names):
        raise InputError("{}: {} lines, the split has {}".format(args.side, len(names), len(dataset)))
    order = dataset.ordered_indices()
    scorers = {}
    for name in dict.fromkeys(names):
        mine = order[[names[place] == name for place in order]]
        chosen = mine[sample_evenly(len(mine), args.search_examples)]
        check_batches(dataset, chosen, args.max_tokens)
        groups = dataset.batch_by_size(chosen, max_tokens=args.max_tokens)
        batches = [dataset.collater([dataset[place] for place in group]) for group in groups]
        batches = [utils.move_to_cuda(batch) for batch in batches] if args.cuda else batches
        scorers[name] = Scorer(model, batches, task.target_dictionary.pad(), args.beam, task)
    return scorers


def search(args: argparse.Namespace, scorers: Dict[str, Any], shares: Dict[str, float]) -> List[Any]:
    """Searches for each task and for the whole stream; returns the paths of the table."""
    from sd_fairseq.study.path_scorer import encoder_part
    from sd_fairseq.study.path_search import greedy_search
    from sd_fairseq.study.path_tables import candidate_paths, example_weights

    stream = Stream(scorers, shares)
    searches = [(scorer, example_weights(scorer.dense_flops, "corpus")) for scorer in scorers.values()]
    keys: List[Any] = []
    for number, (scorer, weights) in enumerate([*searches, (stream, stream.flops_weights)]):
        chain = greedy_search(scorer, args.lowest, weights, lazy=True)
        best = args.paths if number < len(searches) else 2 * args.paths
        for target in TARGETS:
            if target >= args.lowest:
                keys += candidate_paths(scorer, chain, target, best, weights)
    space = next(iter(scorers.values())).model.space
    return sorted(dict.fromkeys(keys), key=lambda key: encoder_part(space, key))  # what the encoder gives is kept


def work(args: argparse.Namespace) -> None:
    """Searches, scores, writes and prints."""
    from sd_fairseq.study.path_scorer import load
    from sd_fairseq.study.path_tables import score_paths, write_scored

    if not 0 < args.lowest < 0.9 or args.search_examples < 1 or args.paths < 1:
        raise InputError("--lowest between 0 and 0.9, --search-examples and --paths of 1 or more are needed")
    check_places([args.output, args.index], [args.path, args.side, args.prepared])
    names = [one.task for one in read_side(args.side)]
    shares = read_json_object(args.prepared)["shares"]
    scorer = load(argparse.Namespace(**vars(args), sample="examples", every=0))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.amp):
        scorers = task_scorers(args, scorer.model, scorer.task, names)
        keys = search(args, scorers, shares)
        scored = score_paths(scorer, keys, args.search_examples * len(scorers))
    index = {
        "tasks": [names[number] for number in example_ids(scorer.batches)],
        "lengths": scorer.source_lengths.tolist(),
        "searched": {task: len(one.source_lengths) for task, one in scorers.items()},
        "paths": len(keys),
    }
    write_scored(args.output, scored)
    write_json(args.index, index)
    print("{} paths on {} examples".format(len(keys), len(index["tasks"])))


def build_parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add_model(parser, "train")
    add("--side", required=True, help="side file of the split")
    add("--prepared", required=True, help="prepared.json: the shares of the traffic")
    add("--examples", type=int, default=600, help="pairs of the table (default: %(default)s)")
    add("--search-examples", type=int, default=32, help="pairs of each task's search (default: %(default)s)")
    add("--lowest", type=float, default=0.5, help="relative FLOPs where searches end (default: %(default)s)")
    add("--paths", type=int, default=4, help="best paths of a task around each share (default: %(default)s)")
    add_batches(parser)
    add_amp(parser)
    add("--output", required=True, help="table to write")
    add("--index", required=True, help="JSON file to write")
    return parser


if __name__ == "__main__":
    sys.exit(run(work, build_parser().parse_args(), "search.py"))
