"""How Sphinx builds the site: `make docs`."""

import logging
from typing import Any

from sphinx.application import Sphinx

import scalekd

logging.getLogger("scalekd").setLevel(logging.WARNING)

project = "scalekd"
author = "The ScaleKD developers"
copyright = "The ScaleKD developers, Apache-2.0"
version = release = scalekd.__version__

extensions = [
    "myst_nb",  # Markdown, and pages whose code is run while the site is built
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"scalekd {release}"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_copy_source = False

# Indented blocks are commands and listings; code in Python is fenced and says so.
highlight_language = "text"

myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_output_stderr = "remove"  # progress bars of other packages

# Docstrings are written like Markdown: one backtick is code.
default_role = "code"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88

# Every reference must be resolved, but these and those to other projects, which need a network.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(torch|collections|pathlib|typing)\..*"),
    # A baseline's settings are documented; the loss that they build is called as ScaleKDLoss is.
    ("py:class", r"scalekd\.baselines\.\w+\.\w+Loss"),
]


def hide_factories(
    app: Sphinx, what: str, name: str, obj: object, options: Any, signature: str, returns: str
) -> tuple[str, str] | None:
    """Write defaults that a dataclass makes for each object as `...`, which Sphinx can parse."""
    return (signature.replace("<factory>", "..."), returns) if signature else None


def escape_patterns(
    app: Sphinx, what: str, name: str, obj: object, options: Any, lines: list[str]
) -> None:
    """Escape stars in the docstrings of settings, which are also the help of the command line."""
    if name.startswith("scalekd.recipe."):
        lines[:] = [line.replace("*", r"\*") for line in lines]


def setup(app: Sphinx) -> None:
    """Connect the functions above."""
    app.connect("autodoc-process-signature", hide_factories)
    app.connect("autodoc-process-docstring", escape_patterns)
