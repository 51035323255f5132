"""A user's error is one line: the exception, how it is found again behind others, and how a command ends."""

from __future__ import annotations

import argparse
import atexit
import os
import sys
import traceback
from functools import lru_cache
from typing import Any, Callable, Iterator, Optional

CLOSED_PIPE = 141  # exit code of a tool whose reader has gone, as a shell reports it: 128 + SIGPIPE
TRACEBACK_VARIABLE = "SD_FAIRSEQ_TRACEBACK"  # 1 = tracebacks, too
LONGEST = 1000  # characters of a message
PACKAGES = {  # module -> what to install, where the two names differ
    "sklearn": "scikit-learn",
    "rouge_score": "rouge-score",
    "fairseq": "'sd_fairseq' again, which brings the fairseq for this Python",
}


class InputError(ValueError):
    """Something the user gave cannot be used; the message is one line naming what was found and what was expected.

    Args:
        message: line ends become blanks; what a file's content makes longer than 1,000 characters is cut in its middle.
    """

    def __init__(self, message: str):
        text = " ".join(message.split())
        super().__init__(text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 4 :]}")


def find_message(error: Optional[BaseException]) -> Optional[str]:
    """Find the message of an InputError behind an exception.

    Args:
        error: any exception. An InputError may be the exception itself, one that it was raised from or during, or,
            where it crossed a process border (data loader workers, spawned ranks), part of its text.

    Returns:
        The message on one line, or None when no InputError is behind the exception.
    """
    prefix = "{}.{}: ".format(InputError.__module__, InputError.__qualname__)
    for link in _walk_chain(error):
        text = str(link)
        if prefix in text:
            return " ".join(text.rsplit(prefix, 1)[1].split())
        if isinstance(link, InputError):
            return " ".join(text.split())
    return None


def _walk_chain(error: Optional[BaseException]) -> Iterator[BaseException]:
    waiting, seen = [error], set()
    while waiting:
        link = waiting.pop()
        if link is not None and id(link) not in seen:
            seen.add(id(link))
            yield link
            waiting += [link.__context__, link.__cause__]


def run(work: Callable[[Any], Any], args: Any, program: str = "sd_fairseq") -> int:
    """Does a command's work; returns its exit code.

    Args:
        work: takes ``args``.
        args: parsed arguments.
        program: what its line on standard error begins with.

    Returns:
        0; 1 after an error that the user can mend, said on one line; 141, in silence, where the reader of standard
        output has gone. With SD_FAIRSEQ_TRACEBACK=1 in the environment the traceback is printed too.
    """
    try:
        work(args)
        sys.stdout.flush()
    except BrokenPipeError:
        drop_standard_output()
        return CLOSED_PIPE
    except ModuleNotFoundError as error:
        if not error.name or error.name.startswith("sd_fairseq."):
            raise
        home = error.name.split(".")[0]
        return fail(f"needs {home}, which is not installed: pip install {PACKAGES.get(home, home)}", program)
    except Exception as error:
        if os.environ.get(TRACEBACK_VARIABLE) == "1":
            traceback.print_exc()
        message = find_message(error)
        if message is None and not isinstance(error, (OSError, ValueError, ImportError)):
            raise  # a fault of ours
        return fail(message or str(error), program)
    return 0


def fail(message: str, program: str = "sd_fairseq") -> int:
    """Says on one line of standard error what is wrong; returns exit code 1."""
    print(f"{program}: error: " + " ".join(message.split()), file=sys.stderr)
    return 1


def drop_standard_output() -> None:
    """Sends what is still to be printed nowhere, after the reader has gone: Python would complain at its end."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):  # standard output is no file, such as in a test
        pass


class QuietParser(argparse.ArgumentParser):
    """A parser whose help ends in silence where the reader has gone; older Pythons' own would end in a traceback."""

    def _print_message(self, message: str, file: Any = None) -> None:
        try:
            super()._print_message(message, file)
        except BrokenPipeError:
            drop_standard_output()


@lru_cache(maxsize=None)
def end_quietly() -> None:
    """Lets this process, a command, print what is left at its end, in silence where the reader has gone; once."""
    atexit.register(_flush)


def _flush() -> None:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        drop_standard_output()
