"""The site: ``scripts/docs.sh`` builds it with Sphinx, from the root of the repository, into ``site/html``."""

from __future__ import annotations

import sys
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

project = "sft_mask"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
include_patterns = ["docs/*.md", "CONTRIBUTING.md", "CHANGELOG.md", "recipes/notebooks/*.ipynb"]
exclude_patterns = [".*", "outputs", "site", "tests", "sft_mask", "scripts"]

html_theme = "furo"
html_title = "sft_mask"
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False
html_search_scorer = str(Path(__file__).with_name("search_scorer.js"))
html_extra_path = ["html"]  # index.html, which leads to docs/index.html

myst_heading_anchors = 3
nb_execution_mode = "off"  # notebooks are shown with the outputs that are committed; the tests run them
nb_output_stderr = "remove"

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 100
python_use_unqualified_type_names = True


def mark_pages(_: Sphinx, env: BuildEnvironment) -> None:
    """The changelog answers no question of the search; notebooks are linked from docs/notebooks.md."""
    env.metadata["CHANGELOG"]["nosearch"] = True
    for page in env.found_docs:
        if page.startswith("recipes/notebooks/"):
            env.metadata[page]["orphan"] = True


def setup(app: Sphinx) -> None:
    app.connect("env-updated", mark_pages)
