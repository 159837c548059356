"""Files that are whole, whenever the program is killed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """The file is either the old one or the new one, killed or on a full disk."""
    scratch = path.with_name(path.name + ".tmp")
    try:
        write(scratch)
        with scratch.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from None


def save_json(path: Path, content: dict) -> None:
    """Infinity and NaN, which JSON does not have, are null."""
    content = json.loads(json.dumps(content), parse_constant=lambda name: None)
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda scratch: scratch.write_text(text))
