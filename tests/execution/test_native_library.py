"""The native library is compiled once, brings no second thread pool, and is done without where it cannot be had."""

import logging
import subprocess
import sys

import pytest

from sd_fairseq.execution.native import library

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
    assert line.levelno == logging.INFO and words in line.getMessage()
    assert not list((tmp_path / "cache").glob("tmp*")), "nothing is left beside"


def test_no_compiler_is_one_line_in_the_log(tmp_path, caplog, on_linux):
    caplog.set_level(logging.INFO)
    assert library.load_once("no-such-compiler -x", tmp_path) is None
    assert "no compiler 'no-such-compiler'" in caplog.text


def test_an_older_processor_is_one_line_in_the_log(tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(library, "processor_flags", lambda: {"avx2", "fma"})
    assert library.load_once("c++ ", tmp_path) is None
    assert "no AVX-512" in caplog.text


def test_a_folder_that_cannot_be_written_is_done_without(tmp_path, on_linux):
    (tmp_path / "file").write_text("")
    compiler = fake_compiler(tmp_path, 'touch "$2"')
    assert library.load_once(compiler, tmp_path / "file" / "cache") is None


def test_the_switch_and_the_users_folder(monkeypatch, tmp_path):
    monkeypatch.setenv(library.SWITCH, "0")
    assert library.load() is None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert library.cache_folder() == tmp_path / "sd_fairseq"


def test_it_is_compiled_once_and_anew_for_another_compiler_or_processor(tmp_path):
    cache, log = tmp_path / "cache", tmp_path / "log"
    compiler = fake_compiler(tmp_path, 'touch "$2"')
    first = library.build(compiler, cache, {"avx512f"})
    assert library.build(compiler, cache, {"avx512f"}) == first and first.exists()
    assert len(log.read_text().splitlines()) == 2, "compiled and linked, once"
    assert "-fopenmp" not in log.read_text().splitlines()[1], "that would link a second OpenMP"
    others = {library.build(compiler, cache, {"avx512f", "avx512_bf16"})}
    others.add(library.build(fake_compiler(tmp_path, 'touch "$2"', version=2), cache, {"avx512f"}))
    assert len(others | {first}) == 3


def test_it_brings_no_openmp_of_its_own(on_linux):
    program = """
import torch
from sd_fairseq.execution.native import library
from sd_fairseq.execution.native.caches import SourceCache
before = library.openmp_runtimes()
native = library.load()
if native is not None:
    SourceCache(native, torch.randn(7, 64), [3, 4], 4)
    assert library.openmp_runtimes() == before and library.find_openmp() in before, library.openmp_runtimes()
"""
    subprocess.run([sys.executable, "-c", program], check=True)
