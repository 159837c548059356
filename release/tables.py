"""Tables that scripts write into the documentation, between <!-- NAME --> and <!-- end -->.

And the commit and day that say what they were made of.
"""

from __future__ import annotations

import datetime
import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def commit() -> str:
    """The checkout's; "-dirty" where the code is not as committed (other results may be new)."""
    git = ["git", "-C", str(ROOT)]
    described = subprocess.run([*git, "describe", "--always"], capture_output=True, text=True)
    if described.returncode:
        return "unknown"
    code = ("csrc", "ssim_fused", "examples", "setup.py", "benchmarks/*.py")
    is_dirty = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", *code]).returncode
    return described.stdout.strip() + ("-dirty" if is_dirty else "")


def stamp() -> str:
    """The commit and the day, for what is made now."""
    return f"{commit()} of {datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d}"


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


def write(path: Path, name: str, rows: Sequence[Sequence[str]], below: str = "") -> None:
    """Put a table in its place in a page, and a line below it."""
    table = markdown(rows) + (f"\n\n*{below}*" if below else "")
    text = path.read_text(encoding="utf-8")
    path.write_text(placed(text, name, lambda _: table), encoding="utf-8")
