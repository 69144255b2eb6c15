"""Sphinx: the pages of the repository, where they are, and those of the API, as one site.

The source directory is the repository itself, so that a link between two pages leads to the same
place here as on the disk. README.md is the front page; contents.txt is the table of contents.
"""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

project = "fastns"
copyright = "the fastns authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "ours"]
root_doc = "README"
include_patterns = ["*.md", "benchmarks/results/*.md", "docs/**", "examples/*.md"]
exclude_patterns = [".*", "build", "csrc", "dist", "docs/site/contents.txt", "src", "tests"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}

html_theme = "furo"
html_title = "fastns"
html_extra_path = ["extra"]
html_show_sphinx = False

myst_heading_anchors = 4
myst_links_external_new_tab = False

# The newer way, of Sphinx 9, takes no signature from an extension where an object has none.
autodoc_use_legacy_class_based = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True}
autodoc_class_signature = "mixed"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True


def add_contents(app, docname, source):
    """The front page holds the table of contents, which GitHub could not show."""
    if docname == root_doc:
        source[0] += (HERE / "contents.txt").read_text()


def setup(app):
    app.connect("source-read", add_contents)
