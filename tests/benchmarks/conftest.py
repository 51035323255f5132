"""Makes the benchmarks importable, and offers workers that speak the real protocol without a model."""

import sys
import textwrap
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

CANDIDATE = """
    import os, sys, threading, time

    class Candidate:
        def __init__(self, request):
            print("what a library says on standard output")
            if request.get("fails") == "build":
                raise ImportError("no such library\\nand a second line")
            self.request, self.turns, self.facts = request, 0, {}
            if request.get("spins"):
                threading.Thread(target=self.spin, daemon=True).start()

        def spin(self):
            while True:
                pass

        def prepare(self, batch):
            self.block = b"x" * (batch.get("megabytes", 0) * 2**20)
            return {}

        def warm_up(self):
            pass

        def run(self):
            self.turns += 1
            if self.request.get("fails") == "crash" and self.turns == 2:
                print("last words", file=sys.stderr, flush=True)
                os._exit(3)
            time.sleep(0.02)

        def result(self, found):
            return self.turns

    BUILDERS = {"stand-in": Candidate, "training": Candidate}
"""
START = """
    import sys
    sys.path[:0] = [{benchmarks!r}, {folder!r}]
    import worker
    worker.HOMES.update({{"stand-in": "stand_in", "training": "stand_in"}})
    worker.main()
"""


@pytest.fixture
def stand_in(tmp_path):
    """Returns the command of a worker whose candidate only sleeps."""
    (tmp_path / "stand_in.py").write_text(textwrap.dedent(CANDIDATE), encoding="utf-8")
    start = START.format(benchmarks=str(BENCHMARKS), folder=str(tmp_path))
    (tmp_path / "start.py").write_text(textwrap.dedent(start), encoding="utf-8")
    return [sys.executable, str(tmp_path / "start.py")]
