"""What autodoc does not do by itself: signatures of compiled classes, and sections in one line.

Cython's classes have no signature to ask for; _core.pyi has them. And a section of a docstring may
begin in the line of its name ("Raises: SpecError, ..."), which napoleon takes for a paragraph.
"""

import ast
import re

from fastns import _core

STUBS = _core.__file__.rpartition("/")[0] + "/_core.pyi"
SECTION = re.compile(r"(Args|Attributes|Raises|Returns): *(\S.*)")
PRIVATE = re.compile(r"\b_core\.|, \*\*unknown")
"""What a reader does not import; and how Spec catches a field that there is not."""


def compiled() -> dict[str, tuple[str, str]]:
    """For each method of _core's classes, by its name there: arguments, and what it returns."""
    with open(STUBS) as file:
        tree = ast.parse(file.read())
    found = {}
    for node in tree.body:
        methods = node.body if isinstance(node, ast.ClassDef) else ()
        for method in methods:
            if isinstance(method, ast.FunctionDef) and not method.decorator_list:
                arguments = re.sub(r"^self(, /)?(, )?", "", ast.unparse(method.args))
                returns = ast.unparse(method.returns) if method.returns else ""
                found[f"{node.name}.{method.name}"] = (f"({arguments})", returns)
    return found


def sign(app, what, name, obj, options, signature, returns):
    """autodoc-process-signature: what it shows for `name`."""
    stub = app.fastns_stubs.get(name.removeprefix("fastns."))
    if stub is not None:
        signature, returns = stub
    if signature is None:
        return None
    return PRIVATE.sub("", signature), PRIVATE.sub("", returns) if returns else returns


def open_sections(app, what, name, obj, options, lines):
    """autodoc-process-docstring, before napoleon: a section in one line becomes a paragraph, and
    the arguments below one a section of their own."""
    found = []
    rest = list(lines)
    while rest:
        line = rest.pop(0)
        match = SECTION.fullmatch(line)
        if match is None:
            found.append(line)
            continue
        more = []
        while rest and rest[0] and not SECTION.fullmatch(rest[0]):
            more.append(rest.pop(0))
        if match[1] == "Args" and match[2].endswith(" and"):
            found += [f"**Args:** {match[2]}", "", "Args:", *more, ""]
        else:
            text = " ".join([match[2], *map(str.strip, more)])
            found += ["", f"**{match[1]}:** {text}", ""]
    lines[:] = found


def setup(app):
    app.fastns_stubs = compiled()
    app.connect("autodoc-process-signature", sign)
    app.connect("autodoc-process-docstring", open_sections, priority=400)
    return {"parallel_read_safe": True}
