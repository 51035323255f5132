"""The trade-off grid as tables and one picture, from the JSON files of its rows.

    python tools/learning_table.py results/debian/trained --plot tradeoff.png --against tolerance-0.25
    python tools/learning_table.py --fill README.md

Source: "Switchable Decision" (ICML 2024), Tables 7, 8 and 11 (quality and FLOPs) and 10 (skip rates).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import shlex
import sys
from typing import Any, Callable, Dict, List, Optional, Sequence

from estimator_table import render_estimators
from fit_table import render_fits
from learning_plots import draw_grid
from learning_results import BY_EXAMPLE, CONSTRAINT, METRICS, ResultError, read_results
from learning_rows import GridRow, check_comparable, collect, compare_by_example, pair_by_seed
from tabulate import tabulate
from understanding_table import SITES, mean, show_range

from sd_fairseq.whole_files import whole, write_text

TABLES = ("quality", "skipped", "compared", "estimators", "fits")
BRIEF = ("row", "seeds", "R-L - dense", "significant loss", "FLOPs", "distinct paths", "violation (deployed)")
BLOCK = re.compile(r"^<!-- learning_table ([^\n]*) -->\n(.*?)^<!-- /learning_table -->$", re.MULTILINE | re.DOTALL)
HEADER = (
    *("row", "seeds", "R-1", "R-2", "R-L", "R-L - dense", "significant loss", "FLOPs", "FLOPs (paper)"),
    *("FLOPs (corpus)", "seconds", "distinct paths", "updates to converge", "violation", "violation (deployed)"),
)


def render_grid(rows: Dict[str, GridRow]) -> str:
    """Renders quality and cost, Markdown: means over the seeds with smallest and largest value, failures below.

    "R-L - dense" has the 95 % interval of a bootstrap over the examples, paired, where the results hold their scores.
    """
    lines = [[name, *_cells(row, rows.get("dense", GridRow()))] for name, row in rows.items()]
    table = tabulate(lines, HEADER, tablefmt="github", disable_numparse=True)
    failures = [f"- {name}, seed {seed}: {why}" for name, row in rows.items() for seed, why in row.failures.items()]
    return "\n".join([table] + (["", "Failed:", "", *failures] if failures else []))


def render_brief(rows: Dict[str, GridRow]) -> str:
    """Renders some columns of :func:`render_grid`, without the dense row, Markdown."""
    dense = rows.get("dense", GridRow())
    lines = [dict(zip(HEADER, [name, *_cells(row, dense)])) for name, row in rows.items() if name != "dense"]
    table = [[line[column] for column in BRIEF] for line in lines]
    return tabulate(table, BRIEF, tablefmt="github", disable_numparse=True)


def _cells(row: GridRow, reference: GridRow) -> List[str]:
    seeds = [", ".join(str(run["seed"]) for run in row.runs)] if row.runs else []
    seeds += ["failed: " + ", ".join(map(str, row.failures))] if row.failures else []
    cells = ["; ".join(seeds)]
    if not row.runs:
        return cells + ["-"] * (len(HEADER) - 2)
    cells += [show_range(row.values(metric)) for metric in METRICS]
    dense = row.runs[0]["row"] == "dense"
    losses = sum(run["significant_loss"] for run in row.runs)
    pairs = pair_by_seed(row, reference)
    if len(pairs) == len(row.runs):
        difference = _show_interval(compare_by_example(pairs))
    else:
        difference = f"{mean([run['rougeL_minus_dense']['difference'] for run in row.runs]):+.2f}"
    cells += ["", ""] if dense else [difference, f"{losses} of {len(row.runs)}"]
    shown: Dict[str, Callable[[float], str]] = {
        "flops_generation": "{:.3f}".format,
        "flops_paper": "{:.3f}".format,
        "flops_corpus": "{:.3f}".format,
        "seconds": "{:.1f}".format,
        "distinct_paths": "{:.0f}".format,
        "updates_to_converge": "{:.0f}".format,
        "violation_last": "{:+.3f}".format,
    }
    for name, show in shown.items():
        values = corpus_flops(row) if name == "flops_corpus" else row.values(name)
        cells.append(show(mean(values)) if values else "-")
    return [*cells, _show_violation(row.runs)]


def corpus_flops(row: GridRow) -> List[float]:
    """Returns each run's FLOPs of all documents over those of all their dense paths."""
    parts = ("gflops_per_example", "gflops_per_example_dense")
    return [run[parts[0]] / run[parts[1]] for run in row.runs if all(run.get(part) for part in parts)]


