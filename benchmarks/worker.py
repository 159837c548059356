"""A process that times ssim_fused when it is asked: another build, or another environment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

_SCRIPT = """
import sys
root, ours = sys.argv[1:]
sys.path.insert(0, root)
from ssim_fused import ssim_loss
sys.path[0] = ours  # root may have a benchmark of its own
import torch
from benchmarks.engine import Clock, Workload, call_of
clock, calls = Clock("cpu"), {}
for line in sys.stdin:
    mode, shape, threads, count = line.split()
    torch.set_num_threads(int(threads))
    if (mode, shape) not in calls:
        calls[mode, shape] = call_of(ssim_loss, Workload(mode, tuple(map(int, shape.split("x")))))
    calls[mode, shape]()
    print(*(clock.time(calls[mode, shape]) for _ in range(int(count))), flush=True)
"""


class Worker:
    """The library of `root` under this tree's benchmark code, with further variables set."""

    def __init__(self, root: Path = ROOT, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _SCRIPT, str(root), str(ROOT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )

    def times(self, mode: str, shape: str, threads: int, count: int = 5) -> list[float]:
        """Seconds of `count` calls, after one that is not counted."""
        self.process.stdin.write(f"{mode} {shape} {threads} {count}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("the process that measures has ended")
        return [float(time) for time in line.split()]

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
