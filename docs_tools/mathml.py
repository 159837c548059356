"""A Markdown extension: the formulas that arithmatex finds become MathML.

Browsers draw MathML themselves, so that a page needs no script, and none from another host.
"""

from __future__ import annotations

from xml.etree import ElementTree

from latex2mathml.converter import convert
from markdown import Extension, Markdown
from markdown.treeprocessors import Treeprocessor

MARKS = {r"\(": (r"\)", "inline"), r"\[": (r"\]", "block")}


class _Formulas(Treeprocessor):
    def run(self, root: ElementTree.Element) -> None:
        for element in root.iter():
            if element.get("class") != "arithmatex":
                continue
            text = (element.text or "").strip()
            end, display = MARKS[text[:2]]
            assert text.endswith(end)
            # arithmatex escapes what HTML would read, in display formulas alone
            latex = text[2:-2].strip()
            for escaped, plain in (("&lt;", "<"), ("&gt;", ">"), ("&amp;", "&")):
                latex = latex.replace(escaped, plain)
            element.text = self.md.htmlStash.store(convert(latex, display=display))


class Formulas(Extension):
    """Formulas as MathML."""

    def extendMarkdown(self, md: Markdown) -> None:
        """Register what turns formulas into MathML."""
        # after inline patterns (20), which find formulas, before the tree is written out
        md.treeprocessors.register(_Formulas(md), "mathml", 15)


def makeExtension(**settings: object) -> Formulas:
    """What Python-Markdown calls."""
    return Formulas(**settings)
