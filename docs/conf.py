"""How the documentation is built: offline, with every example run and every warning an error."""

import sys
from pathlib import Path

import topogen

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "topogen"
author = "the topogen authors"
project_copyright = "2026, the topogen authors"
version = release = topogen.__version__

extensions = [
    "myst_nb",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "mathml",
    "shell",
    "topology",
]
exclude_patterns = ["_build", "families/_generated"]

# Prose. Fenced blocks that print something are {doctest} or {testcode}, so that they are run.
myst_enable_extensions = ["deflist", "dollarmath", "fieldlist"]
myst_heading_anchors = 3

# Executed pages. The doctest builder has nothing to gain from executing them a second time.
nb_execution_mode = "off" if "doctest" in sys.argv else "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 120
nb_merge_streams = True
nb_ipywidgets_js = {}

# Reference. The types are in the docstrings, in the reader's words; annotations would say them twice.
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_class_signature = "mixed"
numpydoc_show_class_members = False
python_use_unqualified_type_names = True
add_module_names = False

nitpicky = True

doctest_global_setup = """
import numpy as np
import scipy.sparse as sp
import topogen as tg
"""

html_theme = "furo"
html_title = f"topogen {version}"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["topogen.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}


def setup(app):
    app.connect("autodoc-skip-member", skip_unwritten)


def skip_unwritten(app, what, name, member, skip, options):
    """Leave out what Python itself says of a named tuple's fields; their class says it better."""
    return True if str(getattr(member, "__doc__", "")).startswith("Alias for field number") else None
