"""Sphinx settings for one web site with the repository's pages and the API reference.

The source directory is the repository itself, so a link between two pages leads to the same place
on the site as on disk. README.md is the front page; contents.txt is the table of contents.
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

# If an object has no signature, the new autodoc of Sphinx 9 ignores one that an extension returns.
autodoc_use_legacy_class_based = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True}
autodoc_class_signature = "mixed"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True


def add_contents(app, docname, source):
    """Add the table of contents to the front page. README.md lacks it, as GitHub cannot show it."""
    if docname == root_doc:
        contents = HERE / "contents.txt"
        app.env.note_dependency(str(contents))
        source[0] += contents.read_text()


def setup(app):
    app.connect("source-read", add_contents)
