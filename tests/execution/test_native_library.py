"""The native library is compiled once, brings no second thread pool, and is done without where it cannot be had."""

import logging
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile

import pytest

from sd_fairseq.execution.native import cache, library

COMPILER = """#!/bin/sh
case "$1" in --version) echo fake {version};; *) echo "$@" >> {log}; while [ "$1" != -o ]; do shift; done; {act};; esac
"""


@pytest.fixture
def on_linux():
    try:
        flags = library.processor_flags()
    except OSError:
        flags = set()
    if not library.NEEDED <= flags:
        pytest.skip("needs a processor with AVX-512")


def fake_compiler(folder, act, version=1):
    """A compiler that writes down what it is asked for and then acts."""
    path = folder / "fake-c++"
    path.write_text(COMPILER.format(log=folder / "log", act=act, version=version))
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("act, words", [("echo it is broken; exit 1", "it is broken"), ('touch "$2"', "too short")])
def test_a_compiler_that_fails_is_one_line_in_the_log(tmp_path, caplog, act, words, on_linux):
    caplog.set_level(logging.INFO)
    compiler = fake_compiler(tmp_path, act)
    for _ in range(3):
        assert library.load_once(compiler, tmp_path / "cache") is None
    (line,) = [record for record in caplog.records if record.name == library.__name__]
    assert line.levelno == logging.WARNING and words in line.getMessage()
    assert not list((tmp_path / "cache").glob("tmp*")), "nothing is left beside"


def test_no_compiler_is_one_line_in_the_log(tmp_path, caplog, on_linux):
    caplog.set_level(logging.INFO)
    assert library.load_once("no-such-compiler -x", tmp_path) is None
    assert "no compiler 'no-such-compiler'" in caplog.text


def test_an_older_processor_is_one_line_in_the_log(tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(library, "processor_flags", lambda: {"avx2", "fma"})
    assert library.load_once("c++ ", tmp_path) is None
    assert "no AVX-512" in caplog.text and all(one.levelno == logging.INFO for one in caplog.records)


def test_the_switch_and_the_users_folder(monkeypatch, tmp_path):
    monkeypatch.setenv(library.SWITCH, "0")
    assert library.load() is None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.home() == tmp_path / "sd_fairseq"


@pytest.mark.parametrize("text", ["", "  "])
def test_an_empty_compiler_is_the_usual_one(monkeypatch, text):
    monkeypatch.setenv("CXX", text)
    monkeypatch.setattr(library, "load_once", lambda compiler, folder: compiler)
    assert library.load() == "c++"


def test_it_is_compiled_once_and_anew_for_another_compiler_or_processor(tmp_path):
    folder, log = tmp_path / "cache", tmp_path / "log"
    compiler = fake_compiler(tmp_path, 'touch "$2"')
    first = library.build(compiler, folder, {"avx512f"})
    assert library.build(compiler, folder, {"avx512f"}) == first and first.exists()
    assert len(log.read_text().splitlines()) == 2, "compiled and linked, once"
    assert "-fopenmp" not in log.read_text().splitlines()[1], "that would link a second OpenMP"
    others = {library.build(compiler, folder, {"avx512f", "avx512_bf16"})}
    others.add(library.build(compiler + " -g", folder, {"avx512f"}))
    assert len(others | {first}) == 3
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700 and stat.S_IMODE(first.stat().st_mode) == 0o700
    assert {path.suffix for path in folder.iterdir()} == {".so"}, "nothing is left beside"


def test_a_compiled_library_needs_no_compiler(tmp_path):
    compiler = fake_compiler(tmp_path, 'touch "$2"')
    first = library.build(compiler, tmp_path / "cache", {"avx512f"})
    os.remove(compiler)
    assert library.build(compiler, tmp_path / "cache", {"avx512f"}) == first


def damage(path, kind):
    """What may have happened to a compiled library."""
    if kind == "cut short":
        path.write_bytes(path.read_bytes()[:-1])
    elif kind == "another's content":
        path.write_bytes(b"evil")
    elif kind == "writable by others":
        path.chmod(0o722)
    elif kind == "a link":
        os.rename(str(path), str(path) + ".away")
        path.symlink_to(str(path) + ".away")
    elif kind == "another's":
        os.chown(str(path), 12345, -1)


DAMAGES = ["cut short", "another's content", "writable by others", "a link", "another's"]


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_library_that_is_not_whole_and_ours_is_made_anew(tmp_path, caplog, kind):
    if kind == "another's" and os.getuid() != 0:
        pytest.skip("only root can give a file away")
    compiler = fake_compiler(tmp_path, 'echo library > "$2"')
    path = library.build(compiler, tmp_path / "cache", {"avx512f"})
    damage(path, kind)
    assert library.build(compiler, tmp_path / "cache", {"avx512f"}) == path
    assert path.read_text() == "library\n" and cache.why_not_ours(path) is None
    assert len((tmp_path / "log").read_text().splitlines()) == 4, "compiled again"
    assert "not loaded" in caplog.text


@pytest.mark.parametrize("kind", ["writable by others", "another's", "a file", "below a file", "a link"])
def test_a_folder_that_is_not_ours_is_left_for_a_private_one(tmp_path, monkeypatch, kind):
    if kind == "another's" and os.getuid() != 0:
        pytest.skip("only root can give a folder away")
    (tmp_path / "private").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "private"))
    folder = tmp_path / "cache"
    if kind in ("writable by others", "another's"):
        folder.mkdir()
        damage(folder, kind)
    elif kind == "a file":
        folder.write_text("")
    elif kind == "below a file":
        (tmp_path / "file").write_text("")
        folder = tmp_path / "file" / "cache"
    else:
        (tmp_path / "other").mkdir(mode=0o700)
        folder.symlink_to("other")
    compiler = fake_compiler(tmp_path, 'echo library > "$2"')
    path = library.build(compiler, folder, {"avx512f"})
    assert path.read_text() == "library\n"
    assert str(path).startswith(str(tmp_path / "private")) and cache.why_not_ours(path.parent) is None
    assert not folder.is_dir() or not list(folder.iterdir())


