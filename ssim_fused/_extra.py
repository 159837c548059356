"""Optional dependencies: what to install where one is missing."""

from __future__ import annotations

from importlib.util import find_spec

# as pyproject.toml has them; the package itself cannot be named while it is not on PyPI
INSTALLED_BY = {
    "command": "click rich numpy pillow tifffile imagecodecs pyarrow",
    "video": "av matplotlib",
}


def require(extra: str, *modules: str) -> None:
    """An ImportError that says what to install, unless all modules of an extra are there."""
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise ImportError(f"this needs {', '.join(missing)}: pip install {INSTALLED_BY[extra]}")
