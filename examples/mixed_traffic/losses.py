"""Teacher-forced loss of every example of a split, on the path that the checkpoint's own policy decides.

    python examples/mixed_traffic/losses.py DATA --path CHECKPOINT --gen-subset test --output LOSSES.json

One JSON object: "id" (the lines of the split), "loss" (nats a token), "flops" (of the path, relative to the example's
own dense path) and "dense_flops".
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any, Dict, List

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path[:0] = [ROOT]

from sd_fairseq.commands.shared import add_batches, add_model  # noqa: E402
from sd_fairseq.errors import InputError, run  # noqa: E402
from sd_fairseq.whole_files import check_places, write_json  # noqa: E402


def example_ids(batches: List[Dict[str, Any]]) -> List[int]:
    """Returns the examples of batches, as lines of their split."""
    return [number for batch in batches for number in batch["id"].tolist()]


def measure(args: argparse.Namespace) -> Dict[str, List[float]]:
    """Scores the split.

    Raises:
        InputError: an example that the model does not take.
    """
    import torch

    from sd_fairseq.study.path_scorer import load

    scorer = load(argparse.Namespace(**vars(args), examples=0, sample="examples", every=0))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.amp):
        scores, _ = scorer.score_policy()
    ids = example_ids(scorer.batches)
    order = sorted(range(len(ids)), key=ids.__getitem__)
    if [ids[place] for place in order] != list(range(len(ids))):
        raise InputError("{}: the model does not take every example".format(args.gen_subset))
    columns = {"id": ids, "loss": scores.loss.tolist(), "flops": scores.flops.tolist()}
    columns["dense_flops"] = scorer.dense_flops.tolist()
    return {name: [values[place] for place in order] for name, values in columns.items()}


def work(args: argparse.Namespace) -> None:
    """Measures, writes and prints the mean."""
    check_places([args.output], [args.path])
    found = measure(args)
    write_json(args.output, found)
    print("{} examples, {:.4f} nats a token".format(len(found["id"]), sum(found["loss"]) / len(found["id"])))


def add_amp(parser: argparse.ArgumentParser) -> None:
    """Adds the option for products in bfloat16."""
    parser.add_argument("--amp", action="store_true", help="multiply in bfloat16 on the CPU, as fairseq's --amp does")


def build_parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model(parser, "test")
    add_batches(parser)
    add_amp(parser)
    parser.add_argument("--output", required=True, help="JSON file to write")
    return parser


if __name__ == "__main__":
    sys.exit(run(work, build_parser().parse_args(), "losses.py"))
