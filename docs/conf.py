"""The site: `make docs` builds it into docs/_build/html. Every warning is an error, and so is every cell that fails."""

from __future__ import annotations

import ast
import os
import re
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # this checkout, and not another one that is installed
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # for the command kdjax
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import latex2mathml.converter  # noqa: E402
from docutils import nodes  # noqa: E402

import kdjax  # noqa: E402

project, author = "kdjax", "the kdjax authors"
copyright = author
version = release = kdjax.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_build", "examples"]
html_theme = "furo"
html_title = "kdjax"
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#2f5d9b", "color-brand-content": "#2f5d9b"},
    "dark_css_variables": {"color-brand-primary": "#8fb5ea", "color-brand-content": "#8fb5ea"},
}
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
highlight_language = "none"
copybutton_exclude = ".linenos, .gp, .go"

nitpicky = True
# Roles are checked; the types in signatures are jaxtyping's and those of libraries whose inventories need a network.
nitpick_ignore_regex = [("py:(class|exc|data|obj|attr)", ".*")]

myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
html_math_renderer = "mathml"  # read by browsers as it is; MathJax would have to come over a network

nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 1800  # seconds a cell: for machines that do other things too
nb_merge_streams = True
nb_execution_in_temp = True

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 80
python_use_unqualified_type_names = True
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_attr_annotations = False  # the signature has them
# A type called like two attributes; cells that `-D nb_execution_mode=off` left without a language.
suppress_warnings = ["ref.python", "myst-nb.lexer"]

_LITERAL = re.compile(r"(``[^`]+``|`[^`]+`)")
_SECTION = re.compile(r"^(Args|Returns|Raises|Attributes|Yields):$", re.MULTILINE)


def as_restructured_text(text: str) -> str:
    """A docstring as reStructuredText: `code` is a literal, indented examples are code, nothing else is markup."""
    section = _SECTION.search(text)
    description, sections = (text[: section.start()], text[section.start() :]) if section else (text, "")
    blocks: list[str] = []
    for block in re.split(r"\n\s*\n(?=\S)|\n\s*\n(?=    )", description):
        if not block.startswith("    "):
            blocks.append(_escaped(block))
        elif blocks and blocks[-1].startswith(".. code-block"):
            blocks[-1] += "\n\n" + block
        else:
            blocks.append(f".. code-block:: {_language(block)}\n\n{block}")
    # "lower, upper: ..." describes two names; with a space between them napoleon takes the first for a type.
    sections = re.sub(
        r"^( +\w+(?:, \w+)+):", lambda names: names[1].replace(", ", ",") + ":", sections, flags=re.MULTILINE
    )
    return "\n\n".join([*blocks, _escaped(sections)])


def _language(block: str) -> str:
    try:
        ast.parse(textwrap.dedent(block))
    except SyntaxError:
        return "none"
    return "python"


def _escaped(text: str) -> str:
    parts = _LITERAL.split(text)
    return "".join(
        f"\\ ``{part.strip('`')}``\\ " if part.startswith("`") else _MARKUP.sub(r"\\\g<0>", part) for part in parts
    )


_MARKUP = re.compile(r"[\\*|]|(?<=\w)_(?!\w)")


def docstring(app, what, name, obj, options, lines) -> None:
    """Called by autodoc before napoleon reads the sections."""
    lines[:] = as_restructured_text("\n".join(lines)).split("\n")


def signature(app, what, name, obj, options, signature, return_annotation):
    """Arrays are called what they are imported as."""
    shorter = [text and text.replace("jaxlib._jax.Array", "Array") for text in (signature, return_annotation)]
    return tuple(shorter)


def skip(app, what, name, obj, skipped, options) -> bool | None:
    """The fields of a named tuple are described where it is."""
    return True if (getattr(obj, "__doc__", None) or "").startswith("Alias for field number") else None


def inline_math(translator, node) -> None:
    translator.body.append(latex2mathml.converter.convert(node.astext()))
    raise nodes.SkipNode


def block_math(translator, node) -> None:
    formula = latex2mathml.converter.convert(node.astext(), display="block")
    translator.body.append(f'<div class="formula">{formula}</div>')
    raise nodes.SkipNode


def setup(app) -> None:
    app.add_html_math_renderer("mathml", (inline_math, None), (block_math, None))
    app.connect("autodoc-process-docstring", docstring, priority=400)
    app.connect("autodoc-process-signature", signature)
    app.connect("autodoc-skip-member", skip)
