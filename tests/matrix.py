"""``make matrix``: the end-to-end tests on every Python from 3.8 to 3.13 found here, and the table of what ran.

For each interpreter ``make setup`` builds an environment with the fairseq and torch that setup.py picks there (kept for
the next time), then the tests run from this checkout. A row that fails stays in the table with its last line.
"""

import argparse
import datetime
import glob
import json
import os
import re
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VERSIONS = ("3.8", "3.9", "3.10", "3.11", "3.12", "3.13")
TESTS = ("tests/cli/test_end_to_end.py", "tests/plugin/test_dense_laws.py", "tests/plugin/test_decoding_laws.py")
FAIRSEQS = ("fairseq", "ve-fairseq", "fairseq-fixed")
PACKAGES = ("torch", "numpy", "hydra-core", "omegaconf")
LIST_PACKAGES = (
    "import json, importlib.metadata as m; "
    "print(json.dumps({d.metadata['Name'].lower().replace('_', '-'): d.version for d in m.distributions()}))"
)
COLUMNS = ("Python", "fairseq", "torch", "numpy", "hydra / omegaconf", "result", "seconds", "date")


def find_interpreters():
    """Return {version: executable}: the ones on PATH that start, then pyenv's."""
    found = {}
    pyenv = os.environ.get("PYENV_ROOT") or os.path.expanduser("~/.pyenv")
    for version in VERSIONS:
        installed = glob.glob(os.path.join(pyenv, "versions", version + ".*", "bin", "python"))
        for program in ["python" + version] + sorted(installed):
            if run([program, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"])[1].strip() == version:
                found[version] = program
                break
    return found


def run(command, log=None, **environment):
    """Run a command from the repository root; return (exit code, output), the output also written to ``log``."""
    try:
        finished = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            universal_newlines=True,
            cwd=ROOT,
            env=dict({k: v for k, v in os.environ.items() if k != "PYTHONPATH"}, **environment),
        )
    except OSError as error:
        return 127, str(error)
    if log is not None:
        with open(log, "w", encoding="utf-8") as text:
            text.write(finished.stdout)
    return finished.returncode, finished.stdout


def last_line(output):
    """Return the last line that says something, short enough for a table."""
    lines = [" ".join(line.strip(" =").split()) for line in output.splitlines()]
    return ([line for line in lines if line] or ["no output"])[-1][:160]


def try_interpreter(version, program, folder):
    """Set up an environment for one interpreter and run the tests in it; return the table's row."""
    place = os.path.join(folder, version)
    log = os.path.join(folder, version + ".log")
    row = {"Python": run([program, "-c", "import platform; print(platform.python_version())"])[1].strip()}
    started = time.time()
    code, output = run(["make", "--no-print-directory", "setup", "VENV=" + place, "PYTHON=" + program], log)
    if code == 0:
        python = os.path.join(place, "bin", "python")
        versions = json.loads(run([python, "-c", LIST_PACKAGES])[1])
        row["fairseq"] = ", ".join(name + " " + versions[name] for name in FAIRSEQS if name in versions)
        row.update({name: versions.get(name, "-") for name in PACKAGES})
        started = time.time()  # the set-up's time is the network's
        code, output = run([python, "-m", "pytest", "-q", "-p", "no:cacheprovider"] + list(TESTS), log)
        row["passed"] = code == 0
        row["result"] = re.sub(r" in [\d.]+s.*", "", last_line(output))
        if code != 0:
            reasons = "\n".join(line[1:] for line in output.splitlines() if line.startswith("E  "))
            row["result"] += ": " + last_line(reasons)
    else:
        row["result"], row["passed"] = "set-up failed: " + last_line(output), False
    row["seconds"] = round(time.time() - started)
    row["date"] = datetime.date.today().isoformat()
    return row


def render(rows):
    """Render the rows as a Markdown table."""
    tests = ", ".join("`{}`".format(test) for test in TESTS)
    note = "Written by `make matrix`. Tests: {}; seconds are theirs, without the set-up.".format(tests)
    lines = [note, "", "| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    for row in rows:
        row = dict(
            row, **{"hydra / omegaconf": "{} / {}".format(row.get("hydra-core", "-"), row.get("omegaconf", "-"))}
        )
        cells = [str(row.get(column, "-")).replace("|", "\\|") for column in COLUMNS]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def write(path, text):
    """Write beside the place and rename."""
    part = "{}.{}.part".format(path, os.getpid())
    with open(part, "w", encoding="utf-8") as out:
        out.write(text)
    os.replace(part, path)


def main(argv=None):
    """Run the command; the exit code is the number of interpreters that failed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=VERSIONS, help="these versions; other rows of the table stay")
    parser.add_argument("--environments", default=os.path.join(ROOT, ".venv-matrix"), help="folder of environments")
    parser.add_argument("--table", default=os.path.join(ROOT, "docs", "matrix.json"), help="file to write")
    options = parser.parse_args(argv)
    os.makedirs(options.environments, exist_ok=True)
    interpreters = find_interpreters()
    rows = {}
    if options.only and os.path.exists(options.table):
        with open(options.table, encoding="utf-8") as text:
            rows = json.load(text)
    for version in options.only or VERSIONS:
        if version not in interpreters:
            print("Python {}: not found here".format(version), flush=True)
            continue
        print("Python {}: ...".format(version), flush=True)
        rows[version] = try_interpreter(version, interpreters[version], options.environments)
        print("Python {}: {}".format(version, rows[version]["result"]), flush=True)
        rows = {one: rows[one] for one in VERSIONS if one in rows}
        write(options.table, json.dumps(rows, indent=1) + "\n")
    print(render(rows.values()), end="")
    return sum(not row["passed"] for row in rows.values())


if __name__ == "__main__":
    sys.exit(main())
