"""Candidates of a benchmark have processes of their own, work one at a time, and leave nothing behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import turns

BENCHMARKS = Path(turns.__file__).resolve().parent


def is_running(pid):
    """Tells whether a process is there and no mere zombie."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def start(workers, command, **settings):
    """Starts one stand-in for every name, with its settings."""
    for name, more in settings.items():
        workers.start(name, command)
        if workers.ask(name, "build", software="stand-in", **more) is not None:
            workers.ask(name, "prepare")


@pytest.fixture
def workers():
    with turns.Workers() as running:
        yield running


def test_every_round_asks_each_candidate_once_and_no_two_work_at_the_same_time(workers, stand_in):
    start(workers, stand_in, a={}, b={}, c={})
    answers = workers.take_turns(rounds=3, pause=0.0)
    order = sorted((one["started"], one["ended"], name) for name, every in answers.items() for one in every)
    assert [name for _, _, name in order] == ["a", "b", "c"] * 3
    assert all(before[1] <= after[0] for before, after in zip(order, order[1:]))


def test_the_first_round_warms_up_and_does_not_count(workers, stand_in):
    start(workers, stand_in, a={})
    assert [one["result"] for one in workers.take_turns(rounds=2, pause=0.0)["a"]] == [2, 3]


def test_a_worker_that_dies_is_one_line_and_the_others_go_on(workers, stand_in, capfd):
    start(workers, stand_in, a={}, dying={"fails": "crash"}, c={})
    process = workers.running["dying"].process
    answers = workers.take_turns(rounds=3, pause=0.0)
    reported = capfd.readouterr().err.splitlines()
    assert reported == ["dying: left out: its process ended with status 3: last words"]
    assert {name: len(every) for name, every in answers.items()} == {"a": 3, "c": 3}
    assert not is_running(process.pid)


def test_a_candidate_that_cannot_be_built_is_one_line_and_its_process_ends(workers, stand_in, capfd):
    process = workers.start("broken", stand_in).process
    assert workers.ask("broken", "build", software="stand-in", fails="build") is None
    assert capfd.readouterr().err.splitlines() == ["broken: left out: ImportError: no such library"]
    assert not workers.running and not is_running(process.pid)


def test_no_worker_outlives_the_context(stand_in):
    with pytest.raises(KeyboardInterrupt):
        with turns.Workers() as running:
            start(running, stand_in, a={}, spinning={"spins": True})
            processes = [worker.process.pid for worker in running.running.values()]
            assert all(map(is_running, processes))
            raise KeyboardInterrupt
    assert not any(map(is_running, processes))


def test_no_worker_outlives_a_parent_that_is_killed(stand_in):
    parent = (
        "import sys, time, turns; w = turns.Worker('a', sys.argv[1:]); print(w.process.pid, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", parent, *stand_in],
        stdout=subprocess.PIPE,
        universal_newlines=True,
        env={**os.environ, "PYTHONPATH": str(BENCHMARKS)},
    )
    worker = int(process.stdout.readline())
    assert is_running(worker)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    deadline = time.time() + 10
    while is_running(worker) and time.time() < deadline:
        time.sleep(0.02)
    assert not is_running(worker)


def test_waiting_workers_that_spin_are_reported(workers, stand_in, capfd):
    start(workers, stand_in, a={}, b={}, spinning={"spins": True})
    answers = workers.take_turns(rounds=10, pause=0.0)
    assert turns.idle_share({"a": answers["a"], "b": answers["b"]}) > 0.3
    assert "waiting processes took" in capfd.readouterr().err
    workers.leave_out("spinning", "it spins")
    assert turns.idle_share(workers.take_turns(rounds=10, pause=0.0)) < 0.1


def test_peak_memory_is_of_the_work_in_ones_own_process(workers, stand_in):
    start(workers, stand_in, small={}, large={})
    workers.ask("large", "prepare", megabytes=200)  # before the peak is forgotten, and kept during the turns
    answers = workers.take_turns(rounds=1, pause=0.0)
    small, large = (turns.memory_of(answers[name]) for name in ("small", "large"))
    if small is None:
        pytest.skip("this system does not tell a process's peak memory")
    assert large - small == pytest.approx(200 / 1024, abs=0.02)
    workers.ask("large", "prepare", megabytes=0)
    assert turns.memory_of(workers.take_turns(rounds=1, pause=0.0)["large"]) == pytest.approx(small, abs=0.02)
