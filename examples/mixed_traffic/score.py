"""Score one generation of mixed traffic task by task, or compare two scored runs example by example.

    python examples/mixed_traffic/score.py run GENERATION TRACE SIDE.jsonl --losses LOSSES.json --output RUN.json
    python examples/mixed_traffic/score.py compare RUN.json OTHER.json

GENERATION is fairseq-generate's standard output, TRACE what --sd-trace wrote, SIDE the side file of prepare.py, LOSSES
what losses.py wrote. Of several references the best one counts, for each measure by itself. All scores are 0 to 100.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path[:0] = [ROOT, HERE]

import numpy as np  # noqa: E402
from tabulate import tabulate  # noqa: E402
from tasks import KINDS, WEIGHTS, plain  # noqa: E402

from sd_fairseq.decision.trace import TraceRecord  # noqa: E402
from sd_fairseq.errors import InputError, run  # noqa: E402
from sd_fairseq.evaluation.generated_scores import Scoring  # noqa: E402
from sd_fairseq.evaluation.report import System, bootstrap_differences, read_system  # noqa: E402
from sd_fairseq.evaluation.rouge import document_scores  # noqa: E402
from sd_fairseq.evaluation.skip_report import summarise_trace  # noqa: E402
from sd_fairseq.evaluation.squad_data import Answer, Question  # noqa: E402
from sd_fairseq.evaluation.squad_score import score_question  # noqa: E402
from sd_fairseq.user_files import read_json_lines, read_json_object  # noqa: E402
from sd_fairseq.whole_files import check_places, write_json  # noqa: E402

METRICS = {"label": ("accuracy",), "summary": ("rouge1", "rouge2", "rougeL"), "answer": ("exact", "f1")}
MAIN = {"label": "accuracy", "summary": "rougeL", "answer": "f1"}
LOSS = "loss"  # nats a token, teacher-forced
EOS = " ."  # end of sentence, as --sd-rouge-eos


@dataclass(frozen=True)
class Side:
    """What the side file says of one example.

    Args:
        task: of :data:`tasks.KINDS`.
        key: its name there.
        references: right answers.
        group: kind of question within the task, or "".
    """

    task: str
    key: str
    references: Tuple[str, ...]
    group: str = ""


def read_side(path: str) -> List[Side]:
    """Reads a side file; line n is of example n.

    Raises:
        InputError: unreadable, a line of another form, or ids out of order.
    """
    found: List[Side] = []
    for place, entry in read_json_lines(path):
        references = entry.get("references")
        if entry.get("id") != len(found):
            raise InputError("{}: id {!r}, expected {}".format(place, entry.get("id"), len(found)))
        if entry.get("task") not in KINDS or not isinstance(entry.get("key"), str):
            raise InputError("{}: expected a task of {} and a key".format(place, ", ".join(KINDS)))
        if not isinstance(references, list) or not references or not all(isinstance(one, str) for one in references):
            raise InputError("{}: expected texts as 'references'".format(place))
        found.append(Side(entry["task"], entry["key"], tuple(references), str(entry.get("group", ""))))
    if not found:
        raise InputError("{}: holds no examples".format(path))
    return found


def score_answers(kind: str, answers: Sequence[str], references: Sequence[Sequence[str]]) -> Dict[str, List[float]]:
    """Scores answers, 0-100 each; of several references the best one counts.

    Args:
        kind: of :data:`METRICS`.
        answers: as generated.
        references: right answers of each.
    """
    if kind == "label":
        right = [plain(answer).lower() in {one.lower() for one in golds} for answer, golds in zip(answers, references)]
        return {"accuracy": [100.0 * one for one in right]}
    if kind == "answer":
        pairs = [
            score_question(Question("", "", "", tuple(Answer(one, 0) for one in golds), None, ""), answer, False)
            for answer, golds in zip(answers, references)
        ]
        return {name: [100 * pair[place] for pair in pairs] for place, name in enumerate(METRICS[kind])}
    return score_summaries(answers, references)


def score_summaries(answers: Sequence[str], references: Sequence[Sequence[str]]) -> Dict[str, List[float]]:
    """Scores summaries by the project's ROUGE; see :func:`score_answers`."""
    scoring = Scoring()
    owners = [place for place, golds in enumerate(references) for _ in golds]
    flat = [scoring.prepare(one) for golds in references for one in golds]
    written = [scoring.prepare(answers[place]) for place in owners]
    best = {name: [0.0] * len(answers) for name in METRICS["summary"]}
    for name, values in document_scores(written, flat, EOS, count_empty=True).items():
        for place, value in zip(owners, values):
            best[name][place] = max(best[name][place], 100 * float(value))
    return best


