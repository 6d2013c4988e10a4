"""Settings of the documentation site: `make docs`.

The source folder is the checkout itself, so that links between docs/, analysis/ and README.md are the same on the site
as on GitHub.
"""

import re
import subprocess
import sys

from docutils.nodes import Node
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import ghosttrace

project = "GhostTrace"
author = "The GhostTrace authors"
copyright = f"2026, {author}"
release = version = ghosttrace.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
include_patterns = ["docs/*.md", "analysis/*.ipynb", "analysis/README.md", "examples/ci-gate/README.md"]
include_patterns += ["README.md", "RESULTS.md", "CONTRIBUTING.md", "CHANGELOG.md"]
exclude_patterns = [".*", "build", "docs/_build", "ghosttrace", "runs", "tests"]
nitpicky = True
nitpick_ignore_regex = [
    ("py:class", r"ghosttrace\.(stats\.Estimate|ablation\.plan\.\w+)"),  # fields that plans pass on
    ("py:obj", ".*"),  # names in backticks, most of which are no names of the reference
    ("py:.*", r"(?!ghosttrace\.).*"),  # types of other packages, whose sites are not read
]

nb_execution_mode = "off"
nb_merge_streams = True
myst_heading_anchors = 4

napoleon_attr_annotations = False  # the signature of the class has them
default_role = "py:obj"  # in docstrings: a link where the reference has the name, else code
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88

html_theme = "furo"
html_title = f"GhostTrace {release}"
html_copy_source = False
html_static_path = ["site/site.css"]
html_css_files = ["site.css"]
html_extra_path = ["site/index.html"]  # leads from the root to docs/index.html
smartquotes = False  # options begin with two hyphens


class CommandLine(SphinxDirective):
    """The directive `command-line`: the help of every command, as `typer MODULE utils docs` writes it."""

    def run(self) -> list[Node]:
        """Return the sections of all commands."""
        self.env.note_reread()  # the commands may have changed since the last build
        command = [sys.executable, "-m", "typer", "ghosttrace.cli.main", "utils", "docs", "--name", "ghosttrace"]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        text = re.sub(r"\*\*Commands\*\*:.*?(?=^#)", "", text, flags=re.DOTALL | re.MULTILINE)  # cut off in the middle
        return self.parse_text_to_nodes(re.sub("^#", "##", text, flags=re.MULTILINE), allow_section_headings=True)


def setup(app: Sphinx) -> None:
    """Add the directive to the build."""
    app.add_directive("command-line", CommandLine)
