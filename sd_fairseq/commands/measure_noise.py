"""``sd-measure-noise``: how noisy each estimate of the policy's gradient is."""

from __future__ import annotations

import argparse
import sys
from typing import Optional, Sequence

from sd_fairseq.commands.shared import add_model, make_parser, run

ABOUT = """How noisy is each estimate of the policy's quality gradient? Repeats every estimator on the same batches.

  signal          |mean gradient|^2, less what the noise adds to it
  noise           the variance, summed over the policy's parameters
  noise / signal  updates to average until the noise is as large as the signal
  cosine          between the estimator's mean and that of the unbiased estimators"""


def build_parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    parser = make_parser("sd-measure-noise", ABOUT, "sd-measure-noise DATA --path CHECKPOINT --repeats 32")
    add = parser.add_argument
    add_model(parser, "valid")
    add("--estimators", metavar="NAMES", help="comma-separated (default: all, with 1 to 4 paths an example)")
    add("--batches", type=int, default=4, help="spread over all lengths (default: %(default)s)")
    add("--repeats", type=int, default=32, help="2 or more (default: %(default)s)")
    add("--max-tokens", type=int, default=2048, help="tokens of a batch (default: %(default)s)")
    add("--bound", type=float, default=0.95, help="as --sd-bound (default: %(default)s)")
    add("--seed", type=int, default=1, help="of dropout and of a fresh policy")
    add("--output", help="JSON file to write")
    return parser


def work(args: argparse.Namespace) -> None:
    """Measures, writes and prints."""
    import torch
    from tabulate import tabulate
    from tqdm import tqdm

    from sd_fairseq.study.gradient_noise import check_arguments, load, measure_batch, summarise
    from sd_fairseq.whole_files import check_places, write_json

    names = check_arguments(args)
    check_places([args.output], [args.path])
    torch.manual_seed(args.seed)
    _, evaluators = load(args)
    progress = tqdm(evaluators, unit=" batches", disable=None)
    rows = summarise([measure_batch(one, names, args.repeats, args.bound) for one in progress])
    if args.output:
        write_json(args.output, {"repeats": args.repeats, "batches": len(evaluators), "estimators": rows})
    print(tabulate([list(row.values()) for row in rows], list(rows[0]), tablefmt="github", floatfmt=".4g"))


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Runs the command; returns its exit code."""
    return run(work, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
