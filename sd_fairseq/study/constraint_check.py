"""Does a policy keep its constraint? The deployed paths' loss against a dense model's, on many examples at once.

    python -m sd_fairseq.study.constraint_check DATA --path CHECKPOINT --gen-subset train --tolerance 0.25

In training the violation is measured on one batch an update, and smoothed; its last values are as noisy as batches are.
Here the policy stands still: q - c - tolerance, the mean over the examples and its 95 % interval. q is an example's
mean token NLL on the path that the policy deploys, c the same on the dense path of the same weights, or of
``--reference``: the model that the policy started from, where the backbone was trained after it. With
``--reference-path deployed`` it is the path that the reference's own policy deploys, so that two trained models are
compared on the same pairs: a policy with a static path, say (tolerance 0).

Source: the constraint of section 3.3; Eq. 7's q and c.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any, Dict, List, Optional

import torch
from tabulate import tabulate
from torch import Tensor

from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.study.path_scorer import Scorer, Scores, load
from sd_fairseq.study.path_search import add_sample_options, interval, show
from sd_fairseq.whole_files import write_json


def dense_loss(scorer: Scorer) -> Tensor:
    """Returns the mean token NLL of each example on the dense path, float64 [N]."""
    return scorer.score(((True,) * scorer.model.space.num_switches, 0)).loss


def corpus_share(scorer: Scorer, scores: Scores) -> float:
    """Returns all examples' FLOPs as a share of all their dense paths'."""
    dense = scorer.dense_flops
    return float((scores.flops * dense).sum() / dense.sum())


def check(scorer: Scorer, reference: Scorer, tolerance: float, reference_path: str = "dense") -> Dict[str, Any]:
    """Compares a model's deployed paths with a dense path, or with another model's deployed paths.

    Args:
        scorer: of the model with the policy.
        reference: of the model whose dense path is the constraint's.
        tolerance: nats a token.
        reference_path: ``dense``, or ``deployed``: what the reference's own policy decides.

    Returns:
        Means over the examples; ``violation`` is an interval, positive where the constraint is broken.
        ``flops_generation`` is the mean of the examples' shares, ``flops_corpus`` the share of all their FLOPs.

    Raises:
        InputError: the two were given other examples.
    """
    if not torch.equal(scorer.source_lengths, reference.source_lengths):
        raise InputError("the two checkpoints take other lengths, so other examples would be compared")
    policy, _ = scorer.score_policy()
    found = {
        "examples": policy.loss.numel(),
        "tolerance": tolerance,
        "flops_generation": float(policy.flops.mean()),
        "flops_corpus": corpus_share(scorer, policy),
        "nll_policy": float(policy.loss.mean()),
    }
    if reference_path == "deployed":
        deployed, _ = reference.score_policy()
        loss = deployed.loss
        found["flops_generation_reference"] = float(deployed.flops.mean())
        found["flops_corpus_reference"] = corpus_share(reference, deployed)
        found["nll_reference"] = float(loss.mean())
    else:
        loss = dense_loss(reference)
        found["nll_dense"] = float(loss.mean())
    return {**found, "violation": interval(policy.loss - loss - tolerance)}


def main(argv: Optional[List[str]] = None) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="constraint_check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("data", help="binarised data folder")
    add("--path", required=True, help="checkpoint of the switchable model")
    add("--reference", help="checkpoint whose path is compared with (default: the same weights)")
    text = "dense, or deployed: what the reference's own policy decides (default: %(default)s)"
    add("--reference-path", choices=("dense", "deployed"), default="dense", help=text)
    add("--tolerance", type=float, required=True, help="nats a token, as --sd-tolerance of its training")
    add("--model-overrides", default="{}", help='JSON, such as {"sd_space": "encoder"}')
    add("--reference-overrides", default="{}", help="the same of --reference")
    add("--gen-subset", default="train", help="split (default: %(default)s, which training measured)")
    add_sample_options(parser, 2000)
    add("--beam", type=int, default=4, help="beam that the FLOPs are counted for")
    add("--max-tokens", type=int, default=4096)
    add("--cuda", action="store_true")
    add("--output", help="JSON file to write")
    args = parser.parse_args(argv)
    try:
        if not args.reference and (args.reference_path == "deployed" or args.reference_overrides != "{}"):
            raise InputError("--reference-path deployed and --reference-overrides need --reference, found none")
        scorer = load(args)
        reference = scorer
        if args.reference:
            changes = {"path": args.reference, "model_overrides": args.reference_overrides}
            reference = load(argparse.Namespace(**{**vars(args), **changes}))
        found = check(scorer, reference, args.tolerance, args.reference_path)
        if args.output:
            write_json(args.output, found)
    except (OSError, ValueError) as error:
        print(f"sd_fairseq: error: {error}", file=sys.stderr)
        return 1
    print(tabulate([(name, show(value)) for name, value in found.items()]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
