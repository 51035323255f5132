"""Writes results, all of them: beside their place, then renamed, so that a file is whole or absent.

Links are followed. What is no regular file (a device, a pipe) is written straight into.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, Callable, Dict, Iterator, Optional, Sequence, TextIO, Tuple, Union

from sd_fairseq.errors import InputError


def check_places(
    outputs: Sequence[Optional[str]], inputs: Sequence[Optional[str]], makes_folders: bool = False
) -> None:
    """Refuses, before any work, an output over an input, two outputs in one file, and what cannot be written.

    Files are the same by device and inode, or by their path where none is there yet. Devices and pipes are no files.

    Args:
        outputs, inputs: paths; None where an option is not given.
        makes_folders: the command makes the outputs' folders.

    Raises:
        InputError: naming the output, and what it would destroy.
    """
    taken: Dict[Tuple[Union[int, str], ...], Tuple[str, str]] = {}
    given = [("the input", path) for path in inputs if path] + [("the output", path) for path in outputs if path]
    for kind, path in given:
        if is_no_file(path) and not os.path.isdir(path):
            continue
        key: Tuple[Union[int, str], ...] = (os.path.realpath(path),)
        if os.path.exists(path):
            status = os.stat(path)
            key = (status.st_dev, status.st_ino)
        if kind == "the output" and key in taken:
            raise InputError(f"{path}: the same file as {taken[key][0]} {taken[key][1]}, expected another output")
        taken.setdefault(key, (kind, path))
    for kind, path in given:
        if kind == "the output":
            probe(path, makes_folders)


def probe(path: str, makes_folders: bool = False) -> None:
    """Finds out whether a file can be written, and leaves nothing behind.

    Args:
        path: its place.
        makes_folders: folders on the way that are not there are no fault.

    Raises:
        InputError: it cannot.
    """
    if os.path.isdir(path):
        raise InputError(f"{path}: cannot be written (a folder, expected a file or nothing)")
    if is_no_file(path):
        if not os.access(path, os.W_OK):
            raise InputError(f"{path}: cannot be written (Permission denied)")
        return
    part = _beside(path)
    folder = os.path.dirname(part)
    while makes_folders and not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    try:
        with open(os.path.join(folder, os.path.basename(part)), "x"):
            pass
    except FileExistsError:  # of a killed run: what it left is not ours to remove
        return
    except OSError as error:
        raise _unwritable(path, error) from error
    os.remove(os.path.join(folder, os.path.basename(part)))


def is_no_file(path: str) -> bool:
    """Tells whether something else than a regular file stands there: a device, a pipe, a folder."""
    return os.path.exists(path) and not os.path.isfile(path)


@contextmanager
def whole(path: str) -> Iterator[str]:
    """Gives a path to write to; when the block ends it becomes ``path``, when it raises it is removed.

    Args:
        path: the file's place; what stood there stays until the end.

    Raises:
        InputError: it cannot be written or renamed.
    """
    try:
        if is_no_file(path):
            yield path
            return
        place, part = os.path.realpath(path), _beside(path)
        try:
            yield part
            _keep(part, place)
        finally:
            if os.path.exists(part):
                os.remove(part)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _unwritable(path, error) from error


def _beside(path: str) -> str:
    return f"{os.path.realpath(path)}.{os.getpid()}.part"


def _keep(part: str, place: str) -> None:
    """Brings a file to the disk, then into its place, with the rights of what stood there."""
    with open(part, "rb") as stream:
        os.fsync(stream.fileno())
    if os.path.exists(place):
        shutil.copymode(place, part)
    os.replace(part, place)


def _unwritable(path: str, error: OSError) -> InputError:
    return InputError(f"{path}: cannot be written ({error.strerror or error})")


def write_with(path: str, write: Callable[[BinaryIO], Any]) -> None:
    """Writes what ``write`` writes into a binary stream.

    Raises:
        InputError: it cannot be written.
    """
    with whole(path) as part:
        with open(part, "wb") as stream:
            write(stream)


def write_text(path: str, text: str) -> None:
    """Writes UTF-8.

    Raises:
        InputError: it cannot be written.
    """
    write_with(path, lambda stream: stream.write(text.encode("utf-8")))


def write_json(path: str, content: Any) -> None:
    """Writes JSON, one space of indentation a level.

    Raises:
        InputError: it cannot be written.
    """
    write_text(path, json.dumps(content, indent=1) + "\n")


def copy_whole(source: str, target: str) -> None:
    """Copies a file so that ``target`` is the old or the new one at any moment, also beside other processes that do it.

    Raises:
        InputError: no room, or no right to write.
    """
    with whole(target) as part:
        shutil.copyfile(source, part)
        os.chmod(part, stat.S_IMODE(os.stat(source).st_mode))


class GrowingFile:
    """A file that is appended to beside its place and renamed when all is in; opened at once, before any work.

    A run that is killed leaves what it has written in ``PATH.PID.part``. What comes after the renaming is appended to
    the file in its place.

    Args:
        path: links are followed; what is no regular file (a device, a pipe) is written straight into.

    Raises:
        InputError: it cannot be written.
    """

    def __init__(self, path: str):
        self.path = path if is_no_file(path) else os.path.realpath(path)
        self.part: Optional[str] = None if is_no_file(path) else _beside(path)
        try:
            self.stream: TextIO = open(self.part or self.path, "w", encoding="utf-8")  # noqa: SIM115
        except OSError as error:
            raise _unwritable(path, error) from error

    def append(self, text: str, complete: bool) -> None:
        """Writes on; ``complete`` = all that is expected so far is in.

        Raises:
            OSError: it can no longer be written, such as on a full disk.
        """
        self.stream.write(text)
        self.stream.flush()
        if complete and self.part is not None:
            _keep(self.part, self.path)
            self.part = None

    def close(self) -> None:
        """Closes the file; removes it if nothing was written."""
        with suppress(OSError):  # a full disk has been told of
            self.stream.close()
        if self.part is not None and os.path.exists(self.part) and os.path.getsize(self.part) == 0:
            os.remove(self.part)