def describe_task(records: Sequence[TraceRecord]) -> Dict[str, Any]:
    """Returns what the examples of one task cost and skipped."""
    figures = asdict(summarise_trace(records))
    paths = Counter(record.path for record in records)
    figures["top_path"] = list(min(paths, key=lambda path: (-paths[path], path)))
    return figures


def describe_groups(names: Sequence[str], records: Sequence[TraceRecord]) -> Dict[str, Dict[str, Any]]:
    """Returns group -> places of its examples among the task's, and what they cost; nothing of the group "".

    Args:
        names: group of every example of a task.
        records: their traces.
    """
    found = {}
    for name in sorted({name for name in names if name}):
        places = [place for place, one in enumerate(names) if one == name]
        figures = summarise_trace([records[place] for place in places])
        found[name] = {"places": places, "flops_corpus": figures.flops_corpus, "paths": figures.distinct_paths}
    return found


def find_traffic(tasks: Mapping[str, Dict[str, Any]], shares: Mapping[str, float]) -> Dict[str, Any]:
    """Returns what the whole stream costs: tasks in the shares of the traffic, and as many requests of each.

    Args:
        tasks: task -> its figures.
        shares: task -> its share of the requests; they need not sum to 1.
    """

    def corpus(weights: Mapping[str, float]) -> float:
        spent, dense = (
            sum(weights[task] * figures[name] for task, figures in tasks.items())
            for name in ("gflops_per_example", "gflops_per_example_dense")
        )
        return float(spent / dense)

    total = sum(shares[task] for task in tasks)
    found: Dict[str, Any] = {
        "shares": {task: shares[task] / total for task in tasks},
        "flops_corpus": corpus(shares),
        "flops_corpus_equal_requests": corpus(dict.fromkeys(tasks, 1.0)),
    }
    if all(LOSS in figures for figures in tasks.values()):
        found[LOSS] = sum(found["shares"][task] * figures[LOSS] for task, figures in tasks.items())
    return found


def read_losses(path: str, count: int) -> List[float]:
    """Reads losses by example.

    Raises:
        InputError: another file, or of other examples.
    """
    content = read_json_object(path)
    if content.get("id") != list(range(count)) or not isinstance(content.get(LOSS), list):
        raise InputError("{}: expected 'id' 0 to {} and 'loss', as losses.py writes them".format(path, count - 1))
    return [float(loss) for loss in content[LOSS]]


def score_system(
    system: System, side: Sequence[Side], losses: Optional[Sequence[float]], shares: Mapping[str, float]
) -> Dict[str, Any]:
    """Scores a system task by task.

    Args:
        system: its texts and its trace, in whatever order they were generated.
        side: of all examples.
        losses: of all examples; None = not measured.
        shares: of the traffic.

    Raises:
        InputError: other examples than the side file's.
    """
    if system.output.ids != list(range(len(side))):
        odd = sorted(set(system.output.ids) ^ set(range(len(side))))
        message = "{}: {} examples, the side file has {}; the first that differs is {}"
        raise InputError(message.format(system.name, len(system.output.ids), len(side), odd[0]))
    figures: Dict[str, Dict[str, Any]] = {}
    by_example: Dict[str, Dict[str, List[float]]] = {}
    groups: Dict[str, Dict[str, Any]] = {}
    for task in [task for task in KINDS if any(one.task == task for one in side)]:
        ids = [number for number, one in enumerate(side) if one.task == task]
        answers = [system.output.hypotheses[number] for number in ids]
        scores = score_answers(KINDS[task], answers, [side[number].references for number in ids])
        if losses is not None:
            scores[LOSS] = [losses[number] for number in ids]
        figures[task] = {name: float(np.mean(values)) for name, values in scores.items()}
        figures[task].update(describe_task([system.records[number] for number in ids]))
        digits = {name: 5 if name == LOSS else 2 for name in scores}
        found = describe_groups([side[number].group for number in ids], [system.records[number] for number in ids])
        groups.update({task: found} if found else {})
        by_example[task] = {name: [round(one, digits[name]) for one in values] for name, values in scores.items()}
    whole = summarise_trace(system.records)
    return {
        "examples": len(side),
        "distinct_paths": whole.distinct_paths,
        "seconds": whole.seconds,
        "search": system.records[0].generation,
        "traffic": find_traffic(figures, {task: shares.get(task, 1.0) for task in figures}),
        "tasks": figures,
        "groups": groups,
        "by_example": by_example,
    }


