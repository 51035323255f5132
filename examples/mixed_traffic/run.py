"""Train, generate and score rows of mixed traffic, one JSON a row and seed.

    python examples/mixed_traffic/run.py --prepared DATA --out OUT --results results/mixed_traffic \\
        --rows dense,static-0.7,fitted-0.7 --seeds 1

Every row starts from the same dense base and trains for as many updates on the same batches. ``--rows base`` and
``--rows search`` make what all rows share, and nothing else. What is finished is not made again; a row that fails is
recorded as failed, the others go on, and the exit code is 1. A value that begins with dashes needs "=":
--device-options=--fp16.
"""

import argparse
import os
import shlex
import signal
import sys
from typing import List, Optional, Sequence

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path[:0] = [ROOT, HERE, os.path.join(ROOT, "tools"), os.path.join(ROOT, "examples", "tradeoff")]

from recipe import RecipeError  # noqa: E402
from rows import SEARCHED, STEPS, Settings, parse_row  # noqa: E402
from steps import StepError, hash_files, read_json  # noqa: E402
from traffic import Traffic  # noqa: E402

ROWS = "dense,dense-trained-on,recommended-0.7,fitted-0.7,static-0.7,by-task-0.7,by-length-0.7,random-0.7"


def binaries(data: str, split: str) -> List[str]:
    """Names the files of a split."""
    return [os.path.join(data, "{}.source-target.{}.bin".format(split, side)) for side in ("source", "target")]


def read_seeds(text: str) -> List[int]:
    """Reads numbers separated by commas.

    Raises:
        RecipeError: something else.
    """
    try:
        return [int(seed) for seed in text.split(",")]
    except ValueError as error:
        raise RecipeError("--seeds {!r}: expected numbers separated by commas".format(text)) from error


def build_traffic(options: argparse.Namespace) -> Traffic:
    """Reads rows, model and data.

    Raises:
        ValueError: one of them cannot be used.
    """
    names = options.rows.split(",")
    rows = {name: parse_row(name) for name in names if name not in STEPS}
    prepared = read_json(os.path.join(options.prepared, "prepared.json"))
    if not isinstance(prepared, dict) or not isinstance(prepared.get("settings"), dict):
        raise RecipeError("--prepared {}: no prepared.json; make it with prepare.py".format(options.prepared))
    options.data = os.path.join(options.prepared, "data-bin")
    used = binaries(options.data, "train") + binaries(options.data, "valid")
    for path in [*used, *binaries(options.data, options.subset), options.base or options.model]:
        if not os.path.isfile(path):
            raise RecipeError("no file {}".format(path))
    options.given_base = options.base is not None
    options.base = options.base or os.path.join(options.out, "base", "checkpoint_last.pt")
    device = tuple(shlex.split(options.device_options))
    generation = device if options.generation_options is None else tuple(shlex.split(options.generation_options))
    settings = Settings(
        updates=options.updates,
        base_updates=options.base_updates,
        max_tokens=options.max_tokens,
        update_freq=options.update_freq,
        base_update_freq=options.base_update_freq,
        beam=options.beam,
        arch=options.arch,
        limits=(prepared["settings"]["limit"], prepared["settings"]["target_limit"]),
        training=tuple(shlex.split(options.training_options)),
        policy=tuple(shlex.split(options.policy_options)),
        device=device,
        generation=tuple(word for word in generation if word != "--amp"),
        searched=(options.search_examples, options.table_examples),
        lowest=options.lowest - SEARCHED,
    )
    inputs = {"data": hash_files(used)}
    if not options.given_base:
        inputs["model"] = hash_files([options.model])
    return Traffic(options, rows, settings, inputs)


def build_parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--prepared", required=True, metavar="DIR", help="what prepare.py made")
    add("--model", default="t5/model.pt", help="imported weights that the base starts from (default: %(default)s)")
    add("--base", help="a base of your own, already fine-tuned (default: OUT/base, made where it is missing)")
    add("--out", required=True, help="folder for weights, logs, texts and traces")
    add("--results", required=True, help="folder for ROW-SEED.json")
    add("--rows", default=ROWS, help="separated by commas; other FLOPs are other rows (default: %(default)s)")
    add("--seeds", default="1,2,3", help="default: %(default)s")
    add("--updates", type=int, default=300, help="of every row's training (default: %(default)s)")
    add("--base-updates", type=int, default=200, help="of the dense fine-tuning (default: %(default)s)")
    text = "what is scored; tune on valid; unseen: the task that no training saw (default: test)"
    add("--subset", choices=("valid", "test", "unseen"), default="test", help=text)
    add("--max-tokens", type=int, default=1056, help="source tokens of a batch (default: %(default)s)")
    add("--update-freq", type=int, default=1, help="batches of a row's update (default: %(default)s)")
    add("--base-update-freq", type=int, default=4, help="batches of an update of the base (default: %(default)s)")
    add("--beam", type=int, default=1, help="of the search; FLOPs are counted for it (default: %(default)s)")
    add("--arch", default="switchable_t5", help="architecture of the weights (default: %(default)s)")
    add("--threads", type=int, default=1, help="CPU threads of each command (default: %(default)s)")
    text = "default: --cpu; '--cpu --amp' where the CPU multiplies in bfloat16"
    add("--device-options", default="--cpu", help=text)
    text = "the same of generation alone, such as '--cpu --sd-generation-precision bfloat16'"
    add("--generation-options", help=text)
    add("--training-options", default="", help="more options of fairseq-train for the base and every row")
    text = "more options of fairseq-train for the rows that learn their policy (default: %(default)s)"
    add("--policy-options", default="--sd-budget-warmup-updates 100", help=text)
    add("--search-examples", type=int, default=12, help="of each task's search (default: %(default)s)")
    add("--table-examples", type=int, default=240, help="of the table of searched paths (default: %(default)s)")
    add("--lowest", type=float, default=0.65, help="lowest FLOPs of any row; searches go below (default: %(default)s)")
    return parser


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Runs the command; returns its exit code."""
    options = build_parser().parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a running command is ended too
    failed = []
    try:
        seeds = read_seeds(options.seeds)
        traffic = build_traffic(options)
        traffic.hash_base()
        wanted = [(name, seed) for seed in seeds for name in traffic.rows]
        for name, seed in wanted:
            traffic.is_finished(name, seed)  # settings that differ are told before anything else runs
        if "search" in options.rows.split(","):
            traffic.search()
        for name, seed in wanted:
            if not traffic.finish(name, seed):
                failed.append("{}-{}".format(name, seed))
    except (ValueError, OSError, StepError) as error:
        print("run.py: error: {}".format(error), file=sys.stderr)
        return 2
    if failed:
        print("run.py: error: {} of {} failed: {}".format(len(failed), len(wanted), ", ".join(failed)), file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
