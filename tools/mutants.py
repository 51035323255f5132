"""Would the tests notice? Changes the code in one place, hundreds of times, and counts the changes that a test catches.

``python tools/mutants.py OUT [--count 300] [--seed 1] [--at-once 2] [--limit 20] [--tests FOLDER ...] [--again]
[--control]``

The changes are cosmic-ray's, drawn by seed from every place that computes (:mod:`mutant_sites` says what is skipped). A
mutant is shown only the tests that execute its statement, those of its own chapter and the cheapest first, until one
fails (:mod:`mutant_session` says how that takes seconds). Tests that need more than ``--limit`` seconds of processor
time together are left out, so are single ones of more than two, variants of one test beyond ten, and those that run
commands of their own: a mutant called a survivor might still be caught by them. ``OUT/coverage`` keeps which test
executes which line, measured anew for a test file when it or a source that it executes has changed.
``OUT/mutants.jsonl`` has a line a mutant; a run that was stopped goes on after the last one.

Outcomes: killed (a test fails), timeout (a test does not end), survived, equivalent (no test can tell, for the reason
in ``tools/equivalent_mutants.tsv``: file, function, code before, code after, reason). Both first count as caught.
``--again`` shows the survivors of an earlier run the tests as they are now. ``--control`` runs, without a mutation,
every test that killed one, and fails if one fails.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Sequence, Set, Tuple

from mutant_reach import Reach, list_tests, measure, read_reach
from mutant_session import TESTS, Job, Replaced, Session, changed_functions, collect, import_foreign, in_forks
from mutant_session import replace_functions as replace
from mutant_sites import CHAPTERS, ROOT, Mutant, draw

EQUIVALENT = ROOT / "tools" / "equivalent_mutants.tsv"


def read_equivalent() -> Dict[Tuple[str, ...], str]:
    """Reads the mutants that no test can tell from the code: (file, function, before, after) to the reason."""
    with open(EQUIVALENT, encoding="utf-8", newline="") as table:
        rows = list(csv.reader(table, delimiter="\t", quoting=csv.QUOTE_NONE))[1:]
    return {tuple(row[:4]): row[4] for row in rows}


def judge(mutant: Mutant, tests: Sequence[str], result: Dict[str, Any]) -> Dict[str, Any]:
    """Makes the record of a mutant from what its fork reports."""
    before, after = mutant.change
    outcome = "killed" if result["failures"] else "survived"
    if "status" in result:
        outcome = "timeout" if result["hang"] else "killed"  # by a signal: the process crashed
        if os.WIFEXITED(result["status"]):
            raise SystemExit(f"{mutant.file}:{mutant.line}, {after}: the fork failed, not a test")
    test, why = (result["failures"] or [("", "")])[0]
    return {
        **{"name": mutant.rank, "chapter": mutant.chapter, "file": mutant.file, "line": mutant.line},
        **{"function": mutant.function, "operator": mutant.operator, "before": before, "after": after},
        **{"outcome": outcome, "test": test, "why": why, "tests": len(tests)},
        "seconds": round(sum(result["seconds"].values()), 2),
    }


def run_fast(session: Session, mutants: Sequence[Mutant], reach: Reach, args: argparse.Namespace) -> Iterator[Any]:
    """Judges mutants of functions' bodies, each in a fork of the session; yields records."""
    chosen = {mutant.rank: (mutant, reach.choose(mutant, args.limit)) for mutant in mutants}

    def jobs() -> Iterator[Job]:
        for mutant, tests in (one for one in chosen.values() if one[1]):
            seconds = 10 + 3 * sum(reach.seconds[test] for test in tests)
            yield Job(mutant.rank, tests, partial(replace, mutant.file, changed_functions(mutant) or {}), seconds)

    for mutant, tests in chosen.values():
        if not tests:
            yield judge(mutant, tests, {"failures": [], "seconds": {}})
    for job, result in in_forks(jobs(), session.run, args.folder, args.at_once):
        yield judge(*chosen[job.name], result)


def run_at_import(mutants: Sequence[Mutant], reach: Reach, args: argparse.Namespace) -> Iterator[Any]:
    """Judges mutants of what import does, each in a fork that has imported nothing of ours; yields records."""
    chosen = {mutant.rank: (mutant, reach.choose(mutant, args.limit)) for mutant in mutants}

    def act(job: Job) -> Dict[str, Any]:
        mutant, tests = chosen[job.name]
        sys.meta_path.insert(0, Replaced(mutant.file, mutant.mutated))
        results: List[Dict[str, Any]] = []
        collect(sorted({test.split("::")[0] for test in tests}), lambda session: results.append(session.run(job)))
        return results[0] if results else {"failures": [("collection", "the import fails")], "seconds": {}}

    jobs = [
        Job(mutant.rank, tests, lambda: None, 30 + 3 * sum(reach.seconds[test] for test in tests))
        for mutant, tests in chosen.values()
        if tests
    ]
    for mutant, tests in chosen.values():
        if not tests:
            yield judge(mutant, tests, {"failures": [], "seconds": {}})
    for job, result in in_forks(jobs, act, args.folder, args.at_once):
        yield judge(*chosen[job.name], result)