def compare(one: Mapping[str, Any], others: Mapping[str, Any]) -> Dict[str, Dict[str, Dict[str, float]]]:
    """Compares two scored runs: task -> measure -> first minus second, 95 % interval of a paired bootstrap.

    Under "traffic" the loss of the whole stream is compared, tasks in its shares.

    Raises:
        InputError: runs of other examples.
    """
    return compare_many([(one, others)])


def compare_many(pairs: Sequence[Tuple[Mapping[str, Any], Mapping[str, Any]]]) -> Dict[str, Dict[str, Any]]:
    """As :func:`compare`, of pairs of runs (seeds) that share their examples: these are resampled, not the pairs."""
    found: Dict[str, Dict[str, Any]] = {}
    weighted: List[np.ndarray] = []
    shares = pairs[0][0]["traffic"]["shares"]
    total = sum(len(next(iter(values.values()))) for values in pairs[0][0]["by_example"].values())
    for task, measures in pairs[0][0]["by_example"].items():
        found[task] = {}
        for name in measures:
            differences = np.mean([_difference(mine, theirs, task, name) for mine, theirs in pairs], axis=0)
            found[task][name] = bootstrap_differences(differences, task)
            if name == LOSS:  # weights 1 on average over all examples
                weighted.append(differences * shares[task] * total / len(differences))
    if weighted and len(weighted) == len(found):
        found["traffic"] = {LOSS: bootstrap_differences(np.concatenate(weighted), "traffic")}
    return found


def _difference(one: Mapping[str, Any], other: Mapping[str, Any], task: str, name: str) -> np.ndarray:
    values = [run["by_example"].get(task, {}).get(name) for run in (one, other)]
    if any(value is None for value in values) or len(values[0]) != len(values[1]):
        raise InputError("the two runs differ in their examples of {} or lack {}".format(task, name))
    return np.array(values[0], dtype=float) - np.array(values[1], dtype=float)


def show(test: Mapping[str, float]) -> str:
    """Writes an interval."""
    return "{difference:+.3f} [{low:+.3f}, {high:+.3f}]".format(**test)


def work(args: argparse.Namespace) -> None:
    """Scores or compares, writes and prints."""
    if args.command == "compare":
        runs = [read_json_object(path) for path in (args.run, args.other)]
        for path, content in zip((args.run, args.other), runs):
            if not isinstance(content.get("by_example"), dict) or not isinstance(content.get("traffic"), dict):
                raise InputError("{}: holds no scores by example".format(path))
        found = compare(*runs)
        lines = [(task, name, show(test)) for task, tests in found.items() for name, test in tests.items()]
        print(tabulate(lines, ("task", "measure", "first - second")))
        return
    check_places([args.output], [args.generation, args.trace, args.side, args.losses])
    side = read_side(args.side)
    system = read_system(args.generation, args.generation, args.trace)
    losses = read_losses(args.losses, len(side)) if args.losses else None
    shares: Dict[str, float] = dict(WEIGHTS)
    if args.prepared:
        shares = read_json_object(args.prepared)["shares"]
    figures = score_system(system, side, losses, shares)
    if args.output:
        write_json(args.output, figures)
    names = [LOSS, "accuracy", "rouge1", "rouge2", "rougeL", "exact", "f1", "flops_corpus", "distinct_paths"]
    lines = [[task, *(one.get(name) for name in names)] for task, one in figures["tasks"].items()]
    lines.append(["traffic", *(figures["traffic"].get(name) for name in names)])
    print(tabulate(lines, ["task", *names], floatfmt=".3f"))


def build_parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("run", help="score one generation").add_argument
    add("generation", help="fairseq-generate's standard output")
    add("trace", help="what --sd-trace wrote")
    add("side", help="side file of the split")
    add("--losses", help="what losses.py wrote")
    add("--prepared", help="prepared.json: the shares of the traffic (default: 16 : 12 : 4 : 8)")
    add("--output", help="JSON file to write")
    add = commands.add_parser("compare", help="compare two scored runs").add_argument
    add("run", help="JSON of a run")
    add("other", help="JSON of another run, of the same examples")
    return parser


if __name__ == "__main__":
    sys.exit(run(work, build_parser().parse_args(), "score.py"))
