"""Time the generation of rivals side by side: in turn, several rounds, medians; the most memory each held.

    python examples/rivals/timing.py ARGUMENTS_OF_RUN --rows student-6-3,calm-0.8 --seeds 1 --output TIME.json

Takes the arguments of run.py, which must have made the rows. Row dense comes first in every round. Every row runs in a
process of its own, loading not counted: the seconds are those of the traces. Rows with one hypothesis (--beam 1) are
compared with dense-beam-1 where it is among the rows, the others with dense.
"""

import argparse
import os
import statistics
import sys
import tempfile
from typing import Any, Dict, List, Optional, Sequence, Tuple

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path[:0] = [os.path.join(ROOT, "examples", "tradeoff"), HERE, ROOT, os.path.join(ROOT, "tools")]

import run as tradeoff  # noqa: E402
from recipe import BASE, RecipeError, generate_command, render  # noqa: E402
from rival_grid import LEAD, RivalGrid  # noqa: E402
from row_names import split_row  # noqa: E402
from steps import StepError, read_json, say, write_json  # noqa: E402
from understanding_table import find_versions  # noqa: E402

from sd_fairseq.decision.trace import read_trace  # noqa: E402
from sd_fairseq.evaluation.skip_report import summarise_trace  # noqa: E402

BEAM_1 = "dense-beam-1"
Figures = Tuple[float, float]  # seconds of all documents, megabytes


