"""One pytest session that many mutants share: everything is imported and collected once, every mutant gets a fork.

A mutant of a function's body replaces the code of the function that the session has imported. One of a default value, a
decorator or a class body is seen when the module is imported: for those, a fork that has not imported sd_fairseq yet
collects its tests with the mutated source in the module's place. No file is changed.
"""

from __future__ import annotations

import gc
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import resource
import signal
import sys
import time
from functools import lru_cache
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, Callable, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import pytest
from mutant_sites import ROOT, Mutant

TESTS = ["decision", "execution", "families", "cost", "learning", "plugin"]
VARIANTS = 10  # of a parametrised test, evenly taken
LONGEST = 2.0  # seconds of processor time: a test that needs more is none for mutants
MEMORY = 8 << 30  # bytes that a mutant may ask for
PREFIX = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=no", "--rootdir", str(ROOT)]


class Job(NamedTuple):
    """What one fork does.

    Args:
        name: of its result.
        tests: node ids, in the order they run; the first that fails ends it.
        prepare: called in the fork first.
        seconds: of processor time for all tests, more is a hang.
        watch: gets the id of every test that starts, and "setup" while something is made that other tests use, too;
            with it all tests run, whether one fails or not.
    """

    name: str
    tests: Sequence[str]
    prepare: Callable[[], None]
    seconds: float
    watch: Optional[Callable[[str], Any]] = None


