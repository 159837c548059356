"""The package with its CPU library under AddressSanitizer and UBSan, and Python that loads it.

``python -m fuzz.sanitized --seconds 600`` makes arbitrary calls of it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / ".cache" / "sanitized"
SANITIZE = "-fsanitize=address,undefined -fno-sanitize-recover=all"


def build() -> Path:
    """Build it, or what has changed of it; the folder to import it from."""
    command = [sys.executable, "setup.py", "-q", "build"]
    places = ["--build-lib", str(PACKAGE / "lib"), "--build-temp", str(PACKAGE / "objects")]
    settings = {
        "CXX": f"{os.environ.get('CXX', 'c++')} {SANITIZE}",
        "CXXFLAGS": "-O0 -g1",  # a tenth of the time to compile
        "SSIM_FUSED_CUDA": "0",
        "SSIM_FUSED_REQUIRE_NATIVE": "1",
    }
    environment = {**os.environ, **settings}
    done = subprocess.run(
        [*command, *places], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
    return PACKAGE / "lib"


def run(*arguments: str) -> subprocess.CompletedProcess:
    """Python with these arguments, the package and the tests' modules."""
    package, tests = build(), ROOT / "tests"
    # the C++ library too: what throws is looked for when the process starts
    names = ("libasan.so", "libstdc++.so.6")
    asked = [["c++", f"-print-file-name={name}"] for name in names]
    libraries = [subprocess.check_output(ask, text=True).strip() for ask in asked]
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(libraries),
        "PYTHONPATH": os.pathsep.join(map(str, (package, tests))),
        # Python frees little when it ends, and torch allocates what it then refuses
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
    }
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=package, env=environment, capture_output=True, text=True)


if __name__ == "__main__":
    done = run("-m", "fuzz", *sys.argv[1:])
    print(done.stdout + done.stderr)
    sys.exit(done.returncode)
