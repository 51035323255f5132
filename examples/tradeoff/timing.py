"""Time the generation of rows side by side: in turn, several rounds, medians.

    python examples/tradeoff/timing.py ARGUMENTS_OF_RUN --rows default,budget-0.7 --seeds 1 --output TIME.json

Takes the arguments of run.py, which must have trained the rows (their weights in --out). Row dense comes first in every
round, each row in a process of its own, loading not counted: the seconds are those of the traces.
"""

import os
import statistics
import sys
import tempfile
from typing import Dict, List, Optional, Sequence

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path[:0] = [HERE, ROOT, os.path.join(ROOT, "tools")]

from grid import Grid  # noqa: E402
from recipe import BASE, RecipeError, generate_command, render  # noqa: E402
from run import build_grid, build_parser  # noqa: E402
from steps import StepError, say, write_json  # noqa: E402
from understanding_table import find_versions  # noqa: E402

from sd_fairseq.decision.trace import read_trace  # noqa: E402
from sd_fairseq.evaluation.skip_report import summarise_trace  # noqa: E402


def time_row(grid: Grid, name: str, seed: int) -> float:
    """Generates with a row once more; returns the seconds of all examples together.

    Raises:
        RecipeError: the row is not trained.
        StepError: its generation failed.
    """
    row, subset = grid.rows[name], grid.options.subset
    weights = grid.folder(row.weights or name, seed)
    if row.weights != BASE and not os.path.exists(os.path.join(weights, "trained")):
        raise RecipeError("{}: no trained weights, run.py makes them".format(grid.hide(weights)))
    command, output = generate_command(row, seed, subset, grid.settings, grid.find_values(row, seed))
    grid.commands["{}-{}".format(name, seed)] = render(command, output)
    with tempfile.TemporaryDirectory() as folder:
        trace = os.path.join(folder, "trace.jsonl")
        command[command.index("--sd-trace") + 1] = trace
        grid.run(command, os.path.join(folder, "log"), os.path.join(folder, "texts"))
        return summarise_trace(read_trace(trace)).seconds


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Runs the command; returns its exit code."""
    parser = build_parser()
    parser.description = __doc__
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--output", required=True, help="JSON file to write")
    options = parser.parse_args(argv)
    if options.rounds < 1:
        parser.error("--rounds {}: expected 1 or more".format(options.rounds))
    try:
        if not os.path.isdir(os.path.dirname(os.path.abspath(options.output))):  # told before minutes are spent
            raise RecipeError("--output: no folder for {}".format(options.output))
        grid = build_grid(options)
        seconds: Dict[str, List[float]] = {}
        for number in range(options.rounds):
            for seed in options.seeds:
                for name in dict.fromkeys(["dense", *options.rows]):
                    taken = time_row(grid, name, seed)
                    seconds.setdefault("{}-{}".format(name, seed), []).append(round(taken, 2))
                    say("round {}: {}, seed {}: {:.2f} s".format(number + 1, name, seed, taken))
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        result = {
            "what": "seconds of the generation of {}, in turn, {} thread(s)".format(options.subset, options.threads),
            "seconds": seconds,
            "medians": medians,
            "times_as_fast": {
                name: round(medians["dense-" + name.rpartition("-")[2]] / value, 3) for name, value in medians.items()
            },
            "device": grid.name_device(grid.settings.generation),
            "commands": {name: command for name, command in grid.commands.items() if name in seconds},
            "versions": find_versions(),
        }
        write_json(options.output, result)
    except (ValueError, OSError, StepError) as error:
        print("timing.py: error: {}".format(error), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
