"""``make lock``: requirements-dev.txt, what developers install, to the version and the file.

Every extra of pyproject.toml and what that needs in turn, with the hashes of PyPI's files, resolved
by uv for Python 3.11 and newer. Torch is left out: the Makefile's TORCH says which one.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCKED = ROOT / "requirements-dev.txt"


def main() -> int:
    """The exit status of uv."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as without_torch:
        # a marker that never holds
        without_torch.write("torch; python_version < '3'\ntorchvision; python_version < '3'\n")
        without_torch.flush()
        asked = ["--all-extras", "--generate-hashes", "--universal", "--python-version", "3.11"]
        said = ["--quiet", "--no-annotate", "--custom-compile-command", "make lock"]
        command = [sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml", *asked, *said]
        command += ["--override", without_torch.name, "--output-file", LOCKED.name]
        return subprocess.run([*command, *sys.argv[1:]], cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
