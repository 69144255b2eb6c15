"""No module imports itself through others, and no C file includes itself through others.

An import inside a function counts, because it only hides a circle. An import for type checkers does
not.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Container, Iterator
from pathlib import Path

import pytest
import support

import fastns

Graph = dict[str, set[str]]
CSRC = support.TESTS.parent / "csrc"
CHECKOUT = support.TESTS.parent / "src" / "fastns"
PACKAGE = CHECKOUT if CHECKOUT.is_dir() else Path(fastns.__file__).parent


# ---- Python ----


def modules() -> dict[str, Path]:
    """The modules: name -> file. An installed package lacks the source of the binding."""
    found = {}
    for file in (*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.pyx")):
        parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = file
    return found


def imports(file: Path, known: Container[str]) -> Iterator[str]:
    """The modules that a file imports. `from package import module` counts as the module, not as
    the package."""
    text = file.read_text()
    found: list[tuple[str, list[str]]] = []
    if file.suffix == ".pyx":
        parts = re.findall(r'^include "(.+)"', text, re.M)
        text += "".join((file.parent / part).read_text() for part in parts)
        lines = re.findall(r"^\s*from ([\w.]+) import ([^#\n]+)", text, re.M)
        found += [(package, re.findall(r"\w+", names)) for package, names in lines]
    pending: list[ast.AST] = [ast.parse(text)] if file.suffix == ".py" else []
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            pending += node.orelse
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            found.append((str(node.module), [alias.name for alias in node.names]))
        else:
            pending += ast.iter_child_nodes(node)
    for package, names in found:
        inside = {f"{package}.{name}" for name in names}
        yield from (name if name in known else package for name in inside)


def python_graph() -> Graph:
    """Each module -> the modules that it imports. Excludes `fastns`, which is always imported
    first."""
    known = modules()
    del known["fastns"]
    return {name: {*imports(file, known)} & {*known} - {name} for name, file in known.items()}


# ---- C ----


def c_files() -> Graph:
    """Each file of csrc/ -> the files of csrc/ that it includes."""
    names = {str(file.relative_to(CSRC)): file for file in CSRC.rglob("*.[ch]")}
    graph: Graph = {}
    for name, file in names.items():
        found = re.findall(r'^#include "([^"]+)"', file.read_text(), re.M)
        beside = {(file.parent / other).resolve() for other in found}
        paths = {*beside, *((CSRC / other).resolve() for other in found)}
        graph[name] = {other for other, path in names.items() if path.resolve() in paths}
    return graph


def c_units() -> Graph:
    """Each C file with its own header -> the other such units that it includes."""
    files = c_files()
    units = {name[:-2] for name in files if name.endswith(".c")}
    graph: Graph = {unit: set() for unit in units}
    for name, included in files.items():
        if name[:-2] in units:
            graph[name[:-2]] |= {other[:-2] for other in included} & units - {name[:-2]}
    return graph


# ---- circles ----


def circle(graph: Graph) -> list[str]:
    """Return one circle, which ends with its first name, or an empty list."""
    done: set[str] = set()

    def look(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return []
        for other in sorted(graph[name]):
            found = look(other, [*way, name])
            if found:
                return found
        done.add(name)
        return []

    return next((found for name in sorted(graph) if (found := look(name, []))), [])


@pytest.mark.parametrize("graph", [python_graph, c_files, c_units])
def test_no_circle(graph: object) -> None:
    assert callable(graph)
    assert circle(graph()) == []


def test_a_circle_is_found() -> None:
    """The control of the test above."""
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