def take_part(data: str, part: str, subset: str, documents: int) -> int:
    """Writes a data set of evenly spaced documents of a split; returns their number.

    Args:
        data: folder of the binarised data.
        part: folder to write.
        subset: split.
        documents: at most.
    """
    from fairseq.data import Dictionary, data_utils, indexed_dataset

    for side in ("source", "target"):
        dictionary = Dictionary.load(os.path.join(data, "dict.{}.txt".format(side)))
        dictionary.save(os.path.join(part, "dict.{}.txt".format(side)))
        name = "{}.source-target.{}".format(subset, side)
        whole = data_utils.load_indexed_dataset(os.path.join(data, name), dictionary)
        step = max(1, len(whole) // documents)
        chosen = list(range(0, len(whole), step))[:documents]
        builder = indexed_dataset.make_builder(os.path.join(part, name + ".bin"), "mmap", vocab_size=len(dictionary))
        for index in chosen:
            builder.add_item(whole[index])
        builder.finalize(os.path.join(part, name + ".idx"))
    return len(chosen)


def find_commands(grid: RivalGrid, names: Sequence[str], seeds: Sequence[int]) -> Dict[str, List[str]]:
    """Returns the generation of every row and seed.

    Raises:
        RecipeError: a row is not made.
    """
    commands = {}
    for seed in seeds:
        for name in names:
            row = grid.rows[name]
            result = read_json(grid.result_path(name, seed))
            weights = grid.folder(row.weights or name, seed)
            made = row.weights == BASE or os.path.exists(os.path.join(weights, "trained"))
            if not made or not isinstance(result, dict) or "failed" in result:
                raise RecipeError("{}-{}: not made yet, run.py makes it".format(name, seed))
            values = grid.find_values(row, seed)
            commands["{}-{}".format(name, seed)], _ = generate_command(
                row, seed, grid.options.subset, grid.settings, values
            )
    return commands


def time_once(grid: RivalGrid, command: Sequence[str], batch: int) -> Figures:
    """Generates once more.

    Args:
        grid: of the rows.
        command: as :func:`find_commands` has it.
        batch: documents side by side.

    Raises:
        StepError: it failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        trace, peak = os.path.join(folder, "trace.jsonl"), os.path.join(folder, "peak")
        words = ["python", "examples/rivals/measured.py", peak, *command[2:], "--batch-size", str(batch)]
        words[words.index("--sd-trace") + 1] = trace
        grid.run(words, os.path.join(folder, "log"), os.path.join(folder, "texts"))
        with open(peak, encoding="utf-8") as text:
            return summarise_trace(read_trace(trace)).seconds, float(text.read())


def compare(found: Dict[str, List[Figures]], beam_1: Sequence[str]) -> Dict[str, Any]:
    """Summarises one batch size.

    Args:
        found: row and seed -> figures by round.
        beam_1: rows with one hypothesis.

    Returns:
        By row and seed ``seconds`` (by round), ``median``, ``megabytes`` (median) and ``times_as_fast``, beside the
        dense row of the same seed and round: the median ``ratio``, and ``spread``, its range over rounds.
    """
    summary = {}
    for name, figures in found.items():
        row, _, seed = name.rpartition("-")
        reference = "{}-{}".format(BEAM_1 if row in beam_1 else "dense", seed)
        reference = reference if reference in found else "dense-" + seed
        ratios = [other[0] / one[0] for one, other in zip(figures, found[reference])]
        summary[name] = {
            "seconds": [round(one[0], 2) for one in figures],
            "median": round(statistics.median(one[0] for one in figures), 3),
            "megabytes": round(statistics.median(one[1] for one in figures)),
            "beside": reference,
            "times_as_fast": {"ratio": statistics.median(ratios), "spread": [min(ratios), max(ratios)]},
        }
    return summary


def build_parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    parser = tradeoff.build_parser()
    parser.description = __doc__
    parser.set_defaults(table=os.path.join(HERE, "rows.tsv"))
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--batch-sizes", default="1,16", help="documents side by side (default: %(default)s)")
    parser.add_argument("--documents", type=int, default=200, help="of the split, evenly spaced (default: %(default)s)")
    parser.add_argument("--output", required=True, help="JSON file to write")
    return parser


def time_rows(options: argparse.Namespace) -> Dict[str, Any]:
    """Times all rows in turn; returns what is written.

    Raises:
        ValueError, OSError, StepError: it cannot be done.
    """
    sizes = [int(size) for size in options.batch_sizes.split(",")]
    if min(options.rounds, options.documents, *sizes) < 1:
        raise RecipeError("--rounds, --documents and --batch-sizes: expected 1 or more")
    if not os.path.isdir(os.path.dirname(os.path.abspath(options.output))):  # told before minutes are spent
        raise RecipeError("--output: no folder for {}".format(options.output))
    grid = tradeoff.build_grid(options, RivalGrid)
    assert isinstance(grid, RivalGrid)
    names = [name for name in dict.fromkeys(["dense", *options.rows]) if split_row(name)[0] != LEAD]
    beam_1 = [
        name for name in names if ("--beam", "1") in zip(grid.rows[name].generation, grid.rows[name].generation[1:])
    ]
    commands = find_commands(grid, names, options.seeds)
    found: Dict[int, Dict[str, List[Figures]]] = {size: {} for size in sizes}
    with tempfile.TemporaryDirectory() as part:
        documents = take_part(grid.places["DATA"], part, options.subset, options.documents)
        grid.places["DATA"] = part
        for number in range(options.rounds):
            for size in sizes:
                for name, command in commands.items():
                    figures = time_once(grid, command, size)
                    found[size].setdefault(name, []).append(figures)
                    say("round {}, batch {}: {} {:.2f} s, {:.0f} MB".format(number + 1, size, name, *figures))
    return {
        "what": "{} documents of {}, {} thread(s)".format(documents, options.subset, options.threads),
        "documents": documents,
        "batches": {str(size): compare(found[size], beam_1) for size in sizes},
        "device": grid.name_device(grid.settings.generation),
        "commands": {name: render(command) for name, command in commands.items()},
        "versions": find_versions(),
    }


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Runs the command; returns its exit code."""
    options = build_parser().parse_args(argv)
    try:
        write_json(options.output, time_rows(options))
    except (ValueError, OSError, StepError) as error:
        print("timing.py: error: {}".format(error), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
