"""Tables that scripts write into the documentation, between <!-- NAME --> and <!-- end -->."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table; the first row is its head."""
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])


def placed(text: str, name: str, make: Callable[[str], str]) -> str:
    """A page's text with the table that is made, from the one that is there, in its place."""
    place = re.compile(rf"(<!-- {name} -->\n)(.*?)(<!-- end -->)", re.DOTALL)
    changed, count = place.subn(lambda found: f"{found[1]}{make(found[2])}\n{found[3]}", text)
    if count != 1:
        raise ValueError(f"{'several places' if count else 'no place'} for the table {name!r}")
    return changed


def write(path: Path, name: str, rows: Sequence[Sequence[str]]) -> None:
    """Put a table in its place in a page."""
    text = path.read_text(encoding="utf-8")
    path.write_text(placed(text, name, lambda _: markdown(rows)), encoding="utf-8")
