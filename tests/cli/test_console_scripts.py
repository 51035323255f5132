"""Every ``sd-*`` command: help with an example, version, errors of one line; where the old names went."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = sorted(
    path.stem for path in (ROOT / "sd_fairseq" / "commands").glob("*.py") if path.stem not in ("__init__", "shared")
)
EXPECTED = """answer calibrate check classify encode explain_paths export fit import_weights match_random measure_noise
options report rouge search_paths squad_score""".split()
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def run(*arguments, code=None):
    """Runs Python; returns the finished process."""
    return subprocess.run(
        [sys.executable, *(["-c", code] if code else ["-m"]), *arguments],
        cwd=str(ROOT),
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        universal_newlines=True,
    )


def typed(name):
    return "sd-import" if name == "import_weights" else "sd-" + name.replace("_", "-")


def test_every_command_of_the_plan_is_there():
    assert not set(EXPECTED) - set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example_and_needs_neither_torch_nor_fairseq(name):
    """What takes seconds to import is what makes help slow; the time itself depends on the machine."""
    code = "import sys; sys.modules.update(dict.fromkeys(('torch', 'fairseq', 'nltk', 'sklearn', 'matplotlib')))\n"
    code += f"from sd_fairseq.commands.{name} import main; main(['--help'])"
    done = run(code=code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: {typed(name)} ")
    example = done.stdout[done.stdout.rindex("example:") :]
    assert typed(name) in example and "..." not in example


@pytest.mark.parametrize("name", COMMANDS)
def test_version_is_the_package_s(name, capsys):
    from importlib import import_module

    from sd_fairseq.version import __version__

    with pytest.raises(SystemExit) as end:
        import_module("sd_fairseq.commands." + name).main(["--version"])
    assert end.value.code == 0 and capsys.readouterr().out == f"{typed(name)} {__version__}\n"


@pytest.mark.parametrize("name,limit", [("rouge", 1.5), ("report", 3.0)])
def test_scorers_start_at_once(name, limit):
    """The best of five: another program may have the processor."""
    times = []
    for _ in range(5):
        started = time.perf_counter()
        assert run(f"sd_fairseq.commands.{name}", "--help").returncode == 0
        times.append(time.perf_counter() - started)
    assert min(times) < limit


def test_a_missing_package_is_named_with_what_to_install(capsys):
    from sd_fairseq.commands.shared import run as run_command

    def work(_):
        import no_such_package_at_all.part  # noqa: F401

    assert run_command(work, None) == 1
    error = capsys.readouterr().err
    assert error == (
        "sd_fairseq: error: needs no_such_package_at_all, which is not installed: pip install no_such_package_at_all\n"
    )


def test_rouge_without_nltk_says_what_to_install(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_text("some longer words .\n")
    code = "import sys; sys.modules['nltk'] = None\n"
    code += "from sd_fairseq.commands.rouge import main\nsys.exit(main(sys.argv[1:]))"
    done = run(str(tmp_path / "a"), str(tmp_path / "b"), code=code)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "pip install nltk" in done.stderr


@pytest.mark.parametrize("name", ["sd_fairseq.plugin.path_search", "sd_fairseq.evaluation.path_analysis"])
def test_an_old_name_says_where_it_went(name):
    from sd_fairseq.moved import PLACES

    done = run(name)
    assert done.returncode != 0 and PLACES[name] in done.stderr
    assert "Traceback" not in done.stderr


def test_old_names_lead_to_what_is_there():
    from sd_fairseq.moved import PLACES

    for old, new in PLACES.items():
        assert not (ROOT / (old.replace(".", "/") + ".py")).exists()
        script = re.search(r"tools/\w+\.py", new)
        command = "sd_fairseq/commands/{}.py".format(new[3:].replace("-", "_"))
        assert (ROOT / (script.group() if script else command)).is_file(), new


def test_the_document_of_options_is_what_the_command_prints():
    """If this fails: ``make options``."""
    done = run("sd_fairseq.commands.options", "--markdown")
    assert done.returncode == 0, done.stderr
    assert done.stdout == (ROOT / "docs" / "options.md").read_text(encoding="utf-8")


def test_everyday_options_are_few_and_all_names_are_known():
    from sd_fairseq.commands.options import ADVANCED, EVERYDAY, collect_options

    names = [option.name for option in collect_options()]
    assert len(EVERYDAY) <= 10 and not {*EVERYDAY, *ADVANCED} - set(names)
    assert len(names) == len(set(names)) and all(option.help for option in collect_options())