def test_what_is_loaded_has_the_structures_that_python_writes(on_linux, monkeypatch):
    native = library.load()
    if native is None:
        pytest.skip("needs a compiler")
    library.check_structures(native)
    for place in range(len(library.STRUCTURES)):
        others = list(library.STRUCTURES)
        fields = [*others[place]._fields_, ("one_more", library.ctypes.c_int64)]
        others[place] = type("Other", (library.ctypes.Structure,), {"_fields_": fields})
        monkeypatch.setattr(library, "STRUCTURES", tuple(others))
        with pytest.raises(OSError, match="bytes, expected"):
            library.check_structures(native)
        monkeypatch.undo()


def test_the_structures_of_the_source_are_those_of_python(tmp_path):
    """Also where the processor cannot run the rest: only sizes are asked for."""
    compiler, made = shutil.which("c++"), str(tmp_path / "native.so")
    if compiler is None or platform.machine() != "x86_64":
        pytest.skip("needs a compiler for x86-64")
    source = os.path.join(os.path.dirname(library.__file__), library.SOURCE)
    flags = ["-O0", "-mavx512f", "-mavx512bw", "-mavx512vl", "-std=c++17", "-fPIC", "-w", "-shared"]
    subprocess.run([compiler, *flags, source, "-o", made], check=True)
    library.check_structures(library.ctypes.CDLL(made))


def test_pytorchs_openmp_is_a_file_that_this_process_has_loaded():
    if not os.path.exists("/proc/self/maps"):
        pytest.skip("needs Linux")
    found = library.openmp_runtimes()
    assert library.find_openmp() in found and all(map(os.path.isfile, found))


def test_it_brings_no_openmp_of_its_own(on_linux):
    program = """
import torch
from sd_fairseq.execution.native import cache, library
from sd_fairseq.execution.native.caches import SourceCache
before = library.openmp_runtimes()
native = library.load()
if native is not None:
    SourceCache(native, torch.randn(7, 64), [3, 4], 4)
    assert library.openmp_runtimes() == before and library.find_openmp() in before, library.openmp_runtimes()
"""
    subprocess.run([sys.executable, "-c", program], check=True)
