"""The site of the documentation; `scripts/docs` builds it. It loads nothing from elsewhere."""

import sys
from pathlib import Path

from fedaipc import __version__

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

project = "fedaipc"
author = "the authors of fedaipc"
version = release = __version__
language = "en"

extensions = ["myst_nb", "sphinx.ext.autodoc", "docstrings"]

# Pages: MyST Markdown, with the anchors that a checkout has.
myst_heading_anchors = 5
myst_enable_extensions = ["deflist", "html_image"]
suppress_warnings = [
    "ref.python",  # two results are called Plan
    "toc.empty_glob",
    "toc.not_included",  # pages that are reached by links alone
]

# Notebooks show the output that was committed with them.
nb_execution_mode = "off"
nb_ipywidgets_js: dict[str, str] = {}  # else it comes from a network

# Docstrings: `name` is code, as in Markdown.
default_role = "code"
smartquotes = False  # --set is no dash
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
add_module_names = False

html_theme = "furo"
html_title = f"fedaipc {version}"
html_show_sourcelink = False
html_copy_source = False
html_show_copyright = False
highlight_language = "text"  # a block that names none is a command or its output
pygments_style = "friendly"
pygments_dark_style = "monokai"
