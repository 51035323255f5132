"""The parent's side of the benchmarks: candidates in processes of their own that take turns.

While one works the others wait on a pipe. Every library keeps its own defaults; a pause before each turn lets threads
that spin for a while after their work fall asleep, and the processor time of the waiting ones is measured.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any, Dict, List, Optional, Sequence

PAUSE = 0.3  # seconds before a turn
IDLE = 0.05  # share of a core that waiting workers may take together
COMMAND = (sys.executable, "-W", "ignore", os.path.join(os.path.dirname(os.path.abspath(__file__)), "worker.py"))


class WorkerFailed(Exception):
    """A worker could not do what it was asked to; the message is one line."""


class Worker:
    """One candidate's process.

    Args:
        name: of the candidate.
        command: what is started.
    """

    def __init__(self, name: str, command: Sequence[str] = COMMAND):
        self.name = name
        self.log = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, universal_newlines=True
        )

    def ask(self, do: str, **request: Any) -> Dict[str, Any]:
        """Sends a request and waits for its answer.

        Raises:
            WorkerFailed: the worker answered with an error, or ended.
        """
        requests, replies = self.process.stdin, self.process.stdout
        assert requests is not None and replies is not None, "both are pipes"
        try:
            requests.write(json.dumps({"do": do, **request}) + "\n")
            requests.flush()
            line = replies.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise WorkerFailed(f"its process ended with status {self.process.wait()}{self._last_words()}")
        answer: Dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerFailed(answer["error"])
        return answer

    def _last_words(self) -> str:
        """The last line that it wrote to standard error."""
        self.log.seek(0)
        lines = self.log.read().decode(errors="replace").split("\n")
        return next((f": {line.strip()}" for line in reversed(lines) if line.strip()), "")

    def cpu_seconds(self) -> float:
        """Processor time of all of its threads so far; 0 where the system does not tell."""
        try:
            with open(f"/proc/{self.process.pid}/stat", encoding="utf-8") as file:
                fields = file.read().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / float(os.sysconf("SC_CLK_TCK"))

    def stop(self) -> None:
        """Ends the process, whatever it is doing; it has nothing to save."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            try:
                if pipe is not None:
                    pipe.close()
            except BrokenPipeError:  # a request that was never read
                pass
        self.log.close()


class Workers:
    """The workers that live at the same time; as a context, none of them outlives it."""

    def __init__(self) -> None:
        self.running: Dict[str, Worker] = {}

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: Any) -> None:
        for worker in self.running.values():
            worker.stop()
        self.running.clear()

    def start(self, name: str, command: Sequence[str] = COMMAND) -> Worker:
        """Starts a worker."""
        self.running[name] = Worker(name, command)
        return self.running[name]

    def ask(self, name: str, do: str, **request: Any) -> Optional[Dict[str, Any]]:
        """Asks one worker; one that fails is reported in one line, left out from then on, and the answer is None."""
        try:
            return self.running[name].ask(do, **request)
        except WorkerFailed as failure:
            self.leave_out(name, str(failure))
            return None

    def leave_out(self, name: str, reason: str) -> None:
        """Reports in one line that a candidate is left out, and ends its process."""
        print(f"{name}: left out: {reason}", file=sys.stderr, flush=True)
        self.running.pop(name).stop()

    def take_turns(self, rounds: int, pause: float = PAUSE) -> Dict[str, List[Dict[str, Any]]]:
        """Lets the workers run in turns, the first round to warm up.

        Args:
            rounds: that count.
            pause: seconds before each turn.

        Returns:
            The answers of every round that counts, by name, each with ``others_cpu_s``: the processor time that the
            waiting workers took during the turn. A worker that failed in any round is not among them.
        """
        answers: Dict[str, List[Dict[str, Any]]] = {name: [] for name in self.running}
        for turn in range(1 + rounds):
            for name in list(self.running):
                time.sleep(pause)
                waiting = [worker for worker in self.running.values() if worker.name != name]
                before = sum(worker.cpu_seconds() for worker in waiting)
                answer = self.ask(name, "run")
                if answer is None:
                    del answers[name]
                    continue
                answer["others_cpu_s"] = sum(worker.cpu_seconds() for worker in waiting) - before
                if turn > 0:
                    answers[name].append(answer)
        share = idle_share(answers)
        if share > IDLE:
            print(f"waiting processes took {share:.0%} of a core: the times are too long", file=sys.stderr, flush=True)
        return answers


def end_workers_on_termination() -> None:
    """Lets a terminated benchmark leave its contexts, which end the workers."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def seconds_of(answers: List[Dict[str, Any]]) -> List[float]:
    """Seconds of one candidate's turns."""
    return [answer["ended"] - answer["started"] for answer in answers]


def memory_of(answers: List[Dict[str, Any]]) -> Optional[float]:
    """Peak memory of one candidate's process over its turns in GB; None where it is not known."""
    known = [answer["memory_gb"] for answer in answers if answer.get("memory_gb") is not None]
    return max(known) if known else None


def idle_share(answers: Dict[str, List[Dict[str, Any]]]) -> float:
    """Processor time of the waiting workers as a share of the turns' time; near 0 when they wait as they should."""
    every = [answer for one in answers.values() for answer in one]
    return round(sum(answer["others_cpu_s"] for answer in every) / max(1e-9, sum(seconds_of(every))), 4)
