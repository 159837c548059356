"""The kernels under AddressSanitizer with UBSan, and under ThreadSanitizer."""

from __future__ import annotations

import subprocess
from pathlib import Path

from . import CSRC, build

THREADS = ["-g", "-DSSIM_EMULATOR_THREADS", "-pthread"]
SANITIZERS = {  # as optimized as makes building and running shortest
    "address": ["-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-O1", "-fsanitize=thread"],
}
FOUND = {"address": "AddressSanitizer", "thread": "data race"}


def run_sanitized(program: str, sanitizer: str, csrc: Path = CSRC) -> subprocess.CompletedProcess:
    """Run a program of this folder with the kernel in `csrc`."""
    # the compiler cannot see through the sanitizers' checks
    flags = [*THREADS, *SANITIZERS[sanitizer], "-Wno-maybe-uninitialized"]
    return subprocess.run(
        [build(program, flags, csrc)],
        capture_output=True,
        text=True,
        env={"TSAN_OPTIONS": "halt_on_error=1 exitcode=66"},
    )
