"""What a grid of runs needs to be stopped and started at any moment: locks, whole files, one-line failures."""

import contextlib
import fcntl
import hashlib
import json
import os
import subprocess
import sys
import time
from typing import IO, Any, Dict, Iterator, Optional, Sequence

from tqdm import tqdm

STARTED = time.time()


class StepError(RuntimeError):
    """A command failed; the message is one line."""


def say(text: str) -> None:
    """Prints a line with the seconds since the start."""
    tqdm.write("[{:6.0f} s] {}".format(time.time() - STARTED, text), file=sys.stdout)
    sys.stdout.flush()


@contextlib.contextmanager
def locked(folder: str) -> Iterator[None]:
    """Makes a folder and keeps other runs out of it; a second one waits for the first."""
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "lock"), "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the system releases it, also after a kill
        yield


def read_json(path: str) -> Any:
    """Reads a JSON file; None where there is none.

    Raises:
        StepError: it cannot be read.
    """
    try:
        with open(path, encoding="utf-8") as text:
            return json.load(text)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StepError("{}: cannot be read ({})".format(path, error)) from error


def write_json(path: str, value: Any) -> None:
    """Writes a JSON file beside its place, then renames."""
    part = "{}.{}.part".format(path, os.getpid())
    with open(part, "w", encoding="utf-8") as text:
        json.dump(value, text, indent=1)
    os.replace(part, path)


def find_difference(found: Any, wanted: Dict[str, Any]) -> Optional[str]:
    """Returns the first setting that differs, in words, or None."""
    found = found if isinstance(found, dict) else {}
    for name, value in wanted.items():
        if found.get(name) != value:
            return "{} {!r}, now {!r}".format(name, found.get(name), value)
    return None


def hash_files(paths: Sequence[str]) -> str:
    """Returns a short hash of the contents of files."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as content:
            for block in iter(lambda: content.read(1 << 20), b""):  # noqa: B023  read at once
                digest.update(block)
    return digest.hexdigest()[:16]


def run_command(words: Sequence[str], log: str, output: Optional[str], updates: int, **options: Any) -> None:
    """Runs a command to its end; when this process is stopped, the command is too.

    Args:
        words: the command.
        log: file that its messages are added to.
        output: file for its standard output, made whole or not at all; None = the log too.
        updates: of a training, for the progress bar.
        options: of :class:`subprocess.Popen`.

    Raises:
        StepError: it failed; what ``output`` named is not there then.
    """
    with contextlib.ExitStack() as stack:
        messages = stack.enter_context(open(log, "a", encoding="utf-8"))
        start = messages.tell()
        if output is None:
            streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        else:
            texts = stack.enter_context(open(output + ".part", "w", encoding="utf-8"))
            streams = {"stdout": texts, "stderr": messages}
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, **streams, **options)
        try:
            if process.stdout is not None:
                follow(process.stdout, messages, updates)
            process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if process.returncode:
        raise StepError(last_words(log, start, process.returncode))
    if output is not None:
        os.replace(output + ".part", output)


def follow(lines: IO[bytes], log: IO[str], updates: int) -> None:
    """Copies a training's messages to its log and shows how far it is."""
    with tqdm(total=updates, unit=" updates", leave=False, disable=None if updates else True) as bar:
        for line in lines:
            text = line.decode("utf-8", "replace")
            log.write(text)
            log.flush()
            _, separator, figures = text.partition('"num_updates": "')
            if separator:
                bar.update(int(float(figures.partition('"')[0])) - bar.n)


def last_words(log: str, start: int, code: int) -> str:
    """Returns what a failed command said: its error line, or the last line.

    Args:
        log: its messages.
        start: where they begin, in bytes.
        code: its exit code.
    """
    with open(log, "rb") as messages:
        messages.seek(start)
        lines = [line.strip() for line in messages.read().decode("utf-8", "replace").splitlines() if line.strip()]
    errors = [line for line in lines if "error: " in line]
    said = (errors or lines or ["no message"])[-1]
    return "exit code {}: {}".format(code, said[:300])
