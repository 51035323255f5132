"""The documents: their limits, links, tables and options; and what they show to be typed runs as it stands there."""

import gzip
import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from warm import python

ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / "results" / "debian" / "base"
LINES = {  # of a document, at most
    **{"docs/guide.md": 220, "docs/commands.md": 140, "docs/results.md": 200, "docs/speed.md": 150},
    **{"docs/paper.md": 150, "docs/compatibility.md": 80, "docs/research-log.md": 150, "docs/reliability.md": 90},
    **{"docs/rivals.md": 150},
    **{"CONTRIBUTING.md": 60, "SECURITY.md": 60, "CITATION.cff": 60},
}
DOCUMENTS = [
    path
    for pattern in ("*.md", "docs/*.md", "results/**/*.md", "examples/**/*.md")
    for path in sorted(ROOT.glob(pattern))
]
# What stands in a bash block of docs/ and is not run here, and why.
NOT_RUN = {
    "make ": "minutes; each has tests of its own",
    "python benchmarks/generation.py": "minutes or a GPU; tests/benchmarks runs it small",
}
TITLES = [path.relative_to(ROOT).as_posix() for path in DOCUMENTS]


def prose(path):
    """The text without code blocks."""
    return re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def blocks(path, language):
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", LINES)
def test_a_document_keeps_its_limit(name):
    assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) <= LINES[name]


@pytest.mark.parametrize("name", [name for name in LINES if name.endswith(".md")])
def test_lines_can_be_read_and_tables_have_at_most_six_columns(name):
    for line in prose(ROOT / name).splitlines():
        if line.startswith("|"):
            assert line.replace("\\|", "").count("|") <= 7, line
        else:
            assert len(line) <= 160, line


@pytest.mark.parametrize("path", DOCUMENTS, ids=TITLES)
def test_links_and_named_files_are_there(path):
    text = prose(path)
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert not [link for link in links if link and not (path.parent / link).exists()]
    if path.parent.name == "docs" and path.name != "research-log.md":  # that names what is gone
        named = re.findall(r"`((?:results|tools|tests|examples|benchmarks|docs)/[\w./-]+)`", text)
        assert not [name for name in named if not (ROOT / name).exists()]


@pytest.mark.parametrize("name", sorted(name for name in LINES if name.startswith("docs/")))
def test_what_is_installed_is_shown_as_a_command_not_as_a_module(name):
    assert "python -m sd_fairseq" not in (ROOT / name).read_text(encoding="utf-8")


