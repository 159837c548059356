"""A Griffe extension: reStructuredText of our docstrings as Markdown, for mkdocstrings.

Docstrings use the roles that Python tools know, :func:`name` and :math:`formula`, the directive
``.. math::``, and double backticks.
"""

from __future__ import annotations

import re
import textwrap
from typing import Any

from griffe import Extension, Object

_DISPLAY = re.compile(r"^( *)\.\. math::\n((?:\1 +\S.*\n?|\n(?=\1 +\S))+)", re.MULTILINE)
_INLINE = re.compile(r":math:`([^`]+)`")
_ROLE = re.compile(r":(?:func|class):`([^`]+)`")
_ARGUMENTS = re.compile(r"^Args:\n(?: +.*\n?|\n(?= ))+", re.MULTILINE)
# an entry for several arguments, and the lines that go on with it
_SHARED = re.compile(r"^ {4}((?:\w+,\s+)+\w+):( .*(?:\n {8}.*)*)", re.MULTILINE)
_OURS = ("functional", "modules")


def _formula(found: re.Match[str]) -> str:
    indent, body = found[1], textwrap.dedent(found[2]).strip()
    lines = ["", "$$", *body.splitlines(), "$$", ""]
    return "\n".join(indent + line if line else "" for line in lines) + "\n"


def _one_each(found: re.Match[str]) -> str:
    return "\n".join(f"    {name.strip()}:{found[2]}" for name in found[1].split(","))


def _path(name: str, module: str) -> str:
    """Where mkdocstrings has the object: in the module that defines it."""
    return name if "." in name else f"{module}.{name}"


def to_markdown(text: str, module: str) -> str:
    """A docstring of a module's object, as Markdown."""
    text = _DISPLAY.sub(_formula, text)
    text = text.replace("Raises:\n    As ", "Errors:\n    As ")  # no list of exceptions
    text = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)  # as Griffe has it
    text = re.sub(r"::$", ":", text, flags=re.MULTILINE)  # a literal block follows
    text = _ARGUMENTS.sub(lambda found: _SHARED.sub(_one_each, found[0]), text)
    text = _INLINE.sub(lambda found: f"${found[1]}$", text)

    def link(found: re.Match[str]) -> str:
        path = _path(found[1], module)
        label = found[1].rpartition(".")[2] if path.startswith("ssim_fused") else found[1]
        return f"[`{label}`][{path}]" if path.startswith("ssim_fused") else f"`{label}`"

    text = _ROLE.sub(link, text)
    return text.replace("``", "`")


class Roles(Extension):
    """Rewrites every docstring as it is read."""

    def on_instance(self, *, obj: Object, **_: Any) -> None:
        """A module, class, function or attribute has been read."""
        if obj.docstring is not None:
            module = "ssim_fused" if obj.module.name in _OURS else obj.module.path
            obj.docstring.value = to_markdown(obj.docstring.value, module)