def _show_violation(runs: Sequence[Dict[str, Any]]) -> str:
    """Renders what constraint_check measured: of one seed with its interval, of several with the lowest and highest."""
    found = [run[CONSTRAINT]["violation"] for run in runs if CONSTRAINT in run]
    if not found:
        return "-"
    if len(found) == 1:
        return "{difference:+.3f} [{low:+.3f}, {high:+.3f}]".format(**found[0])
    values = [one["difference"] for one in found]
    return f"{mean(values):+.3f} ({min(values):+.3f} to {max(values):+.3f})"


def render_noise(rows: Dict[str, GridRow], path: str) -> str:
    """Renders every estimator's noise beside the quality, cost and violation of its row, Markdown.

    Args:
        rows: of the grid.
        path: JSON that :mod:`sd_fairseq.study.gradient_noise` wrote.

    Raises:
        ResultError: the file is not what gradient_noise writes.
    """
    shown = ("seeds", "R-L - dense", "FLOPs", "distinct paths", "violation (deployed)")
    places = [HEADER.index(name) - 1 for name in shown]
    cells = {name: _cells(row, rows.get("dense", GridRow())) for name, row in rows.items() if row.runs}
    figures = {name: [given[place] for place in places] for name, given in cells.items()}
    return render_estimators(rows, figures, list(shown), path)


def render_skip_rates(rows: Dict[str, GridRow]) -> str:
    """Renders Table 10's figures: percent skipped a site, means over the seeds, Markdown; '-' = not switchable."""
    lines = []
    for name, row in rows.items():
        if row.runs and name != "dense":
            cells = [name]
            for site in SITES:
                rates = [run["skip_rates"][site] for run in row.runs if site in run["skip_rates"]]
                cells.append(f"{100 * mean(rates):.1f}" if rates else "-")
            lines.append(cells)
    return tabulate(lines, ["% skipped", *SITES.values()], tablefmt="github", disable_numparse=True)


def render_comparison(rows: Dict[str, GridRow], reference: str) -> str:
    """Renders ROUGE-L and FLOPs of every row minus those of ``reference``, paired by example and seed, Markdown.

    "all seeds" resamples the examples of the differences' means over the seeds: seeds share their examples.

    Raises:
        ResultError: no such row, or its results do not hold scores by example.
    """
    row_of_reference = rows.get(reference, GridRow())
    if not any(BY_EXAMPLE in run for run in row_of_reference.runs):
        raise ResultError(f"--against {reference}: no such row with {BY_EXAMPLE!r}; there are {', '.join(rows)}")
    lines = []
    for name, row in rows.items():
        pairs = pair_by_seed(row, row_of_reference)
        if name == reference or not pairs:
            continue
        each = "; ".join(_show_interval(compare_by_example([pair])) for pair in pairs)
        together = _show_interval(compare_by_example(pairs))
        seeds = [one["seed"] for one, _ in pairs]
        flops = mean([one["flops_generation"] - other["flops_generation"] for one, other in pairs])
        lines.append([name, ", ".join(map(str, seeds)), each, together, f"{flops:+.3f}"])
    header = ["row", "seeds", f"R-L - {reference}, each seed", "all seeds", f"FLOPs - {reference}"]
    return tabulate(lines, header, tablefmt="github", disable_numparse=True)


def _show_interval(test: Dict[str, float]) -> str:
    return "{difference:+.2f} [{low:+.2f}, {high:+.2f}]".format(**test)


def draw(rows: Dict[str, GridRow], path: str) -> None:
    """Draws the picture beside its place, then renames.

    Raises:
        ResultError: it cannot be written.
    """
    intervals = {}
    for name, row in rows.items():
        pairs = pair_by_seed(row, rows.get("dense", GridRow()))
        if pairs and len(pairs) == len(row.runs):
            test = compare_by_example(pairs)
            intervals[name] = test["low"], test["high"]
    try:
        with whole(path) as part:
            draw_grid({name: row.runs for name, row in rows.items() if row.runs}, intervals, part)
    except OSError as error:
        raise ResultError(f"{path}: cannot be written ({error.strerror})") from error


