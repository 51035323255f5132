"""Which test executes which line: measured once for a test file, kept until it or a source that it executes changes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

from mutant_session import Job, Session, changed_functions, in_forks
from mutant_sites import ROOT, Mutant

SLOW = 1.0  # seconds: such tests come last


class Reach(NamedTuple):
    """Which tests execute a line.

    Args:
        tests: of a (file, line); line 0 = anything of the file.
        seconds: processor time of each test.
    """

    tests: Dict[Tuple[str, int], List[str]]
    seconds: Dict[str, float]

    def choose(self, mutant: Mutant, limit: float) -> List[str]:
        """Returns the tests that a mutant is shown, in order.

        Last come tests beside those, which execute other lines of the module: what a cache made for one test is used by
        the next.
        """
        lines = range(mutant.lines[0], mutant.lines[1] + 1)
        found = {test for line in lines for test in self.tests.get((mutant.file, line), [])}
        any_line = set(self.tests.get((mutant.file, 0), []))
        if not found and changed_functions(mutant) is None:  # a line that import runs
            found = any_line
        files = {test.split("::")[0] for test in found}
        beside = {test for test in any_line - found if test.split("::")[0] in files}
        home = "tests/" + mutant.chapter.split("/")[0] + "/"
        total: Dict[str, float] = {}
        for test in found | beside:
            name = test.split("::")[0]
            total[name] = total.get(name, 0.0) + self.seconds[test]

        def order(test: str) -> Tuple[Any, ...]:
            name, seconds = test.split("::")[0], self.seconds[test]
            return test in beside, seconds > SLOW, not name.startswith(home), total[name], name, seconds, test

        chosen, spent = [], 0.0
        for test in sorted(found | beside, key=order):
            spent += self.seconds[test]
            if spent <= limit:
                chosen.append(test)
        return chosen


def list_tests(folders: Sequence[str]) -> List[str]:
    """Lists the test files below folders (or a file) of tests/, as paths from the root."""
    found: List[Path] = []
    for folder in (ROOT / "tests" / name for name in folders):
        found += sorted(folder.rglob("test_*.py")) if folder.is_dir() else [folder]
    return [path.relative_to(ROOT).as_posix() for path in found]


def digest(file: str) -> str:
    """Returns what tells a file from its other versions; "" = there is none."""
    path = ROOT / file
    return hashlib.sha1(path.read_bytes()).hexdigest() if path.exists() else ""


def measure(session: Session, files: Sequence[str], folder: Path, at_once: int) -> None:
    """Measures which test executes what, where that is not known yet."""
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [
        Job(file, [name for name in session.items if name.startswith(file + "::")], lambda: None, 1200)
        for file in files
        if not _stored(folder, file)
    ]
    for job, result in in_forks(jobs, lambda job: _measured(session, job), folder, at_once):
        if "lines" not in result:
            print(f"{job.name}: not measured, {result}", flush=True)
            continue
        _path(folder, job.name).write_text(json.dumps(result))
        print(f"{job.name}: {len(result['seconds'])} tests, {sum(result['seconds'].values()):.1f} s", flush=True)


def read_reach(folder: Path, files: Sequence[str]) -> Reach:
    """Reads what has been measured."""
    reach = Reach({}, {})
    for file in files:
        result = _stored(folder, file)
        reach.seconds.update(result.get("seconds", {}))
        for source, lines in result.get("lines", {}).items():
            for line, tests in lines.items():
                reach.tests.setdefault((source, int(line)), []).extend(tests)
    return reach


def _path(folder: Path, file: str) -> Path:
    return folder / (file.replace("/", "-") + ".json")


def _stored(folder: Path, file: str) -> Dict[str, Any]:
    """A measurement that still holds, else {}."""
    path = _path(folder, file)
    if not path.exists():
        return {}
    result: Dict[str, Any] = json.loads(path.read_text())
    return result if all(digest(file) == known for file, known in result["digests"].items()) else {}


def _measured(session: Session, job: Job) -> Dict[str, Any]:
    """In a fork: runs the tests of one file under coverage. What one sets up for the file counts for all of them."""
    import coverage

    measuring = coverage.Coverage(data_file=None, source=[str(ROOT / "sd_fairseq")], config_file=False)
    measuring.start()
    result = session.run(job._replace(watch=measuring.switch_context))
    measuring.stop()
    failed = {test for test, _ in result["failures"]}
    tests = [test for test in result["seconds"] if test not in failed]
    data, lines = measuring.get_data(), {}
    for path in data.measured_files():
        found: Dict[int, List[str]] = {}
        for line, contexts in data.contexts_by_lineno(path).items():
            found[line] = tests if "setup" in contexts else sorted(set(contexts) & set(tests))
        if found:
            found[0] = sorted({test for some in found.values() for test in some})
            lines[Path(path).relative_to(ROOT).as_posix()] = found
    digests = {file: digest(file) for file in (job.name, *lines)}
    seconds = {test: result["seconds"][test] for test in tests}
    return {"seconds": seconds, "lines": lines, "digests": digests, "failed": sorted(failed)}
