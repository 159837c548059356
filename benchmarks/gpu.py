"""``make gpu``: what a machine with a GPU can show of the kernels, in one command and one file.

Runs the kernels' tests (tests/test_cuda.py), some of them under compute-sanitizer where it is
installed, and the benchmark; writes benchmarks/results/gpu-NAME.json. Without a GPU it says so and
exits with 1.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from examples.common.files import save_json
from ssim_fused import _paths

from . import results
from .engine import OURS, Workload, measure
from .providers import BY_NAME

ROOT = Path(__file__).resolve().parent.parent
SHAPES = [(1, 1, 64, 64), (128, 1, 28, 28), (5, 1, 128, 128), (16, 3, 256, 256), (1, 3, 1080, 1920)]
SANITIZER_TOOLS = ["memcheck", "racecheck", "synccheck", "initcheck"]
# small calls that reach every kind of kernel: a sanitizer makes them a hundred times slower
SANITIZED = "tests/test_cuda.py::test_every_kind_of_kernel"


def why_not() -> str | None:
    """Why this machine cannot run the CUDA kernels, or None."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    if not torch.cuda.is_available():
        return "torch finds no GPU"
    return _paths.cuda_reason


def file_name(device: str) -> str:
    """A device's name as a file's: "NVIDIA H100 80GB HBM3" to gpu-nvidia-h100-80gb-hbm3."""
    return "gpu-" + re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def run_tests(*prefix: str, select: str = "tests/test_cuda.py") -> dict:
    """pytest's exit status and its closing line."""
    command = [*prefix, sys.executable, "-m", "pytest", "-q", select]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    return {"exit": done.returncode, "closing_line": lines[-1] if lines else done.stderr[-500:]}


def run_sanitizers() -> dict[str, dict]:
    """Each tool of compute-sanitizer over a few tests; empty where it is not installed."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    tool = shutil.which("compute-sanitizer", path=f"{os.environ.get('PATH', '')}:{home}/bin")
    if tool is None:
        return {}
    found = {}
    for name in SANITIZER_TOOLS:
        print(f"compute-sanitizer {name}", file=sys.stderr)
        prefix = (tool, "--tool", name, "--error-exitcode", "9")
        found[name] = run_tests(*prefix, select=SANITIZED)
    return found


def run_benchmark() -> list[dict]:
    """Value and step of every provider that is installed."""
    rows = []
    for shape in SHAPES:
        for mode in ("value", "step"):
            workload = Workload(mode, shape, device="cuda")
            print(workload, file=sys.stderr)
            measured, _ = measure(workload, list(BY_NAME), budget=5.0)
            ours = next((m for m in measured if m.provider == OURS), None)
            rows += [m.row(ours) for m in measured]
    return rows


def main() -> int:
    """The exit status: 0 where all tests passed and every value of ours agrees with float64."""
    if reason := why_not():
        print(f"make gpu: nothing was run: {reason}", file=sys.stderr)
        return 1
    report = {"machine": results.machine(), "tests": run_tests()}
    print(report["tests"]["closing_line"])
    report["sanitizers"] = run_sanitizers()
    report["benchmark"] = run_benchmark()
    path = results.RESULTS / f"{file_name(torch.cuda.get_device_name())}.json"
    path.parent.mkdir(exist_ok=True)
    save_json(path, report)
    print(path)
    runs = [report["tests"], *report["sanitizers"].values()]
    wrong = [row for row in report["benchmark"] if row["provider"] == OURS and not row["agrees"]]
    for row in wrong:
        print(f"ssim_fused disagrees with float64: {row['mode']} {row['shape']} {row['problem']}")
    return int(bool(wrong) or any(result["exit"] for result in runs))


if __name__ == "__main__":
    sys.exit(main())
