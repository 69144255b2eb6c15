"""A Sphinx extension that improves autodoc's output in two ways.

The classes of the Cython extension have no signatures, so these are taken from _core.pyi. And the
text of a docstring section may begin on the line of the section's name ("Raises: SpecError, ..."),
which napoleon does not recognise as a section.
"""

import ast
import re

from fastns import _core

STUBS = _core.__file__.rpartition("/")[0] + "/_core.pyi"
SECTION = re.compile(r"(Args|Attributes|Raises|Returns): *(\S.*)")
PRIVATE = re.compile(r"\b_core\.|, \*\*unknown")
"""Left out of signatures: a private module, and the parameter that catches unknown Spec fields."""


def compiled() -> dict[str, tuple[str, str]]:
    """Map each method of _core's classes to its arguments and its return type."""
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
    """For autodoc-process-signature: return the signature to show for `name`."""
    stub = app.fastns_stubs.get(name.removeprefix("fastns."))
    if stub is not None:
        signature, returns = stub
    if signature is None:
        return None
    return PRIVATE.sub("", signature), PRIVATE.sub("", returns) if returns else returns


def open_sections(app, what, name, obj, options, lines):
    """For autodoc-process-docstring, before napoleon: turn a section that begins on the line of its
    name into a paragraph, and arguments listed below it into a section of their own."""
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
