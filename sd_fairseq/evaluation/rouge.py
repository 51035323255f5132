"""ROUGE as files2rouge prints it, digit for digit and without Perl: Python functions and the command `sd-rouge`.

Source: files2rouge 2.1.0 (command line, text, checks) around ROUGE-1.5.5 (:mod:`~sd_fairseq.evaluation.rouge_1_5_5`).
"""

import argparse
import importlib
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Dict, List, Mapping, Optional, Sequence

import numpy as np

from sd_fairseq.errors import InputError, QuietParser, end_quietly, run
from sd_fairseq.evaluation import ptb
from sd_fairseq.evaluation.rouge_1_5_5 import HIGH_RANK, LOW_RANK, RESAMPLES, order_documents, resample, score_lines
from sd_fairseq.evaluation.rouge_words import (
    INSTALLED_EXCEPTIONS,
    read_exceptions,
    read_lines,
    split_sentences,
    warn_unscorable,
)
from sd_fairseq.user_files import read_text
from sd_fairseq.version import __version__
from sd_fairseq.whole_files import check_places, write_text

DEFAULT_MAX_ORDER = 2


@dataclass(frozen=True)
class Interval:
    """A bootstrap mean with its 95 % confidence interval (0-1)."""

    average: float
    low: float
    high: float


@dataclass(frozen=True)
class RougeScore:
    """Recall, precision and F1 over all documents."""

    recall: Interval
    precision: Interval
    f: Interval


def rouge(
    hypotheses: Sequence[str], references: Sequence[str], eos: str = " .", **options: Any
) -> Dict[str, RougeScore]:
    """Compute what files2rouge prints.

    Args:
        hypotheses: one text a document.
        references: one text a document, as many.
        eos: end of sentence, with the space before it; it decides ROUGE-L.
        **options: keyword arguments of `score_lines`.

    Returns:
        "rouge1", "rouge2" and "rougeL" -> score, not rounded.

    Raises:
        ValueError: as `score_lines`.
    """
    lines, scores = score_lines(hypotheses, references, eos, **options)
    columns = np.concatenate(list(scores.values()), axis=1)[order_documents(lines)]
    ranked = resample(columns)
    # cumsum adds one by one as Perl does; sum would add pairwise and round differently.
    averages = np.cumsum(ranked, axis=1)[:, -1] / RESAMPLES
    lows, highs = ranked[:, LOW_RANK], ranked[:, HIGH_RANK]
    intervals = [Interval(*map(float, values)) for values in zip(averages, lows, highs)]
    return {name: RougeScore(*intervals[3 * row : 3 * row + 3]) for row, name in enumerate(scores)}


def document_scores(
    hypotheses: Sequence[str], references: Sequence[str], eos: str = " .", **options: Any
) -> Dict[str, np.ndarray]:
    """Compute F1 of every document.

    Args:
        hypotheses: one text a document.
        references: one text a document, as many.
        eos: end of sentence, with the space before it.
        **options: keyword arguments of `score_lines`.

    Returns:
        "rouge1", "rouge2" and "rougeL" -> [documents] F1 (0-1) in input order, without the ignored ones.

    Raises:
        ValueError: as `score_lines`.
    """
    _, scores = score_lines(hypotheses, references, eos, **options)
    return {name: values[:, 2] for name, values in scores.items()}


def format_report(scores: Mapping[str, RougeScore]) -> str:
    """Format scores as ROUGE-1.5.5 prints them.

    Args:
        scores: what `rouge` returns.

    Returns:
        The text, with a line break at its end.
    """
    lines = []
    for name, score in scores.items():
        lines.append("-" * 45)
        for letter, value in zip("RPF", (score.recall, score.precision, score.f)):
            head = "1 ROUGE-{} Average_{}: {:7.5f}".format(name[len("rouge") :], letter, value.average)
            lines.append("{} (95%-conf.int. {:7.5f} - {:7.5f})".format(head, value.low, value.high))
    return "\n".join(lines) + "\n"