class Session:
    """A pytest plugin: collects, then hands over to ``work`` in place of running what is collected."""

    def __init__(self, work: Callable[["Session"], None]):
        self._work = work
        self.items: Dict[str, Any] = {}
        self.failures: List[Tuple[str, str]] = []
        self._watch: Optional[Callable[[str], Any]] = None

    def pytest_runtestloop(self, session: Any) -> bool:
        """Called by pytest after collection."""
        functions: Dict[str, List[Any]] = {}
        for item in session.items:
            functions.setdefault(item.nodeid.split("[")[0], []).append(item)
        for items in functions.values():
            for item in items[:: -(-len(items) // VARIANTS)]:
                self.items[item.nodeid] = item
        _functions()
        gc.freeze()  # forks share what is there
        self._work(self)
        return True

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Called by pytest after each phase of a test."""
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            reason = str(crash.message if crash else report.longrepr).split("\n")[0]
            self.failures.append((report.nodeid, reason[:200]))

    @pytest.hookimpl(hookwrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> Iterator[None]:
        """Called by pytest around the making of a fixture."""
        shared = self._watch is not None and fixturedef.scope != "function"
        if self._watch is not None and shared:
            self._watch("setup")
        yield
        if self._watch is not None and shared:
            self._watch(request._pyfuncitem.nodeid)

    def run(self, job: Job) -> Dict[str, Any]:
        """Runs tests until one fails; returns the failures, [id, reason], and the processor seconds of each test."""
        self._watch = job.watch
        seconds: Dict[str, float] = {}
        wanted = [self.items[name] for name in job.tests if name in self.items]
        for item, following in zip(wanted, [*wanted[1:], None]):
            start = time.process_time()
            if job.watch is not None:
                job.watch(item.nodeid)
                signal.signal(signal.SIGVTALRM, _too_long)
                signal.setitimer(signal.ITIMER_VIRTUAL, LONGEST)
            try:
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            except TimeoutError as error:  # between a test's phases
                self.failures.append((item.nodeid, str(error)))
            seconds[item.nodeid] = round(time.process_time() - start, 3)
            if self.failures and job.watch is None:
                break
        return {"failures": self.failures, "seconds": seconds}


def _too_long(number: int, frame: Any) -> None:
    raise TimeoutError(f"more than {LONGEST} s")


def import_foreign() -> None:
    """Imports what is not ours, once for all forks."""
    sys.path[:0] = [str(ROOT)]
    sys.argv = ["pytest"]
    for name in ("torch", "numpy", "fairseq_cli.train", "fairseq_cli.generate", "fairseq_cli.interactive"):
        importlib.import_module(name)
    import torch

    importlib.import_module("torch.fx.experimental.symbolic_shapes")  # what torch imports when it first computes
    weight = torch.nn.Parameter(torch.zeros(1))
    weight.grad = torch.zeros(1)
    torch.optim.Adam([weight]).step()


def collect(files: Sequence[str], work: Callable[[Session], None]) -> int:
    """Collects test files and calls ``work`` with the session; returns pytest's exit code."""
    plugin = Session(work)
    return int(pytest.main([*PREFIX, *files], plugins=[plugin]))


def in_forks(jobs: Iterable[Job], act: Callable[[Job], Dict[str, Any]], folder: Path, at_once: int) -> Iterator[Any]:
    """Runs jobs in forks, some at once; yields (job, result) as they end. A crash and a hang are results, too."""
    running: Dict[int, Tuple[Job, float]] = {}
    waiting = iter(jobs)
    while True:
        while len(running) < at_once:
            job = next(waiting, None)
            if job is None:
                break
            sys.stdout.flush()
            process = os.fork()
            if process == 0:
                _act(job, act, folder)
            running[process] = job, time.time() + 60 + 12 * job.seconds
        if not running:
            return
        process, status = os.waitpid(-1, os.WNOHANG)
        if process == 0:
            for late in [one for one, (_, end) in running.items() if time.time() > end]:
                os.kill(late, signal.SIGKILL)
            time.sleep(0.02)
        elif process in running:
            job, _ = running.pop(process)
            yield job, _read(folder / f"{process}.json", status)


def _read(path: Path, status: int) -> Dict[str, Any]:
    if path.exists():
        result: Dict[str, Any] = json.loads(path.read_text())
        path.unlink()
        return result
    stopped = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    return {"failures": [], "seconds": {}, "hang": stopped in (signal.SIGPROF, signal.SIGKILL), "status": status}


def _act(job: Job, act: Callable[[Job], Dict[str, Any]], folder: Path) -> None:
    """In the fork; never returns."""
    code = 1
    try:
        quiet = os.open(str(folder / "last.log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, job.seconds)  # processor time: other work on the machine does not count
        job.prepare()
        result = act(job)
        part = folder / f"{os.getpid()}.part"
        part.write_text(json.dumps(result))
        part.rename(folder / f"{os.getpid()}.json")
        code = 0
    except BaseException as error:  # the fork must not go on as its parent
        sys.stderr.write(repr(error))
    finally:
        os._exit(code)


def codes_of(source: str, file: str) -> Tuple[Any, Dict[Tuple[str, int], CodeType]]:
    """Compiles a module; returns what it does at import, without functions, and its functions by name and line."""
    functions: Dict[Tuple[str, int], CodeType] = {}
    outline: List[Any] = []

    def walk(code: CodeType) -> None:
        plain = [one for one in code.co_consts if not isinstance(one, CodeType)]
        outline.append((code.co_name, code.co_code, code.co_names, repr(plain)))
        for inner in code.co_consts:
            if isinstance(inner, CodeType):
                if inner.co_flags & 2:  # CO_NEWLOCALS: a function, not a class body
                    functions[inner.co_name, inner.co_firstlineno] = inner
                else:
                    walk(inner)

    walk(compile(source, str(ROOT / file), "exec"))
    return outline, functions


@lru_cache(maxsize=None)
def _original(file: str) -> Tuple[Any, Dict[Tuple[str, int], CodeType]]:
    return codes_of((ROOT / file).read_text(encoding="utf-8"), file)


@lru_cache(maxsize=None)
def changed_functions(mutant: Mutant) -> Optional[Dict[Tuple[str, int], CodeType]]:
    """Returns the functions that a mutant changes, {} = none (the same code); None = it changes what import does."""
    outline, old = _original(mutant.file)
    other, new = codes_of(mutant.mutated, mutant.file)
    if outline != other or old.keys() != new.keys():
        return None
    changed = {key: code for key, code in new.items() if code != old[key]}
    return None if any(name.endswith("comp>") for name, _ in changed) else changed  # import ran it


@lru_cache(maxsize=None)
def _functions() -> Dict[Tuple[str, str, int], List[FunctionType]]:
    """All functions of the package that are imported, by path, name and line; called before the forks, once."""
    found: Dict[Tuple[str, str, int], List[FunctionType]] = {}
    for one in gc.get_objects():
        if isinstance(one, FunctionType) and one.__code__.co_filename.startswith(str(ROOT / "sd_fairseq")):
            code = one.__code__
            found.setdefault((code.co_filename, code.co_name, code.co_firstlineno), []).append(one)
    return found


def replace_functions(file: str, codes: Dict[Tuple[str, int], CodeType]) -> None:
    """Puts other code into the functions of a module that is imported."""
    for (name, line), code in codes.items():
        for function in _functions()[str(ROOT / file), name, line]:
            function.__code__ = code


class Replaced(importlib.abc.MetaPathFinder):
    """Gives one module another source when it is imported."""

    def __init__(self, file: str, source: str):
        self._name = file[: -len(".py")].replace("/", ".")
        self._path, self._source = str(ROOT / file), source

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        """Called by the import system."""
        if fullname != self._name:
            return None
        loader = _Loader(fullname, self._path)
        loader.source = self._source
        return importlib.util.spec_from_file_location(fullname, self._path, loader=loader)


class _Loader(importlib.machinery.SourceFileLoader):
    source = ""

    def get_code(self, fullname: str) -> CodeType:
        """Called by the import system; no cached code is looked for."""
        return compile(self.source, self.path, "exec")
