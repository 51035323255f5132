"""Bad input ends a fairseq command with one clear line instead of a traceback."""

import os
import sys
from typing import Iterator, Optional

TRACEBACK_VARIABLE = "SD_FAIRSEQ_TRACEBACK"


class InputError(ValueError):
    """Something the user gave cannot be used; the message is one line naming what was found and what was expected."""


def fairseq_command(program: str) -> Optional[str]:
    """Name the fairseq command line that is running.

    Args:
        program: `sys.argv[0]`.

    Returns:
        The command without prefix and ending, such as "train" or "generate"; None for any other program.
    """
    folder, name = os.path.split(program)
    for ending in (".exe", "-script.py", ".py"):
        if name.endswith(ending):
            name = name[: -len(ending)]
            break
    if name.startswith("fairseq-"):
        return name[len("fairseq-") :]
    if os.path.basename(folder) == "fairseq_cli":
        return name
    return None


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


def install_one_line_errors() -> None:
    """Let an uncaught InputError print one line, if this process is a fairseq command line.

    The exit code stays 1. With SD_FAIRSEQ_TRACEBACK=1 in the environment the traceback is printed too. Every other
    exception goes to the hook that was set before. Calling it again changes nothing.
    """
    previous = sys.excepthook
    if fairseq_command(sys.argv[0] if sys.argv else "") is None or hasattr(previous, "prints_input_errors"):
        return

    def print_one_line(kind, error, traceback):
        message = find_message(error)
        if message is None or os.environ.get(TRACEBACK_VARIABLE) == "1":
            previous(kind, error, traceback)
        if message is not None:
            print("sd_fairseq: error: " + message, file=sys.stderr)

    print_one_line.prints_input_errors = True
    sys.excepthook = print_one_line