def format_signature(documents: int, eos: str = " .", **choices: bool) -> str:
    """Name what decides the digits, to stand beside a score.

    Args:
        documents: number of documents scored.
        eos: end of sentence.
        **choices: "stem", "exceptions" and "ptb"; by default only stem is true.

    Returns:
        One line.
    """
    fields = {"port-of": "ROUGE-1.5.5"}
    for name, value in {"stem": True, "exceptions": False, "ptb": False, **choices}.items():
        fields[name] = "yes" if value else "no"
    fields.update(eos=eos.strip(), bootstrap=str(RESAMPLES), n=str(documents), version=__version__)
    return "|".join(["sd_rouge"] + [":".join(field) for field in fields.items()])


def google_rouge_lsum(hypotheses: Sequence[str], references: Sequence[str], eos: str = " .") -> float:
    """Compute the mean rougeLsum F1 (0-1) of google-research's rouge-score, which Hugging Face users report.

    Args:
        hypotheses: one text a document.
        references: one text a document, as many.
        eos: end of sentence, with the space before it.

    Returns:
        The plain mean over all documents, with stemming.

    Raises:
        ImportError: rouge-score is not installed.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise ImportError("--lsum needs rouge-score; install it with: pip install rouge-score") from error
    scorer = RougeScorer(["rougeLsum"], use_stemmer=True)
    pairs = (["\n".join(split_sentences(text, eos)) for text in pair] for pair in zip(references, hypotheses))
    return float(np.mean([scorer.score(*pair)["rougeLsum"].fmeasure for pair in pairs]))


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line: files2rouge's, and what this package adds."""
    end_quietly()
    about = "ROUGE of two files, line by line, as files2rouge"
    parser = QuietParser(prog="sd-rouge", description=about, epilog="example: sd-rouge ref.txt out.txt")
    flag = parser.add_argument
    flag("--version", action="version", version="%(prog)s " + __version__)
    flag("reference", help="file with references, one document a line")
    flag("summary", help="file with summaries, one document a line")
    flag("-v", "--verbose", action="store_true", help="also print what decides the digits, on standard error")
    flag("-n", "--rouge_n", type=int, default=DEFAULT_MAX_ORDER, help="longest n-gram (default: %(default)s)")
    flag("-nol", "--no_rouge_l", action="store_true", help="leave out ROUGE-L")
    flag("-a", "--args", help="arguments for ROUGE-1.5.5; only the real files2rouge takes them")
    flag("-s", "--saveto", help="file to save the scores in")
    flag("-e", "--eos", default=".", help="end of sentence, after a space (default: %(default)s); decides ROUGE-L")
    flag("-m", "--stemming", action="store_true", help="deprecated: stemming is the default")
    flag("-nm", "--no_stemming", action="store_true", help="do not stem")
    flag("-ir", "--ignore_empty_reference", action="store_true", help="leave out empty references")
    flag("-is", "--ignore_empty_summary", action="store_true", help="leave out empty summaries")
    flag("--backend", choices=["auto", "port", "files2rouge"], default="auto", help="auto: files2rouge if installed")
    flag("--ptb", action="store_true", help="tokenise both files first (Penn Treebank; needs pysbd)")
    flag("--lsum", action="store_true", help="also print google-research's rougeLsum F1 (needs rouge-score)")
    flag(
        "--exceptions",
        metavar="FOLDER",
        help="look up irregular forms in FOLDER's *.exc files of WordNet, as many published ROUGE-1.5.5 reports did; "
        + "'{}' takes those of that installed package".format(INSTALLED_EXCEPTIONS),
    )
    return parser


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command `sd-rouge`.

    Args:
        argv: arguments; those of the process when None.

    Returns:
        Exit code: 0, or 1 after one line on standard error about input that cannot be scored.
    """
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.stemming:
        parser.error("stemming is the default, so -m/--stemming is deprecated; -nm/--no_stemming turns it off")
    return run(_run, args, "sd-rouge")


def _run(args: argparse.Namespace) -> None:
    start = time.perf_counter()
    check_places([args.saveto], [args.reference, args.summary])
    backend = _choose_backend(args)
    references, summaries = read_lines(args.reference), read_lines(args.summary)
    cut = sum("<" in line for line in references + summaries)
    if cut:
        print("sd-rouge: warning: ROUGE-1.5.5 cuts {} line(s) at their first '<'".format(cut), file=sys.stderr)
    unscorable = warn_unscorable(references + summaries)
    if unscorable:
        print("sd-rouge: warning: " + unscorable, file=sys.stderr)
    if args.ptb:
        references, summaries = ([ptb.tokenize(line) for line in lines] for lines in (references, summaries))
    if backend == "files2rouge":
        _run_files2rouge(args, references, summaries)
    else:
        _run_port(args, references, summaries)
        print("Elapsed time: {:.3f} seconds".format(time.perf_counter() - start))
    if args.lsum:
        lsum = google_rouge_lsum(summaries, references, " " + args.eos)
        print("rouge_score rougeLsum F (stemmed, plain mean): {:.5f}".format(lsum))


def _choose_backend(args: argparse.Namespace) -> str:
    """Settle which backend runs, or say in one line why the arguments fit none."""
    package = find_spec("files2rouge")
    # A mere folder of that name, such as the top of its repository, has no origin.
    installed = package is not None and package.origin is not None
    if args.backend == "files2rouge" and not installed:
        raise ValueError("files2rouge is not installed; --backend port needs neither it nor Perl")
    if args.exceptions and args.backend == "files2rouge":
        raise ValueError("--exceptions needs --backend port: files2rouge brings its own, empty, list")
    backend = "files2rouge" if installed and args.backend != "port" and not args.exceptions else "port"
    if args.args is not None and backend == "port":
        raise ValueError("-a/--args is for ROUGE-1.5.5 itself: install files2rouge, or use -n, -nol and -nm")
    return backend


def _run_port(args: argparse.Namespace, references: List[str], summaries: List[str]) -> None:
    options = {
        "ignore_empty_reference": args.ignore_empty_reference,
        "ignore_empty_summary": args.ignore_empty_summary,
        "max_order": args.rouge_n,
        "rouge_l": not args.no_rouge_l,
        "stemming": not args.no_stemming,
        "exceptions": read_exceptions(args.exceptions) if args.exceptions else None,
    }
    eos = " " + args.eos
    report = format_report(rouge(summaries, references, eos, **options))
    ignored = sum(not (reference and summary) for reference, summary in zip(references, summaries))
    print("Preparing documents... {} line(s) ignored".format(ignored))
    print("Running ROUGE...")
    print(report)
    if args.verbose:
        choices = {"stem": not args.no_stemming, "exceptions": bool(args.exceptions), "ptb": args.ptb}
        print(format_signature(len(references) - ignored, eos, **choices), file=sys.stderr)
    if args.saveto:
        write_text(args.saveto, report + "\n")


def _run_files2rouge(args: argparse.Namespace, references: List[str], summaries: List[str]) -> None:
    """Let the real files2rouge print its report; it reads copies, which are tokenised where that was asked for."""
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: os.path.join(folder, name) for name in ("summaries", "references", "scores")}
        for name, lines in (("summaries", summaries), ("references", references)):
            write_text(paths[name], "".join(line + "\n" for line in lines))
        try:
            importlib.import_module("files2rouge.files2rouge").run(
                paths["summaries"],
                paths["references"],
                rouge_args=args.args,
                verbose=args.verbose,
                saveto=paths["scores"] if args.saveto else None,
                rouge_n=args.rouge_n,
                no_rouge_l=args.no_rouge_l,
                eos=args.eos,
                ignore_empty_reference=args.ignore_empty_reference,
                ignore_empty_summary=args.ignore_empty_summary,
                stemming=not args.no_stemming,
            )
        except Exception as error:
            raise InputError("files2rouge failed ({}); --backend port does not need it".format(error)) from error
        if args.saveto:
            write_text(args.saveto, read_text(paths["scores"]))


if __name__ == "__main__":
    sys.exit(main())
