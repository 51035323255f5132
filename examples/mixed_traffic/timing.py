"""Time the mixed stream itself: requests in random order through fairseq-interactive, rows in turn, medians of rounds.

    python examples/mixed_traffic/timing.py ARGUMENTS_OF_RUN --rows dense,static-0.7,recommended-0.7 --seeds 1 \\
        --batches 1,16 --output TIME.json

Takes the arguments of run.py, which must have trained the rows. The requests are of the test split, tasks in the shares
of the traffic. A batch holds the next requests, whatever their tasks. Loading is not counted: the seconds are those of
the traces.
"""

import os
import random
import statistics
import sys
import tempfile
from typing import Any, Dict, List, Optional, Sequence

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path[:0] = [ROOT, HERE, os.path.join(ROOT, "tools"), os.path.join(ROOT, "examples", "tradeoff")]

import rows as recipes  # noqa: E402
from prepare import spread  # noqa: E402
from recipe import RecipeError, render  # noqa: E402
from run import build_parser, build_traffic, read_seeds  # noqa: E402
from score import read_side  # noqa: E402
from steps import StepError, say  # noqa: E402
from traffic import Traffic  # noqa: E402
from understanding_table import find_versions  # noqa: E402

from sd_fairseq.decision.trace import read_trace  # noqa: E402
from sd_fairseq.evaluation.skip_report import summarise_trace  # noqa: E402
from sd_fairseq.whole_files import write_json, write_text  # noqa: E402


def draw_stream(prepared: str, shares: Dict[str, float], count: int) -> List[str]:
    """Returns the sources of about ``count`` requests of the test split in random order, as symbols of the model."""
    with open(os.path.join(prepared, "ids", "test.source"), encoding="utf-8") as lines:
        sources = lines.read().splitlines()
    tasks = [one.task for one in read_side(os.path.join(prepared, "test.jsonl"))]
    chosen: List[str] = []
    for task, share in shares.items():
        mine: List[Any] = [source for source, other in zip(sources, tasks) if other == task]
        chosen += spread(mine, max(1, round(count * share)))
    random.Random(1).shuffle(chosen)
    return chosen


def time_row(traffic: Traffic, name: str, seed: int, batch: int, stream: str) -> Dict[str, float]:
    """Answers the stream with a row; returns its seconds and its share of the dense FLOPs.

    Raises:
        RecipeError: the row is not trained.
        StepError: its generation failed.
    """
    checkpoint = "$BASE" if name == "dense" else "$OUT/{}-{}/checkpoint_last.pt".format(name, seed)
    if not os.path.exists(traffic.resolve(checkpoint)):
        raise RecipeError("{}: no trained weights, run.py makes them".format(checkpoint))
    command = ["python", "-m", "fairseq_cli.interactive", "$DATA", *recipes.TASK, *traffic.settings.generation]
    command += ["--max-len-b", "64", "--beam", str(traffic.settings.beam), "--path", checkpoint]
    command += ["--buffer-size", str(batch), "--batch-size", str(batch)]
    key = "{}-{}, batch {}".format(name, seed, batch)
    traffic.commands[key] = render([*command, "--input", "STREAM"], "")
    with tempfile.TemporaryDirectory() as folder:
        trace = os.path.join(folder, "trace.jsonl")
        command += ["--input", stream, "--sd-trace", trace]
        traffic.run(command, os.path.join(folder, "log"), os.path.join(folder, "texts"))
        report = summarise_trace(read_trace(trace))
    return {"seconds": report.seconds, "flops_corpus": report.flops_corpus}


def measure(traffic: Traffic, options: Any, wanted: Sequence[str], stream: str) -> List[Dict[str, Any]]:
    """Times all rows in turn; returns a result for each batch, row and seed."""
    found: List[Dict[str, Any]] = []
    for batch in options.batches:
        taken: Dict[Any, List[Dict[str, float]]] = {}
        for number in range(options.rounds):
            for seed in read_seeds(options.seeds):
                for name in wanted:
                    one = time_row(traffic, name, seed, batch, stream)
                    taken.setdefault((name, seed), []).append(one)
                    say(
                        "batch {}, round {}: {}, seed {}: {:.2f} s".format(
                            batch, number + 1, name, seed, one["seconds"]
                        )
                    )
        for (name, seed), rounds in taken.items():
            seconds = [one["seconds"] for one in rounds]
            dense = [one["seconds"] for one in taken["dense", seed]]
            ratios = sorted(other / mine for mine, other in zip(seconds, dense))
            result = {"row": name, "seed": seed, "batch": batch, "seconds": statistics.median(seconds)}
            result.update(times_as_fast=statistics.median(ratios), spread=[ratios[0], ratios[-1]], rounds=len(rounds))
            found.append({**result, "flops_corpus": rounds[0]["flops_corpus"]})
    return found


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Runs the command; returns its exit code."""
    parser = build_parser()
    parser.description = __doc__
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--requests", type=int, default=200, help="of the stream (default: %(default)s)")
    text = "requests answered at once, separated by commas (default: 1,16)"
    parser.add_argument(
        "--batches", type=lambda text: [int(one) for one in text.split(",")], default=[1, 16], help=text
    )
    parser.add_argument("--output", required=True, help="JSON file to write")
    options = parser.parse_args(argv)
    if min(options.rounds, options.requests, *options.batches) < 1:
        parser.error("--rounds, --requests and --batches of 1 or more are needed")
    try:
        if not os.path.isdir(os.path.dirname(os.path.abspath(options.output))):  # told before minutes are spent
            raise RecipeError("--output: no folder for {}".format(options.output))
        traffic = build_traffic(options)
        wanted = list(dict.fromkeys(["dense", *traffic.rows]))
        sources = draw_stream(options.prepared, traffic.prepared["shares"], options.requests)
        with tempfile.TemporaryDirectory() as folder:
            stream = os.path.join(folder, "stream")
            write_text(stream, "".join(source + "\n" for source in sources))
            rows = measure(traffic, options, wanted, stream)
        write_json(
            options.output,
            {
                "what": "{} requests in random order, {} thread(s)".format(len(sources), options.threads),
                "rows": rows,
                "device": traffic.name_device(traffic.settings.generation),
                "commands": traffic.commands,
                "versions": find_versions(),
            },
        )
    except (ValueError, OSError, StepError) as error:
        print("timing.py: error: {}".format(error), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
