"""No module imports itself by way of others, and no C file includes itself so.

An import inside a function counts too, because it only hides a circle. One for type checkers does
not count. KNOWN lists the circles that are left. It may shrink; a line that is no longer needed
fails.
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
KNOWN = {
    ("fastns._core", "fastns._policy.owners"),
}


# ---- Python ----


def modules() -> dict[str, Path]:
    """Name -> file. An installed package lacks the source of the binding."""
    found = {}
    for file in (*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.pyx")):
        parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = file
    return found


def imports(file: Path, known: Container[str]) -> Iterator[str]:
    """The names of the modules that it imports. For a module of a package this is the module, not
    the package."""
    text = file.read_text()
    found: list[tuple[str, list[str]]] = []
    if file.suffix == ".pyx":
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
    """Without `fastns` itself, which is imported before any module of it."""
    known = modules()
    del known["fastns"]
    return {name: {*imports(file, known)} & {*known} - {name} for name, file in known.items()}


# ---- C ----


def c_files() -> Graph:
    """Each file of csrc/, and the files of csrc/ that it includes."""
    names = {str(file.relative_to(CSRC)): file for file in CSRC.rglob("*.[ch]")}
    graph: Graph = {}
    for name, file in names.items():
        found = re.findall(r'^#include "([^"]+)"', file.read_text(), re.M)
        beside = {(file.parent / other).resolve() for other in found}
        paths = {*beside, *((CSRC / other).resolve() for other in found)}
        graph[name] = {other for other, path in names.items() if path.resolve() in paths}
    return graph


def c_units() -> Graph:
    """A unit is a C file with the header of the same name. A header alone cannot be part of a
    circle."""
    files = c_files()
    units = {name[:-2] for name in files if name.endswith(".c")}
    graph: Graph = {unit: set() for unit in units}
    for name, included in files.items():
        if name[:-2] in units:
            graph[name[:-2]] |= {other[:-2] for other in included} & units - {name[:-2]}
    return graph


# ---- circles ----


def circle(graph: Graph) -> list[str]:
    """One circle, ending with its first name again; empty if there is none."""
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


def without(graph: Graph, edges: set[tuple[str, str]]) -> Graph:
    return {
        name: {to for to in others if (name, to) not in edges} for name, others in graph.items()
    }


@pytest.mark.parametrize("graph", [python_graph, c_files, c_units])
def test_no_circle_but_the_known(graph: object) -> None:
    assert callable(graph)
    assert circle(without(graph(), KNOWN)) == []


@pytest.mark.parametrize("edge", sorted(KNOWN), ids=" ".join)
def test_what_is_known_is_still_there(edge: tuple[str, str]) -> None:
    graph = python_graph() | c_units()
    if "fastns._core" not in graph:
        support.skip_missing("the source of the binding")
    assert edge[1] in graph.get(edge[0], set()), "it is gone: remove it from KNOWN"
    assert circle(without(graph, KNOWN - {edge})), "it closes no circle: remove it from KNOWN"


def test_a_circle_is_found() -> None:
    """The control."""
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