def test_the_tables_are_those_of_the_results(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import document_tables

    filled = [path for path in DOCUMENTS if "<!-- table " in path.read_text(encoding="utf-8")]
    assert {path.name for path in filled} >= {"results.md", "speed.md", "paper.md", "compatibility.md"}
    assert document_tables.main(["--check", *map(str, filled)]) == 0


def test_a_table_that_differs_is_seen(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import document_tables

    text = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
    changed = tmp_path / "a.md"
    changed.write_text(text.replace("85 passed", "86 passed", 1), encoding="utf-8")
    assert document_tables.main(["--check", str(changed)]) == 1
    with pytest.raises(ValueError, match="is none of quality"):
        document_tables.render("nothing")


def commands():
    """name -> module of the commands that are installed (setup.py takes them from the same folder)."""
    names = [path.stem for path in (ROOT / "sd_fairseq" / "commands").glob("*.py")]
    return {
        "sd-import" if name == "import_weights" else "sd-" + name.replace("_", "-"): "sd_fairseq.commands." + name
        for name in names
        if name not in ("__init__", "shared")
    }


def test_every_command_is_in_the_document_of_commands_and_no_other():
    text = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\bsd-[a-z-]+[a-z]\b", text.replace("--sd-", "--"))) == set(commands())


@pytest.mark.parametrize(
    "name", ["docs/guide.md", "docs/paper.md", "docs/results.md", "docs/compatibility.md", "docs/rivals.md"]
)
def test_every_option_that_a_document_names_exists(name):
    pytest.importorskip("fairseq")
    shown = subprocess.run(
        [python(), "-W", "ignore", "-m", "sd_fairseq.commands.options", "--level", "all"],
        cwd=str(ROOT),
        stdout=subprocess.PIPE,
        universal_newlines=True,
        check=True,
    ).stdout
    named = set(re.findall(r"(?<![\w-])--sd-[a-z-]+[a-z]", (ROOT / name).read_text(encoding="utf-8")))
    assert named and not {flag for flag in named if flag not in shown}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in which everything has the name that the documents give it."""
    pytest.importorskip("fairseq")
    place = tmp_path_factory.mktemp("documents")
    with gzip.open(str(ROOT / "examples/data/debian/valid.jsonl.gz"), "rt", encoding="utf-8") as lines:
        pairs = [line for line in lines if len(json.loads(line)["document"]) < 600][:140]
    (place / "pairs").mkdir()
    for split, chosen in (("train", pairs[:20]), ("valid", pairs[20:125]), ("test", pairs[125:])):
        with gzip.open(str(place / "pairs" / (split + ".jsonl.gz")), "wt", encoding="utf-8") as out:
            out.writelines(chosen)
    shutil.copy(str(place / "pairs" / "valid.jsonl.gz"), str(place))
    prepare = [ROOT / "examples/quickstart/prepare.py", "--data", place / "pairs", "--vocabulary", BASE, place / "made"]
    execute([python(), *map(str, prepare)], place)
    (place / "DATA").symlink_to(place / "made" / "data-bin")
    shutil.copy(str(BASE / "sentencepiece.model"), str(place))
    task = ["DATA", "--user-dir", str(ROOT / "sd_fairseq"), "--task", "switchable_translation", "--cpu"]
    train = [*task, "-s", "source", "-t", "target", "--truncate-source", "--finetune-from-model", str(BASE / "base.pt")]
    train += ["--arch", "switchable_bart", "--criterion", "sd_policy_criterion", "--optimizer", "adam", "--lr", "1e-5"]
    train += ["--max-update", "1", "--max-tokens", "300", "--disable-validation", "--save-dir", "checkpoints"]
    train += ["--sd-policy-freeze-update", "1", "--no-epoch-checkpoints", "--num-workers", "0"]
    execute([python(), "-m", "fairseq_cli.train", *train], place)
    last = place / "checkpoints" / "checkpoint_last.pt"
    for link in (place / "checkpoint_last.pt", place / "checkpoint_best.pt", last.with_name("checkpoint_best.pt")):
        if not link.exists():
            link.symlink_to(last)
    generate = [*task, "--gen-subset", "valid", "--beam", "2", "--max-len-b", "12", "--path", "checkpoint_last.pt"]
    generate += ["--post-process", "sentencepiece", "--max-tokens", "8192"]
    for name, path in (("dense", "dense"), ("policy", "random:0.9")):
        words = [*generate, "--sd-trace", name + ".jsonl", "--sd-path", path]
        text = execute([python(), "-m", "fairseq_cli.generate", *words], place)
        (place / (name + ".txt")).write_text(text, encoding="utf-8")
    for name, tag, column in (("reference", "T", 1), ("hypothesis", "H", 2)):
        found = re.findall(rf"^{tag}-.*$", (place / "policy.txt").read_text(encoding="utf-8"), re.MULTILINE)
        (place / (name + ".txt")).write_text("".join(line.split("\t")[column] + "\n" for line in found))
    return place


def execute(words, place):
    """Runs a command; returns its standard output."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        words,
        cwd=str(place),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        universal_newlines=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def shown():
    """What docs/ shows to be typed: lines of bash blocks, and lines after a dollar with the output below them."""
    for path in sorted((ROOT / "docs").glob("*.md")):
        for block in blocks(path, "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                yield path.name, line, []
        for block in blocks(path, ""):
            if block.startswith("$ "):
                first, *rest = block.splitlines()
                yield path.name, first[2:], rest


SHOWN = list(shown())


def test_what_is_not_run_is_named_with_its_reason():
    unknown = [line for _, line, _ in SHOWN if not line.startswith("sd-") and not line.startswith(tuple(NOT_RUN))]
    assert not unknown
    assert {line.split()[0] for _, line, _ in SHOWN} >= {"sd-report", "sd-export", "sd-check", "sd-rouge"}


@pytest.mark.parametrize("name, line, output", [one for one in SHOWN if one[1].startswith("sd-")])
def test_a_command_runs_as_it_is_shown_and_prints_such_lines(folder, name, line, output):
    command, *words = shlex.split(line)
    printed = " ".join(execute([python(), "-m", commands()[command], *words], folder).split())
    for expected in output:  # figures are of another model: the words around them must be there
        label = " ".join(re.split(r"[\d+-]", expected)[0].split())
        assert not label or label in printed, f"{name}: {label!r} is not printed"


def test_the_guides_python_runs(folder):
    (code,) = blocks(ROOT / "docs" / "guide.md", "python")
    assert execute([python(), "-c", code], folder).strip()
