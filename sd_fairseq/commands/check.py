"""``sd-check``: does a policy keep its constraint?"""

from __future__ import annotations

import argparse
import math
import sys
from typing import Optional, Sequence

from sd_fairseq.commands.shared import add_batches, add_model, add_sample, make_parser, run

ABOUT = """Does a policy keep its constraint? The deployed paths' loss against a dense model's, on many examples.

Prints q - c - tolerance, the mean over the examples and its 95 % interval: q is an example's mean token NLL on the path
that the policy deploys, c the same on the dense path of the same weights, or of --reference. With
--reference-path deployed, c is of the path that the reference's own policy deploys."""


def build_parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    parser = make_parser("sd-check", ABOUT, "sd-check DATA --path CHECKPOINT --reference BASE.pt --tolerance 0.25")
    add = parser.add_argument
    add_model(parser, "train")
    add("--reference", help="checkpoint whose path is compared with (default: the same weights)")
    text = "dense, or deployed: what the reference's own policy decides (default: %(default)s)"
    add("--reference-path", choices=("dense", "deployed"), default="dense", help=text)
    add("--reference-overrides", default="{}", help="as --model-overrides, of --reference")
    add("--tolerance", type=float, required=True, help="nats a token, as --sd-tolerance of its training")
    add_sample(parser, 2000)
    add_batches(parser)
    add("--output", help="JSON file to write")
    return parser


def work(args: argparse.Namespace) -> None:
    """Compares, writes and prints."""
    from tabulate import tabulate

    from sd_fairseq.plugin.guards.errors import InputError
    from sd_fairseq.study.constraint_check import check
    from sd_fairseq.study.path_scorer import load
    from sd_fairseq.study.path_search import show
    from sd_fairseq.whole_files import check_places, write_json

    if not 0 <= args.tolerance < math.inf:
        raise InputError(f"--tolerance {args.tolerance} is not 0 or more (nats a token)")
    if not args.reference and (args.reference_path == "deployed" or args.reference_overrides != "{}"):
        raise InputError("--reference-path deployed and --reference-overrides need --reference, found none")
    check_places([args.output], [args.path, args.reference])
    scorer = load(args)
    reference = scorer
    if args.reference:
        changes = {"path": args.reference, "model_overrides": args.reference_overrides}
        reference = load(argparse.Namespace(**{**vars(args), **changes}))
    found = check(scorer, reference, args.tolerance, args.reference_path)
    if args.output:
        write_json(args.output, found)
    print(tabulate([(name, show(value)) for name, value in found.items()]))


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Runs the command; returns its exit code."""
    return run(work, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
