"""Compiles the native library at its first use and loads it.

Choice: a plain C interface called through ctypes instead of a PyTorch extension: it compiles in seconds without
PyTorch's headers, and one source serves every version of Python and PyTorch.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import re
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Any, List, Optional, Set

import torch

from sd_fairseq.execution.native import cache
from sd_fairseq.execution.native.structures import STRUCTURES

logger = logging.getLogger(__name__)

SWITCH = "SD_FAIRSEQ_NATIVE"  # environment variable; 0 = PyTorch's way always
SOURCE = "native.cpp"
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fopenmp", "-fPIC", "-w")
NEEDED = {"avx512f", "avx512bw", "avx512vl"}  # of the processor; avx512_bf16 is used where it is
COMPILING_TAKES = 300  # seconds, at most
OPENMP = re.compile(r"/lib(gomp|iomp5|omp)[^/]*\.so[^/]*$")


class OldProcessor(OSError):
    """Nothing that anybody could mend: said less loudly."""


def load() -> Optional[ctypes.CDLL]:
    """Returns the library, or None where it is switched off or cannot be had; says why in the log, once."""
    compiler = " ".join((os.environ.get("CXX") or "").split()) or "c++"
    return None if os.environ.get(SWITCH) == "0" else load_once(compiler, cache.home())


@lru_cache(maxsize=None)
def load_once(compiler: str, folder: Path) -> Optional[ctypes.CDLL]:
    """Compiles, unless that is done, and loads.

    Args:
        compiler: its command.
        folder: of compiled files.
    """
    try:
        flags = processor_flags()
        if not NEEDED <= flags:
            raise OldProcessor("the processor has no AVX-512")
        openmp = find_openmp()
        path = build(compiler, folder, flags)
        # Before the library, whose undefined GOMP_* symbols it answers: a runtime of its own would be a second pool of
        # threads, spinning on the cores of the first.
        ctypes.CDLL(openmp, mode=ctypes.RTLD_GLOBAL)
        native = ctypes.CDLL(str(path))
        check_structures(native)
        return native
    except (OSError, AttributeError, subprocess.SubprocessError) as error:
        level = logging.INFO if isinstance(error, OldProcessor) else logging.WARNING
        logger.log(level, "generation runs in PyTorch alone, its native part cannot be had: %s", error)
        return None


def check_structures(native: Any) -> None:
    """Compares the sizes of the library's structures with what Python writes into them.

    Raises:
        OSError: they differ.
    """
    expected = [ctypes.sizeof(kind) for kind in STRUCTURES]
    found = (ctypes.c_int64 * len(STRUCTURES))()
    native.structure_sizes(found)
    if list(found) != expected:
        raise OSError(f"its structures have {list(found)} bytes, expected {expected}")


def build(compiler: str, folder: Path, flags: Set[str]) -> Path:
    """Returns the compiled library; its name tells what it was made of, for what processor and by which command.

    A library that is there is taken before the compiler is asked for anything: there may be none any more.

    Raises:
        OSError, SubprocessError: there is no compiler, or it fails.
    """
    here = Path(__file__).parent
    parts = [*FLAGS, compiler, *sorted(flags)]
    parts += [path.read_text(encoding="utf-8") for path in sorted([here / SOURCE, *here.glob("*.h")])]
    name = f"native-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:32]}"
    found = cache.find(folder, name)
    if found is not None:
        return found
    command = compiler.split()
    if shutil.which(command[0]) is None:
        raise OSError(f"there is no compiler {command[0]!r}")

    def make(beside: str) -> str:
        made, library = os.path.join(beside, "native.o"), os.path.join(beside, "native.so")
        run([*command, *FLAGS, "-c", str(here / SOURCE), "-o", made])
        run([*command, "-shared", made, "-o", library])  # without -fopenmp: see load_once
        return library

    return cache.store(folder, name, make)


def run(command: List[str]) -> str:
    """Runs a command; returns what it prints.

    Raises:
        OSError, SubprocessError: it cannot be run, or fails; with its last words.
    """
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=COMPILING_TAKES, universal_newlines=True
    )
    if done.returncode != 0:
        raise OSError(f"{command[0]} fails: {(done.stdout.strip().splitlines() or ['no message'])[-1]}")
    return done.stdout


def processor_flags() -> Set[str]:
    """What the processor can do, in Linux's words; nothing elsewhere."""
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        return set(next((line.split(":", 1)[1] for line in lines if line.startswith("flags")), "").split())


def openmp_runtimes() -> List[str]:
    """The OpenMP libraries in this process."""
    with open("/proc/self/maps", encoding="utf-8") as lines:
        paths = {line.split(maxsplit=5)[5].strip() for line in lines if line.count("/")}
    return sorted(path for path in paths if OPENMP.search(path))


def find_openmp() -> str:
    """Returns the OpenMP library that PyTorch runs its threads with.

    Raises:
        OSError: that cannot be told.
    """
    found = openmp_runtimes()
    own = [path for path in found if path.startswith(os.path.dirname(torch.__file__))] or found
    if len(own) != 1:
        raise OSError(f"PyTorch's OpenMP is one of {', '.join(own) or 'none'}")
    return own[0]
