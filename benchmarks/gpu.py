"""``make gpu``: what a machine with a GPU can show of the kernels, in one command and one file.

Runs the kernels' tests (tests/test_cuda.py), the benchmark, and some of the tests under
compute-sanitizer where it is installed. benchmarks/results/gpu-NAME.json is written after each of
them, for machines that are lent for minutes. Without a GPU it says so and exits with 1.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import torch

from examples.common.files import save_json
from ssim_fused import _paths

from . import results
from .engine import OURS, Workload, measure
from .providers import BY_NAME

ROOT = Path(__file__).resolve().parent.parent
SHAPES = [(1, 1, 64, 64), (128, 1, 28, 28), (5, 1, 128, 128), (16, 3, 256, 256), (1, 3, 1080, 1920)]
# memcheck: calls of the driver that fail, as torch makes some on purpose, are no errors
SANITIZER_TOOLS = {
    "memcheck": ["--report-api-errors", "no"],
    "racecheck": [],
    "synccheck": [],
    "initcheck": [],
}
# small calls that reach every kind of kernel: a sanitizer makes them a hundred times slower
SANITIZED = "tests/test_cuda.py::test_every_kind_of_kernel"
LIMIT_S = 1800.0  # of a run of tests, which may hang
KEPT = 100_000  # characters of what a run has said that went wrong


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


def _run(command: list[str], limit_s: float) -> tuple[int, str]:
    """Exit status and what it says, shown as it comes; it is killed where it takes longer."""
    with subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        kill = threading.Timer(limit_s, os.killpg, (process.pid, signal.SIGKILL))
        kill.start()
        said = []
        try:
            for line in process.stdout or ():
                sys.stderr.write(line)
                said.append(line)
        except KeyboardInterrupt:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        finally:
            kill.cancel()
    return process.returncode, "".join(said)


def run_tests(
    *prefix: str,
    select: str = "tests/test_cuda.py",
    may_skip: bool = True,
    limit_s: float = LIMIT_S,
) -> dict:
    """pytest's exit status and closing line, whether all is well, and if not, what was said.

    Tests that were skipped have shown nothing: some must have run, without `may_skip` all.
    """
    command = [*prefix, sys.executable, "-m", "pytest", "-q", select]
    status, said = _run(command, limit_s)
    closing = re.findall(
        r"^=*\s?(.*\d+ (?:passed|failed|skipped|errors?)\b.* in [\d.:]+.*)$", said, re.M
    )
    line = closing[-1] if closing else ""
    passed = status == 0 and " passed" in f" {line}" and (may_skip or "skipped" not in line)
    found = {"exit": status, "closing_line": line, "passed": passed}
    return found if passed else found | {"said": said[-KEPT:]}


def run_sanitizers() -> dict[str, dict]:
    """Each tool of compute-sanitizer over a few tests; empty where it is not installed."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    tool = shutil.which("compute-sanitizer", path=f"{os.environ.get('PATH', '')}:{home}/bin")
    if tool is None:
        return {}
    found = {}
    for name, options in SANITIZER_TOOLS.items():
        print(f"compute-sanitizer {name}", file=sys.stderr)
        prefix = (tool, "--tool", name, "--error-exitcode", "9", *options)
        found[name] = run_tests(*prefix, select=SANITIZED, may_skip=False)
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
    report: dict = {"machine": results.machine()}
    path = results.RESULTS / f"{file_name(torch.cuda.get_device_name())}.json"
    path.parent.mkdir(exist_ok=True)
    # sanitizers last: they take longest
    stages = {"tests": run_tests, "benchmark": run_benchmark, "sanitizers": run_sanitizers}
    for name, run in stages.items():
        report[name] = run()
        save_json(path, report)
    print(path)
    failed = False
    for name, found in {"tests": report["tests"], **report["sanitizers"]}.items():
        print(f"{name}: {found['closing_line']}{'' if found['passed'] else ': FAILED'}")
        failed = failed or not found["passed"]
    for row in report["benchmark"]:
        if row["provider"] == OURS and not row["agrees"]:
            what = f"{row['mode']} {row['shape']} {row['problem']}"
            print(f"ssim_fused disagrees with float64: {what}")
            failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
