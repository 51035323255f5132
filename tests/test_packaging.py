"""The package's walls: who may import whom, what works without fairseq, what the installer is told."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "sd_fairseq"
CHAPTERS = ["decision", "execution", "cost", "learning", "evaluation", "plugin", "study", "commands"]
CORE = CHAPTERS[:5]


def list_files(*chapters):
    return [path for chapter in chapters for path in sorted((PACKAGE / chapter).rglob("*.py"))]


def find_imports(path):
    """List the full names of all modules a file imports, wherever in the file."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            home = ".".join(path.relative_to(ROOT).parts[: -node.level]) if node.level else ""
            base = ".".join(part for part in (home, node.module or "") if part)
            found += ["{}.{}".format(base, name.name) for name in node.names]
    return found


def name_of(path):
    return str(path.relative_to(ROOT))


SHARED = ("version", "__version__", "whole_files")  # of no chapter, free to all; import none of them


def test_what_all_share_imports_no_chapter():
    for name in ("version", "whole_files"):
        assert not [
            found for found in find_imports(PACKAGE / (name + ".py")) if found.startswith(("sd_fairseq", "fairseq"))
        ]


@pytest.mark.parametrize("path", list_files(*CORE), ids=name_of)
def test_only_the_plugin_imports_fairseq(path):
    assert not [name for name in find_imports(path) if name.split(".")[0] in ("fairseq", "fairseq_cli")]


@pytest.mark.parametrize("path", list_files(*CHAPTERS), ids=name_of)
def test_imports_run_backwards_in_the_story(path):
    own = CHAPTERS.index(path.relative_to(PACKAGE).parts[0])
    allowed = CHAPTERS[: own + 1]
    for name in find_imports(path):
        parts = name.split(".")
        if parts[0] == "sd_fairseq" and parts[1] not in SHARED:
            assert parts[1] in allowed, "{} imports {}".format(name_of(path), name)


def test_every_chapter_is_a_package():
    assert [chapter for chapter in CHAPTERS if not (PACKAGE / chapter / "__init__.py").is_file()] == []


def test_core_works_without_fairseq():
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in list_files(*CORE)]
    modules = sorted({name[: -len(".__init__")] if name.endswith(".__init__") else name for name in modules})
    program = (
        "import importlib, sys\n"
        "sys.modules['fairseq'] = sys.modules['fairseq_cli'] = None  # as if not installed\n"
        "for name in {!r}: importlib.import_module(name)\n"
        "assert 'sd_fairseq.plugin' not in sys.modules\n"
    ).format(modules)
    outcome = subprocess.run([sys.executable, "-c", program], cwd=str(ROOT), stderr=subprocess.PIPE, encoding="utf-8")
    assert outcome.returncode == 0, outcome.stderr


def test_no_folder_of_tests_hides_fairseq():
    assert [path for path in (ROOT / "tests").rglob("fairseq*") if path.is_dir()] == []


def run_setup(*arguments):
    """Ask setup.py, as the installer does."""
    pytest.importorskip("setuptools")
    command = [sys.executable, "setup.py", "-q", *arguments]
    outcome = subprocess.run(command, cwd=str(ROOT), stdout=subprocess.PIPE, encoding="utf-8", check=True)
    return outcome.stdout.strip().splitlines()[-1]


def test_installing_brings_every_source(tmp_path):
    """The native ones too, which are compiled where they are used."""
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path)]
    subprocess.run(command, cwd=str(ROOT), check=True)
    wanted = {path.relative_to(ROOT) for kind in ("*.py", "*.cpp", "*.h") for path in PACKAGE.rglob(kind)}
    assert wanted == {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}


def test_version_is_read_from_its_file():
    scope = {}
    exec((PACKAGE / "version.py").read_text(encoding="utf-8"), scope)
    assert run_setup("--version") == scope["__version__"]
    assert run_setup("--license") == "MIT"


@pytest.mark.parametrize("module", ["rouge", "report"])
def test_console_scripts_have_their_function(module):
    assert "=sd_fairseq.evaluation.{}:main".format(module) in (ROOT / "setup.py").read_text(encoding="utf-8")
    tree = ast.parse((PACKAGE / "evaluation" / (module + ".py")).read_text(encoding="utf-8"))
    assert "main" in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