def build_parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    summary = str(__doc__).split("\n", 1)[0]
    parser = argparse.ArgumentParser(prog="tools/learning_table.py", description=summary)
    parser.add_argument("folder", nargs="?", help="folder of results, ROW-SEED.json")
    parser.add_argument("--plot", metavar="PNG", help="draw ROUGE-L minus dense against FLOPs, too")
    parser.add_argument("--against", metavar="ROW", help="compare every row with ROW, paired by example and seed, too")
    parser.add_argument("--noise", metavar="JSON", help="of gradient_noise: show the estimators, too")
    parser.add_argument("--fits", metavar="FOLDER", help="of reports of policy_fit: show them, too")
    text = "which, separated by commas (default: %(default)s); brief: some columns of quality"
    parser.add_argument("--tables", default=",".join(TABLES), help=text)
    parser.add_argument(
        "--fill", nargs="+", metavar="FILE", help="instead: put tables (and plots) where FILEs want them"
    )
    return parser


def make_tables(options: argparse.Namespace) -> str:
    """Makes the tables of a folder, and the picture where one is wanted.

    Raises:
        ResultError: results that cannot be read, do not compare, or lack what is asked for.
    """
    wanted = options.tables.split(",")
    unknown = [name for name in wanted if name not in (*TABLES, "brief")]
    if unknown:
        raise ResultError(f"--tables: {unknown[0]!r} is none of {', '.join(TABLES)}, brief")
    results = read_results(options.folder)
    check_comparable(results)
    rows = collect(results)
    makers: Dict[str, Callable[[], str]] = {
        "quality": lambda: render_grid(rows),
        "brief": lambda: render_brief(rows),
        "skipped": lambda: render_skip_rates(rows),
        "compared": lambda: render_comparison(rows, options.against),
        "estimators": lambda: render_noise(rows, options.noise),
        "fits": lambda: render_fits(options.fits),
    }
    needs = {"compared": options.against, "estimators": options.noise, "fits": options.fits}  # made where this is given
    made = [makers[name]() for name in wanted if needs.get(name, True)]
    if options.plot:
        draw(rows, options.plot)
    return "\n\n".join(made)


def fill(text: str, place: str) -> str:
    """Replaces what stands between ``<!-- learning_table OPTIONS -->`` and ``<!-- /learning_table -->`` by the tables.

    Args:
        text: of a document, Markdown; folders in OPTIONS are seen from the working directory.
        place: its name, for messages.

    Raises:
        ResultError: no such lines, one without the other, or OPTIONS that cannot be followed.
    """
    pieces = BLOCK.split(text)  # text, options, what stood there, text, ...
    left = "".join(pieces[::3])
    if len(pieces) == 1 or "learning_table -->" in left or "<!-- learning_table" in left:
        raise ResultError(
            f"{place}: expected lines <!-- learning_table FOLDER --> and <!-- /learning_table --> in pairs"
        )
    for index in range(1, len(pieces), 3):
        words = pieces[index]
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # argparse's usage
                options = build_parser().parse_args(shlex.split(words))
        except (SystemExit, ValueError) as error:
            raise ResultError(f"{place}: <!-- learning_table {words} -->: options that are none") from error
        if options.folder is None or options.fill:
            raise ResultError(f"{place}: <!-- learning_table {words} -->: expected a folder, and no --fill")
        tables = make_tables(options)
        pieces[index] = f"<!-- learning_table {words} -->\n\n{tables}\n\n<!-- /learning_table -->"
        pieces[index + 1] = ""
    return "".join(pieces)


def fill_files(paths: Sequence[str]) -> None:
    """Fills files; each is written beside its place, then renamed, once all are made.

    Raises:
        ResultError: see :func:`fill`; or a file that cannot be read or written.
    """
    made = {}
    try:
        for path in paths:
            with open(path, encoding="utf-8") as text:
                made[path] = fill(text.read(), path)
        for path, content in made.items():
            write_text(path, content)
    except OSError as error:
        raise ResultError(f"{error.filename}: {error.strerror}") from error


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Runs the command; returns its exit code."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    if bool(options.folder) == bool(options.fill):
        parser.error("expected a folder of results, or --fill and files")
    try:
        if options.fill:
            fill_files(options.fill)
        else:
            print(make_tables(options))
    except ValueError as error:  # a ResultError, or matplotlib is missing
        print(f"learning_table: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
