"""How the documentation is built: ``make docs``.

Sphinx and not mkdocs-material: it reads our docstrings as they are, checks every reference, and its search works from
disk without a network; 15 MB, all of it Python.
"""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from docs import generated

project = "fxdistill"
extensions = ["myst_parser"]
myst_enable_extensions = ["dollarmath", "deflist", "colon_fence"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "fxdistill"
html_copy_source = html_show_copyright = html_show_sphinx = False
html_static_path = ["_static", "../fxdistill/report/page/drawing.css"]
html_css_files = ["drawing.css", "fxdistill.css"]
exclude_patterns = ["_build"]
nitpicky = True
smartquotes = False  # an option has two hyphens


def setup(app: Any) -> None:
    """Formulas as MathML, which a browser draws by itself; pages that are generated."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    app.connect("source-read", generated.fill)


html_math_renderer = "mathml"


def _mathml(node: Any, display: str) -> str:
    from latex2mathml.converter import convert

    return convert(node.astext(), display=display)


def _inline(writer: Any, node: Any) -> None:
    from docutils.nodes import SkipNode

    writer.body.append(_mathml(node, "inline"))
    raise SkipNode


def _block(writer: Any, node: Any) -> None:
    from docutils.nodes import SkipNode

    writer.body.append(f'<div class="formula">{_mathml(node, "block")}</div>')
    raise SkipNode
