"""How sphinx builds the documentation: ``make docs``."""

import os
import re

import sksoftrank

# Threads that wait for each other take longer than one, in networks this small.
os.environ.setdefault("OMP_NUM_THREADS", "1")

project = "sksoftrank"
author = "the sksoftrank developers"
version = release = sksoftrank.__version__
html_title = f"{project} {version}"

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "numpydoc",
    "myst_parser",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build"]
templates_path = ["_templates"]
default_role = "literal"

html_theme = "pydata_sphinx_theme"
html_theme_options = {
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
    "show_prev_next": False,
}
html_show_sourcelink = False

myst_heading_anchors = 3

# A page for each public name: those of the package itself, then by module.
autosummary_context = {"top_names": sksoftrank.__all__}
autosummary_ignore_module_all = False
autodoc_typehints = "none"
numpydoc_show_class_members = False

# Names of other libraries: a build needs no network to look them up.
nitpick_ignore_regex = [
    (r"py:.*", r"(joblib|matplotlib|numpy|optuna|scipy|sklearn|skorch|torch)\..*"),
]

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": "/plot_",
    "ignore_pattern": "data_parallel",
    "abort_on_example_error": True,
    "backreferences_dir": "generated/backreferences",
    "doc_module": "sksoftrank",
    "download_all_examples": False,
    "min_reported_time": 10_000,
    "write_computation_times": False,
    "show_signature": False,
}


def skip_requests(app, what, name, obj, skip, options):
    """Leave out what scikit-learn gives each estimator to route metadata."""
    is_request = name.startswith("set_") and name.endswith("_request")
    return True if is_request or name == "get_metadata_routing" else None


def mend_docstring(app, what, name, obj, options, lines):
    """Let docutils read shapes, and docstrings inherited from other libraries."""
    owner = getattr(obj, "fget", obj)  # A property has no module of its own.
    is_own = str(getattr(owner, "__module__", "")).startswith("sksoftrank")
    for i, line in enumerate(lines):
        # A name that ends in an underscore would be a link.
        line = (
            re.sub(r"(?<=\w)_(?=[,)])", r"\_", line) if "of shape (" in line else line
        )
        if not is_own:
            line = re.sub(r":\w+:`([^`<]+?)(\s*<[^>]+>)?`", r"``\1``", line)
        lines[i] = line


def setup(app):
    """Connect the hooks."""
    app.connect("autodoc-skip-member", skip_requests)
    app.connect("autodoc-process-docstring", mend_docstring, priority=400)
