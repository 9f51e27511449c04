"""Sphinx makes the site of the pages as they are: `sphinx-build -W -c docs . build/site`.

The pages are plain Markdown, which GitHub shows too. What is not in them is added here: the order of
docs/index.md becomes the menu, and the pages of docs/reference are filled from the code.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from sphinx.application import Sphinx

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

project = html_title = "Kintsugi"
copyright = "the authors, Apache-2.0"
root_doc = "docs/index"
include_patterns = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/**.md", "priors/*/README.md"]
exclude_patterns = [".*", "build", "dist", "runs", "kintsugi", "tests", "jobs", "pipeline"]
extensions = ["myst_parser"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 4  # as GitHub names them
smartquotes = False  # code is copied
html_theme = "furo"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_copy_source = False


def menu(index: str) -> Iterator[str]:
    """A hidden table of contents of each section of the index: the pages that its list links to."""
    for caption, body in re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", index, re.MULTILINE | re.DOTALL):
        pages = re.findall(r"^- \[(.+?)\]\((\S+?)\.md\)", body, re.MULTILINE)
        lines = "\n".join(f"{title} <{page}>" for title, page in pages)
        yield f"```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{lines}\n```\n"


def complete(app: Sphinx, page: str, source: list[str]) -> None:
    """Give the index its menu, and a page of the reference its content."""
    if page == root_doc:
        source[0] += "\n" + "\n".join(menu(source[0]))
    elif page.startswith("docs/reference/"):
        import reference

        source[0] += "\n" + reference.content(page.rpartition("/")[2])


def lead_home(app: Sphinx, failure: Exception | None) -> None:
    """The site's address leads to the index, which is not at its root, as the pages are not."""
    Path(app.outdir, "index.html").write_text(
        '<!doctype html><meta http-equiv="refresh" content="0; url=docs/index.html"><title>Kintsugi</title>'
    )


def setup(app: Sphinx) -> None:
    """Sphinx calls this."""
    app.connect("source-read", complete)
    app.connect("build-finished", lead_home)
