"""The documentation as a site: `make docs`.

Sphinx with MyST reads the Markdown pages as they stand on a code host, and the docstrings by itself. The other
candidate was MkDocs with Material and mkdocstrings: at the time of writing MkDocs itself had had no release for over
two years (1.6.1, August 2024), and its theme's authors had turned to a successor that is at 0.1, while Sphinx and MyST
are released every few months.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # scripts/ is not installed; last, because fk_reward/ alone is not the whole package

from fk_reward.version import __version__  # noqa: E402
from scripts.write_reference import write_reference  # noqa: E402

project = "fk-reward"
author = copyright = "The fk-reward authors"  # noqa: A001 (Sphinx reads this name)
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "index"
exclude_patterns = ["geneval_shapes.html"]

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 4

default_role = "code"  # docstrings mark code with single backticks
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # signatures stand in the docstrings' words; with types they are unreadable
autodoc_default_options = {"members": True, "show-inheritance": False}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # a field that has a comment of its own would stand there twice
# Docstrings are written to be read in an editor; what reStructuredText would warn of in them is harmless.
suppress_warnings = ["docutils", "ref.python", "misc.highlighting_failure"]

html_theme = "furo"
html_title = f"fk-reward {release}"
html_show_sphinx = False
html_copy_source = False

_OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./(?:\.\./)?(?:README|CONTRIBUTING|CHANGELOG)\.md[^)]*\)")


def _without_links_to_the_root(app: Any, page: str, source: list[str]) -> None:  # noqa: ARG001 (Sphinx passes all)
    """README and its neighbours are pages of the code host, and not of the site."""
    source[0] = _OUTSIDE.sub(r"\1", source[0])


def setup(app: Any) -> None:
    """Write the reference before the pages are read."""
    write_reference(Path(app.srcdir) / "reference")
    app.connect("source-read", _without_links_to_the_root)
