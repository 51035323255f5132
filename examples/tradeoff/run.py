"""Train, generate and score rows of the trade-off grid, one JSON a row and seed.

    python examples/tradeoff/run.py --data DATA/data-bin --base BASE.pt --out OUT --results results/debian/trained

Every row starts from the same dense base and trains for as many updates on the same batches. What is finished is not
made again; a row that fails is recorded as failed, the others go on, and the command ends with exit code 1. A value
that begins with dashes needs "=": --device-options=--fp16.
"""

import argparse
import os
import shlex
import signal
import sys
from typing import Any, Callable, List, Optional, Sequence

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path[:0] = [ROOT, os.path.join(ROOT, "tools")]  # the package beside which this script stands

from grid import TUNED_ON, Grid  # noqa: E402
from recipe import RecipeError, Settings, read_rows, size_options  # noqa: E402
from steps import hash_files  # noqa: E402


def read_base(path: str) -> Any:
    """Returns the options that rebuild a base checkpoint; see :func:`recipe.size_options`.

    Raises:
        ValueError: not a checkpoint.
    """
    from fairseq import checkpoint_utils

    from sd_fairseq.plugin.guards.preflight import check_checkpoint

    check_checkpoint(path, "--base")
    state = checkpoint_utils.load_checkpoint_to_cpu(path)
    return size_options(state["cfg"]["model"], state["cfg"]["task"])


def build_grid(options: argparse.Namespace, kind: Callable[..., Grid] = Grid) -> Grid:
    """Reads rows, base and data.

    Args:
        options: the command line.
        kind: of the grid.

    Raises:
        ValueError: one of them cannot be used.
    """
    rows = read_rows(options.table)
    options.rows = list(rows) if options.rows == "all" else options.rows.split(",")
    for name in options.rows:
        if name not in rows:
            raise RecipeError("--rows: {!r} is none of {}".format(name, ", ".join(rows)))
    try:
        options.seeds = [int(seed) for seed in options.seeds.split(",")]
    except ValueError as error:
        raise RecipeError("--seeds {!r}: expected numbers separated by commas".format(options.seeds)) from error
    for split in ("train", options.subset, TUNED_ON):
        for path in (path for path in binaries(options.data, split) if not os.path.isfile(path)):
            raise RecipeError("--data: no file {}".format(path))
    size, length = read_base(options.base)
    more = [tuple(shlex.split(text)) for text in (options.training_options, options.policy_options)]
    device = tuple(shlex.split(options.device_options))
    generation = device if options.generation_options is None else tuple(shlex.split(options.generation_options))
    settings = Settings(options.updates, options.max_tokens, more[0], more[1], device, generation, size, length)
    used = binaries(options.data, "train") + binaries(options.data, TUNED_ON)
    return kind(options, rows, settings, {"base": hash_files([options.base]), "data": hash_files(used)})


def binaries(data: str, split: str) -> List[str]:
    """Names the files of a split."""
    return [os.path.join(data, "{}.source-target.{}.bin".format(split, side)) for side in ("source", "target")]


def build_parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", required=True, help="binarised data with train, valid and test")
    add("--base", required=True, help="checkpoint of the dense base that every row starts from (base.sh)")
    add("--out", required=True, help="folder for weights, logs, texts and traces")
    add("--results", required=True, help="folder for ROW-SEED.json")
    add("--rows", default="all", help="names of rows.tsv separated by commas (default: all)")
    add("--seeds", default="1,2,3", help="default: %(default)s")
    add("--updates", type=int, default=1200, help="of every row's training (default: %(default)s)")
    add("--subset", choices=("valid", "test"), default="test", help="what is scored; tune on valid (default: test)")
    add("--max-tokens", type=int, default=1536, help="source tokens an update (default: %(default)s)")
    add("--threads", type=int, default=1, help="CPU threads of each command (default: %(default)s)")
    text = "default: --cpu; with --amp where the CPU multiplies in bfloat16; on a GPU '' or =--fp16"
    add("--device-options", default="--cpu", help=text)
    add("--generation-options", help="the same of generation alone (default: as --device-options)")
    add("--training-options", default="", help="more options of fairseq-train for every row, dense too")
    add("--policy-options", default="", help="more options of fairseq-train for the rows with decisions")
    add("--start-flops", type=float, default=0.8, help="of the static path where policies start (default: %(default)s)")
    add("--search-examples", type=int, default=200, help="for the search of static paths (default: %(default)s)")
    text = "how they are chosen, see path_search (default: %(default)s; batches: what the recorded rows start at)"
    add("--search-sample", choices=("examples", "batches"), default="examples", help=text)
    add("--search-lowest", type=float, default=0.7, help="relative FLOPs where it ends (default: %(default)s)")
    add("--table", default=os.path.join(HERE, "rows.tsv"), help="the rows (default: rows.tsv beside this script)")
    add("--data-name", default="debian_descriptions", help="name of the data, for the signature")
    return parser


def main(
    argv: Optional[Sequence[str]] = None,
    kind: Callable[..., Grid] = Grid,
    parser: Optional[argparse.ArgumentParser] = None,
) -> int:
    """Runs the command; returns its exit code.

    Args:
        argv: the command line; None = this process's.
        kind: of the grid.
        parser: of the command line; None = :func:`build_parser`'s.
    """
    options = (parser or build_parser()).parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a running command is ended too
    failed = []
    try:
        grid = build_grid(options, kind)
        names = dict.fromkeys(["dense", *options.rows])  # dense first: the others are compared with it
        wanted = [(name, seed) for seed in options.seeds for name in names]
        for name, seed in wanted:
            grid.is_finished(name, seed)  # settings that differ are told before anything runs
        for name, seed in wanted:
            if not grid.finish(name, seed):
                failed.append("{}-{}".format(name, seed))
    except (ValueError, OSError) as error:
        print("run.py: error: {}".format(error), file=sys.stderr)
        return 2
    if failed:
        print("run.py: error: {} of {} failed: {}".format(len(failed), len(wanted), ", ".join(failed)), file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
