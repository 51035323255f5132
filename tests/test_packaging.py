"""The package's walls: who may import whom, what works without fairseq, what the installer is told."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "sd_fairseq"
CHAPTERS = ["decision", "execution", "families", "cost", "learning", "evaluation", "plugin", "study", "commands"]
CORE = CHAPTERS[:6]


def list_files(*chapters):
    return [path for chapter in chapters for path in sorted((PACKAGE / chapter).rglob("*.py"))]


def find_imports(path, root=ROOT):
    """List the full names of all modules a file imports, wherever in the file."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            home = ".".join(path.relative_to(root).parts[: -node.level]) if node.level else ""
            base = ".".join(part for part in (home, node.module or "") if part)
            found += ["{}.{}".format(base, name.name) for name in node.names]
    return found


def name_of(path):
    return str(path.relative_to(ROOT))


MODULES = ("version", "errors", "user_files", "whole_files")  # of no chapter, free to all; import none of them
SHARED = (*MODULES, "__version__")


def test_what_all_share_imports_no_chapter():
    for name in MODULES:
        for found in find_imports(PACKAGE / (name + ".py")):
            assert not found.startswith("fairseq") and (not found.startswith("sd_fairseq") or "errors" in found)


# folders of the plugin, each importing only those before it
ROOMS = "guards repairs text models generation squad criterions tasks scoring convert predict".split()


def find_faults(root):
    """List the imports below ``root/sd_fairseq`` that run against the story, "FILE imports NAME"."""
    package, faults = root / "sd_fairseq", []
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        if parts[0] not in CHAPTERS:
            continue
        for name in find_imports(path, root):
            if not is_allowed(parts, name.split(".")):
                faults.append("{} imports {}".format(path.relative_to(root), name))
    return faults


def is_allowed(parts, target):
    """Tell whether the file ``parts`` of the package may import ``target``, both in pieces."""
    own = CHAPTERS.index(parts[0])
    if target[0] in ("fairseq", "fairseq_cli"):
        return parts[0] in ("plugin", "study", "commands")
    if target[0] != "sd_fairseq" or target[1] in SHARED:
        return True
    if target[1] != parts[0]:
        return target[1] in CHAPTERS[:own]
    if parts[0] == "plugin" and parts[1] != "__init__" and target[2:]:
        return target[2] in ROOMS[: ROOMS.index(parts[1]) + 1]
    return parts[0] != "commands" or target[2] == "shared"  # no command runs another


def test_imports_run_backwards_in_the_story():
    assert find_faults(ROOT) == []


@pytest.mark.parametrize(
    "path,line",
    [
        ("cost/flops.py", "import fairseq.models"),
        ("decision/policy.py", "from sd_fairseq.cost import flops"),
        ("learning/table.py", "from sd_fairseq.evaluation import report"),
        ("execution/tokens.py", "from sd_fairseq.plugin.guards.errors import InputError"),
        ("execution/tokens.py", "def late():\n    from ..plugin import guards"),
        ("evaluation/report.py", "import sd_fairseq.plugin"),
        ("plugin/tasks/task.py", "from sd_fairseq.study import path_search"),
        ("plugin/tasks/task.py", "from sd_fairseq.commands.shared import run"),
        ("plugin/guards/preflight.py", "from sd_fairseq.plugin.models.options import DEFAULTS"),
        ("plugin/repairs/alignment.py", "from sd_fairseq.plugin.tasks import switchable_task"),
        ("plugin/models/bart.py", "from sd_fairseq.plugin.convert.export import export"),
        ("study/fit.py", "from sd_fairseq.commands.fit import main"),
        ("commands/fit.py", "from sd_fairseq.commands.check import main"),
    ],
)
def test_a_planted_import_is_found(path, line, tmp_path):
    file = tmp_path / "sd_fairseq" / path
    file.parent.mkdir(parents=True)
    file.write_text("import torch\nfrom sd_fairseq.version import __version__\n")
    assert find_faults(tmp_path) == []
    file.write_text(line + "\n")
    (fault,) = find_faults(tmp_path)
    assert fault.startswith("sd_fairseq/{} imports ".format(path))


def test_every_room_of_the_plugin_has_its_place():
    found = {path.stem for path in (PACKAGE / "plugin").iterdir() if path.name not in ("__init__.py", "__pycache__")}
    assert found == set(ROOMS)


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


def test_the_tests_that_start_first_are_there():
    import order

    assert [place for place in order.PLACES if not Path(place).is_file()] == []
    assert [name for name in order.LONGEST if order.LONGEST.count(name) > 1] == []


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
    wanted = {path.relative_to(ROOT) for kind in ("*.py", "*.cpp", "*.h", "py.typed") for path in PACKAGE.rglob(kind)}
    assert wanted == {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}


def test_version_is_read_from_its_file():
    scope = {}
    exec((PACKAGE / "version.py").read_text(encoding="utf-8"), scope)
    assert run_setup("--version") == scope["__version__"]
    assert run_setup("--license") == "MIT"
