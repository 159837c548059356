"""The package with its CPU library under a sanitizer, and Python that loads it.

``python -m fuzz.sanitized --seconds 600`` makes arbitrary calls of it under AddressSanitizer and
UBSan; ``python -m fuzz.sanitized threads`` many at once under ThreadSanitizer.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import torch

import ssim_fused  # noqa: F401 - registers cpu_isa

ROOT = Path(__file__).resolve().parents[2]
SANITIZERS = {
    "address": "-fsanitize=address,undefined -fno-sanitize-recover=all",
    "thread": "-fsanitize=thread",
}
LIBRARIES = {"address": "libasan.so", "thread": "libtsan.so"}
OPTIONS = {
    # Python frees little when it ends, and torch allocates what it then refuses
    "address": {"ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1"},
    # Python's and torch's own code is not built for it. Each call computes in its own thread: how
    # OpenMP's wait for each other it does not see, and would take what they leave for races.
    "thread": {
        "TSAN_OPTIONS": "ignore_noninstrumented_modules=1:exitcode=66",
        "OMP_NUM_THREADS": "1",
    },
}


# Of the kernel's builds, one for each instruction set, one runs: the others are made without a
# sanitizer, in a fifth of the time.
COMPILER = """#!/bin/sh
case "$*" in *-DSSIM_ISA={isa}*) ;; *-DSSIM_ISA=*) exec {cxx} "$@" ;; esac
exec {cxx} {flags} "$@"
"""


def build(sanitizer: str) -> Path:
    """Build it, or what has changed of it; the folder to import it from."""
    isa = torch.ops.ssim_fused.cpu_isa()
    package = ROOT / ".cache" / "sanitized" / f"{sanitizer}-{isa}"
    package.mkdir(parents=True, exist_ok=True)
    compiler = package / "c++"
    cxx = os.environ.get("CXX", "c++")
    compiler.write_text(COMPILER.format(isa=isa, cxx=cxx, flags=SANITIZERS[sanitizer]))
    compiler.chmod(0o755)
    command = [sys.executable, "setup.py", "-q", "build"]
    places = ["--build-lib", str(package / "lib"), "--build-temp", str(package / "objects")]
    settings = {
        "CXX": shlex.quote(str(compiler)),
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
    return package / "lib"


def run(*arguments: str, sanitizer: str = "address") -> subprocess.CompletedProcess:
    """Python with these arguments, the package and the tests' modules."""
    package, tests = build(sanitizer), ROOT / "tests"
    # the C++ library too: what throws is looked for when the process starts
    names = (LIBRARIES[sanitizer], "libstdc++.so.6")
    asked = [["c++", f"-print-file-name={name}"] for name in names]
    libraries = [subprocess.check_output(ask, text=True).strip() for ask in asked]
    environment = {
        **os.environ,
        **OPTIONS[sanitizer],
        "LD_PRELOAD": " ".join(libraries),
        "PYTHONPATH": os.pathsep.join(map(str, (package, tests))),
    }
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=package, env=environment, capture_output=True, text=True)


def main(words: list[str]) -> int:
    """The exit status of what the words ask for."""
    if words == ["threads"]:
        done = run("-m", "fuzz.threads", sanitizer="thread")
    else:
        done = run("-m", "fuzz", *words)
    print(done.stdout + done.stderr)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
