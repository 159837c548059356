"""``make wheel-matrix``: the one wheel in dist/, in fresh environments of many Pythons and torches.

Each environment is made, tested and removed again: it gets the wheel, torch and pytest, and runs
the core tests from a copy without the sources. The results go into release/matrix.csv and
docs/installing.md. ``python release/matrix.py 3.12 2.11.0`` runs one row.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import build_wheel
import tables

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "release/matrix.csv"
COLUMNS = ["python", "torch", "cuda", "cpu path", "kernels", "tests", "wheel", "seconds"]
# every minor of torch and every Python at least once; t: built without a GIL
ROWS = [
    ("3.10", "2.10.0"),
    ("3.12", "2.11.0"),
    ("3.13", "2.12.1"),
    ("3.13t", "2.12.0"),
    ("3.11", "2.13.0+cpu"),
    ("3.11", "2.14.1"),
    ("3.13", "2.15.0"),
]
TESTS = [
    "test_value_and_gradient.py",
    "test_gradients.py",
    "test_kernel_cache.py",
    "test_threads.py",
    "test_programs.py",
]
LOOK = """
import torch, ssim_fused, sys, sysconfig
from ssim_fused import _cuda, _paths
assert not (sysconfig.get_config_var("Py_GIL_DISABLED") and sys._is_gil_enabled())
assert ssim_fused.__file__.startswith(sys.prefix), ssim_fused.__file__
print(torch.__version__, torch.version.cuda, _paths.cpu_reason or torch.ops.ssim_fused.cpu_isa(),
      _paths.cuda_reason or _cuda.kernels().describe(), sep="|")
"""


class Failed(Exception):
    """What a command said that failed."""


def run(*command: object, cwd: Path | None = None) -> str:
    """What a command prints."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise Failed((done.stdout + done.stderr).strip()[-2000:])
    return done.stdout


def find_python(version: str) -> Path | None:
    """An interpreter of pyenv's, or on the path."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = sorted(pyenv.glob(f"*/bin/python{version}"))
    on_path = shutil.which(f"python{version}")
    return found[-1] if found else Path(on_path) if on_path else None


def try_row(python: str, torch: str, file: Path, folder: Path) -> dict[str, str]:
    """One environment's row; Failed where something does not work."""
    interpreter = find_python(python)
    if interpreter is None:
        raise Failed("there is no such Python here")
    environment = folder / "environment"
    run(interpreter, "-m", "venv", environment)
    own = environment / "bin/python"
    pip = (own, "-m", "pip", "install", "-q", "--no-cache-dir", "--disable-pip-version-check")
    run(*pip, "--only-binary=:all:", f"torch=={torch}", "numpy", "pytest")
    run(*pip, "--no-deps", "--no-index", file)
    tests = folder / "tests"
    tests.mkdir()
    for name in (*TESTS, "tables.py"):
        shutil.copy(ROOT / "tests" / name, tests)
    version, cuda, cpu, kernels = run(own, "-c", LOOK, cwd=tests).strip().split("|")
    begun = time.monotonic()
    said = run(own, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS, cwd=tests)
    closing = re.sub(r" in [\d.]+s.*", "", said.strip().splitlines()[-1])
    wheel = build_wheel.origin()
    took = f"{time.monotonic() - begun:.0f}"
    return dict(zip(COLUMNS, (python, version, cuda, cpu, kernels, closing, wheel, took)))


def main() -> int:
    """The exit status: 0 where every row that could be tried passed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("python", nargs="?")
    parser.add_argument("torch", nargs="?")
    chosen = parser.parse_args()
    rows = [(chosen.python, chosen.torch)] if chosen.torch else ROWS
    file = build_wheel.only(ROOT / "dist")
    kept = {}
    if RESULTS.exists() and chosen.torch:
        with RESULTS.open(newline="") as old:
            kept = {(row["python"], row["torch"].split("+")[0]): row for row in csv.DictReader(old)}
    failed = 0
    for python, torch in rows:
        print(f"Python {python}, torch {torch}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix="ssim-matrix-") as folder:
            try:
                row = try_row(python, torch, file, Path(folder))
            except Failed as reason:
                failed += 1
                print(reason, file=sys.stderr, flush=True)
                last = str(reason).splitlines()[-1]
                row = dict.fromkeys(COLUMNS, "") | {"python": python, "torch": torch}
                row |= {"tests": f"failed: {last}", "wheel": build_wheel.origin()}
        kept[python, torch.split("+")[0]] = row
        with RESULTS.open("w", newline="") as new:  # after each: a long run may be cut short
            writer = csv.DictWriter(new, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(kept.values())
    made = [[row[column] for column in COLUMNS[:-1]] for row in kept.values()]
    tables.write(ROOT / "docs/installing.md", "matrix", [COLUMNS[:-1], *made])
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
