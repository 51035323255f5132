"""The folder of compiled libraries: whose it must be, what is loaded from it, and how a new one gets there.

A library's name ends in the hash of its content: what was cut short, or put there under another's name, is not loaded.
"""

from __future__ import annotations

import atexit
import hashlib
import logging
import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Callable, Optional

logger = logging.getLogger(__name__)

OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


def home() -> Path:
    """The user's folder for compiled files."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(home) / "sd_fairseq"


def why_not_ours(path: Path) -> Optional[str]:
    """Tells why what stands in a place is not to be trusted: another user could have written it; None = it is."""
    status = os.lstat(str(path))
    if stat.S_ISLNK(status.st_mode):
        return f"{path} is a link"
    if status.st_uid != os.getuid():
        return f"{path} is of user {status.st_uid}, not of {os.getuid()}"
    if status.st_mode & OTHERS_MAY_WRITE:
        return f"{path} can be written by others (mode {stat.S_IMODE(status.st_mode):o})"
    return None


def find(folder: Path, name: str) -> Optional[Path]:
    """Returns the whole library of that name that is ours, or None; says of others why they are left.

    Args:
        folder: of compiled files.
        name: of the library, without what its content adds.
    """
    if not folder.is_dir():
        return None
    reason = why_not_ours(folder)
    if reason is not None:
        logger.warning("compiled libraries are not looked for: %s", reason)
        return None
    for path in sorted(folder.glob(f"{name}-*.so")):
        reason = why_not_ours(path)
        if reason is None and path.stem.rsplit("-", 1)[1] == digest(path):
            return path
        logger.warning("a compiled library is not loaded: %s", reason or f"{path} is damaged")
    return None


def store(folder: Path, name: str, make: Callable[[str], str]) -> Path:
    """Makes a library beside its place, brings it to the disk and renames it.

    Args:
        folder: of compiled files; where it is not ours alone, or cannot be written, a private temporary one is taken.
        name: as :func:`find`'s.
        make: makes the library in a folder, and returns its path.

    Raises:
        OSError: it can be written nowhere; and what ``make`` raises.
    """
    folder = usable(folder)
    beside = tempfile.mkdtemp(dir=str(folder))
    try:
        made = make(beside)
        os.chmod(made, stat.S_IRWXU)
        path = folder / f"{name}-{digest(Path(made))}.so"
        sync(made)
        os.replace(made, str(path))
        sync(str(folder))
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return path


def usable(folder: Path) -> Path:
    """Returns the folder, made for the user alone; or a temporary one, removed at the end, where that cannot be had."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        reason = why_not_ours(folder)
        if reason is None and not os.access(str(folder), os.W_OK | os.X_OK):
            reason = f"{folder} cannot be written"
    except OSError as error:
        reason = f"{folder} cannot be made ({error.strerror})"
    if reason is None:
        return folder
    logger.info("the native part of generation is compiled for this run only: %s", reason)
    private = tempfile.mkdtemp(prefix="sd_fairseq-")
    atexit.register(shutil.rmtree, private, ignore_errors=True)
    return Path(private)


def digest(path: Path) -> str:
    """Returns the hash of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:32]


def sync(path: str) -> None:
    """Brings a file or a folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