def read_records(path: Path) -> Dict[str, Dict[str, Any]]:
    """Reads the last record of every mutant; what an interrupted run left of a line is passed over."""
    records: Dict[str, Dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        if line.endswith("}"):
            record = json.loads(line)
            records[record["name"]] = record
    return records


def table(records: Sequence[Dict[str, Any]]) -> str:
    """Makes the table by chapter, in Markdown."""
    equivalent = read_equivalent()
    rows = ["| chapter | mutants | caught | survived | equivalent | caught of those that can be |", "|" + " --- |" * 6]
    for chapter in (*CHAPTERS, "all"):
        some = [one for one in records if chapter in ("all", one["chapter"])]
        left = [one for one in some if one["outcome"] == "survived"]
        same = sum((one["file"], one["function"], one["before"], one["after"]) in equivalent for one in left)
        caught, real = len(some) - len(left), len(some) - same
        share = f"{100 * caught / real:.1f} %" if real else ""
        rows.append(f"| {chapter} | {len(some)} | {caught} | {len(left) - same} | {same} | {share} |")
    return "\n".join(rows)


def main() -> None:
    """Runs what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--limit", type=float, default=20.0)
    parser.add_argument("--tests", nargs="+", default=TESTS)
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--control", action="store_true")
    args = parser.parse_args()
    args.folder = args.folder.resolve()
    args.folder.mkdir(parents=True, exist_ok=True)
    sys.pycache_prefix = str(args.folder / "pycache")
    os.chdir(ROOT)
    results = args.folder / "mutants.jsonl"
    mutants = draw(args.count, args.seed, args.folder / "drawn.json")
    known = read_records(results)
    kept = {name for name, one in known.items() if one["outcome"] != "survived" or (one["last"] and not args.again)}
    missing = [mutant for mutant in mutants if mutant.rank not in kept]
    import_foreign()
    print(f"{len(mutants)} mutants, {len(missing)} to run", flush=True)
    _forked(lambda: collect(list_tests(args.tests), lambda session: _work(session, missing, args)))
    _run_rest(missing, args)
    records = [one for name, one in read_records(results).items() if name in {mutant.rank for mutant in mutants}]
    if args.control:
        tests = sorted({record["test"] for record in records} - {"", "collection"})
        _forked(lambda: collect(list_tests(args.tests), lambda session: _control(session, tests)))
    print(table(records))


def _forked(act: Callable[[], Any]) -> None:
    """Runs something in a fork, so that what it imports is not imported here; ends if it fails."""
    process = os.fork()
    if process == 0:
        code = 1
        try:
            code = int(act() or 0)
        finally:
            sys.stdout.flush()
            os._exit(code)
    if os.waitpid(process, 0)[1] != 0:
        raise SystemExit(1)


def _work(session: Session, missing: Sequence[Mutant], args: argparse.Namespace) -> None:
    """First the tests of the core, which take little, then for what they do not catch the plugin's."""
    left = [mutant for mutant in missing if changed_functions(mutant) is not None]
    tests = list_tests(args.tests)
    rounds = [[file for file in tests if ("/plugin/" in file) == late] for late in (False, True)]
    for files in rounds:
        measure(session, files, args.folder / "coverage", args.at_once)
        reach = read_reach(args.folder / "coverage", files)
        caught = _save(run_fast(session, left, reach, args), args, last=files is rounds[-1])
        left = [mutant for mutant in left if mutant.rank not in caught]


def _run_rest(missing: Sequence[Mutant], args: argparse.Namespace) -> None:
    slow = [mutant for mutant in missing if changed_functions(mutant) is None]
    _save(run_at_import(slow, read_reach(args.folder / "coverage", list_tests(args.tests)), args), args, last=True)


def _control(session: Session, tests: Sequence[str]) -> None:
    failures = session.run(Job("control", tests, lambda: None, 0, watch=lambda name: None))["failures"]
    print(f"{len(tests)} tests without a mutation, {len(failures)} fail", *failures, sep="\n", flush=True)
    if failures:
        os._exit(1)


def _save(records: Iterator[Dict[str, Any]], args: argparse.Namespace, last: bool) -> Set[str]:
    """Appends records to the results, ``last``: no more tests are to come; returns the names of the caught."""
    caught = set()
    with open(args.folder / "mutants.jsonl", "a", encoding="utf-8") as results:
        for record in records:
            if record["outcome"] != "survived":
                caught.add(record["name"])
            results.write(json.dumps({**record, "last": last}) + "\n")
            results.flush()
            place = f"{record['file']}:{record['line']}"
            print(record["outcome"], place, record["after"], f"({record['seconds']} s)", flush=True)
    return caught


if __name__ == "__main__":
    main()
