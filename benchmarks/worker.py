"""One candidate in a process of its own: builds its model, then waits on a pipe for its turns.

Nobody runs four libraries in one process, and there they would share thread pools, allocators and caches. So this
file imports nothing but the standard library, and the candidate's module when it is asked to build it. Requests are
lines of JSON on standard input, answers lines on standard output; what libraries print goes to standard error.
"""

import importlib
import json
import os
import sys
import time
import traceback
from typing import Any, Dict, Iterable, Optional, TextIO

HOMES = {
    "weights": "fairseq_candidates",
    "ours": "fairseq_candidates",
    "fairseq": "fairseq_candidates",
    "transformers": "peers",
    "ctranslate2": "peers",
    "conversion": "peers",
    "training": "training_step",
    "ours-family": "family_candidates",
    "transformers-family": "family_candidates",
}
GIGABYTE = 2**30


class Server:
    """Carries out the parent's requests.

    ``build`` makes the candidate, ``prepare`` takes a batch and begins to watch the memory, ``run`` is a turn.
    """

    def __init__(self) -> None:
        self.candidate: Any = None
        self.watches_memory = False

    def build(self, request: Dict[str, Any]) -> Dict[str, Any]:
        """Builds the candidate of ``request["software"]``; answers what it knows of itself, its weights above all."""
        module = importlib.import_module(HOMES[request["software"]])
        self.candidate = module.BUILDERS[request["software"]](request)
        return dict(self.candidate.facts)

    def prepare(self, request: Dict[str, Any]) -> Dict[str, Any]:
        """Takes a batch; what is done once, such as packing weights, is done here."""
        facts = self.candidate.prepare(request)
        self.candidate.warm_up()
        self.watches_memory = reset_peak_memory()
        return dict(facts)

    def run(self, request: Dict[str, Any]) -> Dict[str, Any]:
        """A turn: untimed a short run, then the timed one.

        While the others had their turns this candidate's weights have left the caches, and virtual machines take idle
        memory back; neither happens to a model at work.
        """
        self.candidate.warm_up()
        started = time.perf_counter()  # of the machine, so that the turns of processes can be put in order
        worked = time.process_time()
        found = self.candidate.run()
        ended, worked = time.perf_counter(), time.process_time() - worked
        on_accelerator = self.candidate.peak_memory() if hasattr(self.candidate, "peak_memory") else None
        memory = on_accelerator or (peak_memory() if self.watches_memory else None)
        result = self.candidate.result(found)
        return {"started": started, "ended": ended, "cpu_s": worked, "memory_gb": memory, "result": result}


def serve(requests: Iterable[str], replies: TextIO) -> None:
    """Answers every request until there are no more; an error is an answer."""
    server = Server()
    for line in requests:
        request = json.loads(line)
        try:
            answer = getattr(server, request["do"])(request)
        except Exception as error:  # whatever a library raises is the parent's to report
            traceback.print_exc()
            said = (str(error).strip() or "no message").splitlines()[0]
            answer = {"error": f"{type(error).__name__}: {said}"}
        replies.write(json.dumps(answer) + "\n")
        replies.flush()


def reset_peak_memory() -> bool:
    """Forgets the peak of loading, so that the peak of work is seen; tells whether this system can."""
    try:
        with open("/proc/self/clear_refs", "w", encoding="utf-8") as file:
            file.write("5")
    except OSError:
        return False
    return peak_memory() is not None


def peak_memory() -> Optional[float]:
    """This process's peak of resident memory in GB; None where the system does not tell."""
    try:
        with open("/proc/self/status", encoding="utf-8") as lines:
            kilobytes = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return None
    return round(kilobytes * 1024 / GIGABYTE, 4)


def main() -> None:
    """Serves standard input; ends with it, so that no worker outlives its parent."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        serve(sys.stdin, replies)
    except (BrokenPipeError, KeyboardInterrupt):
        os._exit(1)


if __name__ == "__main__":
    main()
