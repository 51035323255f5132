"""Where the code can be changed, and how: cosmic-ray's mutations of the lines that compute.

Skipped, because no test of what is computed should see a change there:

* imports, annotations, type aliases, ``__all__``, docstrings;
* what an error or a warning says: everything inside ``raise``, logging calls, ``warnings.warn`` and ``__repr__``;
* help and other metadata of options; files named ``options.py`` hold tables of defaults, which docs/options.md repeats.

Left out of cosmic-ray's operators: replacements of arithmetic by bit operators and the reverse (a type error nearly
always), ``is`` beside an ordering, and the replacement of variables, which needs a list of names.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Set, Tuple

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

ROOT = Path(__file__).resolve().parents[1]
CHAPTERS = ("decision", "execution", "families", "cost", "learning", "plugin/criterions", "plugin/generation")
Place = Tuple[int, int]  # line from 1, column from 0
TYPES = {"Dict", "List", "Tuple", "Optional", "Union", "Callable", "Sequence", "Mapping", "Type", "Iterable"}
LOGS = {"debug", "info", "warning", "error", "exception", "warn", "log"}
KINDS = (
    ("Binary", ({"Add", "Sub", "Mul", "Div", "FloorDiv", "Mod", "Pow"}, {"BitOr", "BitAnd", "BitXor"})),
    ("Comparison", ({"Eq", "NotEq", "Lt", "LtE", "Gt", "GtE"}, {"Is", "IsNot"})),
)


class Mutant(NamedTuple):
    """One change of one place.

    Args:
        file: path from the root of the repository.
        function: qualified name around the place; "" = the module itself.
        line: of the place, from 1.
        lines: first and last line of the statement, or of the head of a loop, a condition or a definition.
        operator: cosmic-ray's name.
        occurrence: which of the operator's places in the file.
        rank: hexadecimal digits by which mutants are drawn; other code's changes do not touch them.
    """

    file: str
    function: str
    line: int
    lines: Tuple[int, int]
    operator: str
    occurrence: int
    rank: str

    @property
    def chapter(self) -> str:
        """The chapter of the package."""
        return next(one for one in CHAPTERS if self.file.startswith(f"sd_fairseq/{one}/"))

    @property
    def mutated(self) -> str:
        """The mutated source."""
        return _mutate(self.file, self.operator, self.occurrence)

    @property
    def change(self) -> Tuple[str, str]:
        """The changed lines before and after, joined, without indent."""
        lines = list(difflib.unified_diff(_read(self.file).splitlines(), self.mutated.splitlines(), n=0))[2:]
        before, after = ([line[1:].strip() for line in lines if line.startswith(sign)] for sign in "-+")
        return " ".join(before), " ".join(after)


def list_files() -> List[str]:
    """Lists the Python files of the chapters, as paths from the root."""
    found = [path for chapter in CHAPTERS for path in sorted((ROOT / "sd_fairseq" / chapter).rglob("*.py"))]
    return [path.relative_to(ROOT).as_posix() for path in found if path.name not in ("options.py", "__init__.py")]


def draw(count: int, seed: int, stored: Path) -> List[Mutant]:
    """Draws mutants: places first, then one change for each. The same seed draws the same as long as a place stays.

    Args:
        count: how many; fewer where there are no more places.
        seed: of the draw.
        stored: file that keeps what was drawn while no source changes.
    """
    state = repr((seed, count, [hashlib.sha1(_read(file).encode()).hexdigest() for file in list_files()]))
    if stored.exists():
        known = json.loads(stored.read_text())
        if known["state"] == state:
            return [Mutant(*one)._replace(lines=tuple(one[3])) for one in known["mutants"]]
    chosen: Dict[Tuple[str, Any], Mutant] = {}
    for file in list_files():
        for place, mutant in list_mutants(file, seed):
            if (file, place) not in chosen or mutant.rank < chosen[file, place].rank:
                chosen[file, place] = mutant
    drawn = sorted(chosen.values(), key=lambda mutant: mutant.rank[::-1])[:count]
    stored.write_text(json.dumps({"state": state, "mutants": drawn}))
    return drawn


def list_mutants(file: str, seed: int) -> Iterator[Tuple[Any, Mutant]]:
    """Yields every mutant of a file with its place."""
    source = _read(file)
    tree = ast.parse(source)
    texts = source.splitlines()
    skipped = sorted(_skipped(tree))
    nodes = list(ast_nodes(get_ast(source)))
    seen: Dict[Tuple[Any, ...], int] = {}
    for name in filter(_is_used, operator_names()):
        operator = get_operator(name)()
        places = [place for node in nodes for place in operator.mutation_positions(node)]
        for occurrence, place in enumerate(places):
            if any(start <= place[0] < end for start, end in skipped):
                continue
            line = place[0][0]
            function, lines = _around(tree, line)
            key = (seed, file, function, texts[line - 1].strip(), name)
            seen[key] = seen.get(key, -1) + 1  # equal lines of one function are told apart by their order
            rank = hashlib.sha1(repr((key, seen[key])).encode()).hexdigest()
            yield place, Mutant(file, function, line, lines, name, occurrence, rank)


@lru_cache(maxsize=None)
def _mutate(file: str, operator: str, occurrence: int) -> str:
    return str(mutate_code(_read(file), get_operator(operator)(), occurrence))


@lru_cache(maxsize=None)
def _read(file: str) -> str:
    return (ROOT / file).read_text(encoding="utf-8")


def _is_used(name: str) -> bool:
    if "Variable" in name:
        return False
    for kind, groups in KINDS:
        if f"Replace{kind}Operator" in name:
            pair = set(name.split("_")[1:])
            return any(pair <= group for group in groups)
    return True


def _span(node: Any) -> Tuple[Place, Place]:
    return (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)


def _skipped(tree: ast.Module) -> Set[Tuple[Place, Place]]:
    found: List[Any] = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom, ast.Raise)):
            found.append(node)
        elif isinstance(node, ast.arg):
            found.append(node.annotation)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            found += [node.returns, node if node.name == "__repr__" else None]
        elif isinstance(node, ast.AnnAssign):
            found.append(node.annotation)
        elif isinstance(node, ast.Assign) and _is_alias(node):
            found.append(node)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LOGS:
            found.append(node if getattr(node.func.value, "id", "") in ("logger", "logging", "warnings") else None)
        elif isinstance(node, ast.keyword) and node.arg in ("metadata", "help"):
            found.append(node.value)
    return {_span(node) for node in found if node is not None}


def _is_alias(node: ast.Assign) -> bool:
    """Whether an assignment names a type or the public names."""
    names = {part.id for part in ast.walk(node.value) if isinstance(part, ast.Name)}
    public = any(isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets)
    return public or (isinstance(node.value, ast.Subscript) and getattr(node.value.value, "id", "") in TYPES & names)


def _around(tree: ast.Module, line: int) -> Tuple[str, Tuple[int, int]]:
    """The qualified name of the function around a line, and the lines of its statement."""
    names: List[str] = []
    body: List[Any] = list(tree.body)
    span = (line, line)
    while True:
        inner = [node for node in body if _first_line(node) <= line <= (node.end_lineno or node.lineno)]
        if not inner:
            return ".".join(names), span
        node = inner[0]
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)):
            names.append(node.name)
        body = [one for one in ast.iter_child_nodes(node) if isinstance(one, (ast.stmt, ast.ExceptHandler))]
        first = min([child.lineno for child in body], default=None)
        span = (_first_line(node), node.end_lineno or node.lineno)
        if first is not None and line < first:
            return ".".join(names), (span[0], max(line, first - 1))


def _first_line(node: Any) -> int:
    return min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", []))])
