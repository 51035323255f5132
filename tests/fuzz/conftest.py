"""Two profiles: a short one that every test run takes, the same every time, and a long one, anew each time."""

import os
from collections import Counter

import pytest

hypothesis = pytest.importorskip("hypothesis")

LONG = os.environ.get("SD_FUZZ") == "long"
GIVEN = Counter()  # reader -> files that it was given

# a reader's file is written and read for each example: how long that takes says nothing here
QUIET = dict(deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck), print_blob=LONG)
hypothesis.settings.register_profile("short", max_examples=50, derandomize=True, **QUIET)
hypothesis.settings.register_profile("long", max_examples=400, **QUIET)
hypothesis.settings.load_profile("long" if LONG else "short")


@pytest.fixture
def given_files():
    """Counts the files that a reader is given."""
    return GIVEN


def pytest_terminal_summary(terminalreporter):
    """Prints the counts."""
    if LONG:
        for name, count in sorted(GIVEN.items()):
            terminalreporter.write_line(f"{name:<28} {count:>8,} inputs")
        terminalreporter.write_line(f"{'all':<28} {sum(GIVEN.values()):>8,} inputs")
