"""One module reads the user's files and one writes results: no other opens a file by hand."""

import ast

import pytest
from test_packaging import PACKAGE

OWNERS = ("user_files.py", "whole_files.py")
NAMES = {"open"}
ANYWHERE = {"read_text", "write_text", "read_bytes", "write_bytes", "savez", "savez_compressed", "loadtxt", "savetxt"}
OF_MODULE = {
    "os": {"open", "fdopen", "replace", "rename", "remove", "unlink"},
    "io": {"open"},
    "gzip": {"open", "GzipFile"},
    "codecs": {"open"},
    "shutil": {"copy", "copy2", "copyfile", "copyfileobj", "move"},
    "tempfile": {"NamedTemporaryFile", "TemporaryFile", "mkstemp"},
    "json": {"load", "dump"},
}
WITH_A_PATH = {"load": "torch numpy np", "save": "torch numpy np", "savefig": "figure plt"}  # streams, parts are right
# none of these is a user's file
EXCEPTIONS = {
    "errors.py": {"os.open"},  # the null device
    "execution/native/library.py": {"open", ".read_text"},  # the processor's description, own sources
    "execution/native/cache.py": {"os.open", "os.replace", ".read_bytes"},  # what is compiled
}


def find_calls(tree):
    """Yields (line, name) of every call that opens, moves or writes a file by its path."""
    streams = {arg.arg for node in ast.walk(tree) if isinstance(node, ast.Lambda) for arg in node.args.args}
    for node in ast.walk(tree):
        if isinstance(node, ast.withitem) and isinstance(node.optional_vars, ast.Name):
            streams.add(node.optional_vars.id)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        call = node.func
        given = [one.id for one in node.args if isinstance(one, ast.Name)]
        if isinstance(call, ast.Name) and call.id in NAMES:
            yield node.lineno, call.id
        elif isinstance(call, ast.Attribute):
            home = call.value.id if isinstance(call.value, ast.Name) else ""
            if call.attr in OF_MODULE.get(home, ()):
                yield node.lineno, "{}.{}".format(home, call.attr)
            elif call.attr in ANYWHERE | {"open"} and not streams & set(given):
                yield node.lineno, "." + call.attr
            elif home in WITH_A_PATH.get(call.attr, "").split() and not (streams | {"part", "path"}) & set(given):
                yield node.lineno, "{}.{}".format(home, call.attr)


def faults():
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if name in OWNERS:
            continue
        for line, call in find_calls(ast.parse(path.read_text(encoding="utf-8"))):
            if call not in EXCEPTIONS.get(name, ()):
                yield "{}:{}: {}".format(name, line, call)


def test_no_other_module_opens_a_file():
    assert list(faults()) == []


@pytest.mark.parametrize(
    "line",
    [
        "open(path)",
        "with open(path, 'w') as text: text.write('')",
        "Path(path).read_text()",
        "Path(path).open()",
        "here.write_bytes(content)",
        "gzip.open(path)",
        "os.replace(part, path)",
        "json.load(text)",
        "np.load(where)",
        "torch.save(state, where)",
    ],
)
def test_it_sees_what_it_looks_for(line):
    assert list(find_calls(ast.parse(line)))
