"""Sphinx: the pages of this folder as a site that refers to no other host."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

from kilolayer import __version__

project = "Kilolayer"
author = "the Kilolayer authors"
project_copyright = author
version = release = __version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "command_line", "costs", "docstrings"]
exclude_patterns = ["_build", "how-to/own/*"]
nitpicky = True
nitpick_ignore_regex = [
    ("py:(class|obj)", ".*")
]  # types of PyTorch and Python, whose inventories are not fetched
default_role = "code"

html_theme = "furo"
html_title = "Kilolayer"
templates_path = ["_templates"]
html_static_path = ["_static"]
html_css_files = ["kilolayer.css"]
html_show_sourcelink = False
html_copy_source = False
html_show_copyright = False
smartquotes = False  # they turn --out into a dash
html_show_sphinx = False
html_theme_options = {"footer_icons": []}
pygments_style = "friendly"
pygments_dark_style = "native"

myst_enable_extensions = ["colon_fence", "deflist", "attrs_inline", "substitution"]
myst_heading_anchors = 4
nb_execution_mode = "off"  # tests/test_course.py runs the pages; their outputs are committed
suppress_warnings = ["mystnb.unknown_mime_type"]

autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 100
autodoc_inherit_docstrings = False
autodoc_default_options = {"no-value": True}
