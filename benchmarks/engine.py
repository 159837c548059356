"""Verify, then time: providers interleaved in random order, medians and quartiles.

First each provider's value is compared with float64 truth for the border that it states; one that
does not agree is marked, and its time does not count as a time for this metric.
"""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ssim_fused import reference

from .providers import BY_NAME, Loss, Provider

OURS = "ssim_fused"
PATIENCE = 5.0  # seconds; a call that takes longer is timed once


@dataclass(frozen=True)
class Workload:
    """What is measured: "value", "step" (value and gradient to the first image), or "memory".

    The last is the peak of a step's extra memory, in bytes.
    """

    mode: str
    shape: tuple[int, int, int, int]
    dtype: str = "float32"
    device: str = "cpu"

    @property
    def pixels(self) -> int:
        """Pixels and channels of one image batch."""
        n, c, h, w = self.shape
        return n * c * h * w

    def __str__(self) -> str:
        return f"{self.mode} {'x'.join(map(str, self.shape))} {self.dtype} {self.device}"


@dataclass
class Measurement:
    """One provider at one workload; times in seconds."""

    provider: str
    workload: Workload
    seconds: list[float] = field(default_factory=list)
    error: float | None = None  # of the value, relative to float64
    agrees: bool = False
    problem: str = ""
    peak_bytes: int | None = None

    @property
    def median(self) -> float | None:
        return statistics.median(self.seconds) if self.seconds else None

    def row(self, ours: Measurement | None) -> dict:
        """One line of the CSV file."""
        median = self.median
        quartiles = statistics.quantiles(self.seconds, n=4) if len(self.seconds) > 1 else [None] * 3
        ratio = median / ours.median if median and ours and ours.median else None
        if self.peak_bytes and ours and ours.peak_bytes:
            ratio = self.peak_bytes / ours.peak_bytes
        return {
            "provider": self.provider,
            **asdict(self.workload) | {"shape": "x".join(map(str, self.workload.shape))},
            "median_us": None if median is None else 1e6 * median,
            "lower_quartile_us": None if quartiles[0] is None else 1e6 * quartiles[0],
            "upper_quartile_us": None if quartiles[2] is None else 1e6 * quartiles[2],
            "runs": len(self.seconds),
            "ns_per_pixel": None if median is None else 1e9 * median / self.workload.pixels,
            "ratio_to_ours": ratio,
            "relative_error": self.error,
            "agrees": self.agrees,
            "peak_bytes": self.peak_bytes,
            "problem": self.problem,
        }


# ---- images and truth ----


def images(workload: Workload, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A smooth picture with grain, and a noisy copy, both in [0, 1]."""
    n, c, h, w = workload.shape
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, c, h // 16 + 2, w // 16 + 2, generator=generator)
    x = F.interpolate(coarse, size=(h, w), mode="bilinear", align_corners=True)
    x = 0.9 * x + 0.1 * torch.rand(x.shape, generator=generator)
    y = x + 0.05 * torch.randn(x.shape, generator=generator)
    dtype = getattr(torch, workload.dtype)
    return tuple(t.clamp(0, 1).to(workload.device, dtype) for t in (x, y))


def true_loss(x: Tensor, y: Tensor, padding: str) -> Tensor:
    """The float64 loss for a provider's border."""
    x, y = x.double(), y.double()
    if padding == "reflect":
        x, y = (F.pad(t, (5, 5, 5, 5), mode="reflect") for t in (x, y))
        padding = "valid"
    return reference.ssim_loss(x, y, padding=padding)


def verify(provider: Provider, loss: Loss, workload: Workload) -> tuple[float, bool]:
    """Relative error of the value against float64, and whether it is within what is promised."""
    x, y = images(workload, seed=1)
    true = true_loss(x, y, provider.padding).item()
    error = abs(float(loss(x, y)) - true) / true
    rounding = {"float16": 2**-10, "bfloat16": 2**-7}.get(workload.dtype, 0.0)
    return error, error <= provider.tolerance + rounding


# ---- timing ----


def call_of(loss: Loss, workload: Workload) -> Callable[[], object]:
    """What is timed."""
    x, y = images(workload)
    if workload.mode == "value":

        def value() -> object:
            with torch.no_grad():
                return loss(x, y)

        return value
    x.requires_grad_()

    def step() -> object:
        x.grad = None
        loss(x, y).backward()
        return x.grad

    return step


class Clock:
    """Seconds of one call. On a GPU by events, after the cache was flushed."""

    def __init__(self, device: str) -> None:
        self.cuda = device.startswith("cuda")
        if self.cuda:
            self.flush = torch.empty(256 << 20, dtype=torch.int8, device=device)

    def time(self, call: Callable[[], object]) -> float:
        if not self.cuda:
            start = time.perf_counter()
            call()
            return time.perf_counter() - start
        self.flush.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3


def prepare(workload: Workload, names: Iterable[str]) -> tuple[list[Measurement], dict]:
    """Each provider imported, verified and called once; those that can be timed, and how."""
    measurements, calls = [], {}
    torch.compiler.reset()  # or a new shape would find the compiler's patience used up
    for name in names:
        provider = BY_NAME[name]
        measurement = Measurement(name, workload)
        measurements.append(measurement)
        measurement.problem = provider.missing(workload.device) or ""
        if workload.mode != "value" and not provider.gradient:
            measurement.problem = "no gradient"
        if measurement.problem:
            continue
        try:
            loss = provider.make()
            measurement.error, measurement.agrees = verify(provider, loss, workload)
            calls[name] = call_of(loss, workload)
            calls[name]()  # compilers work at the first call
            start = time.perf_counter()
            calls[name]()
            took = time.perf_counter() - start
            if took > PATIENCE and workload.mode != "memory":
                measurement.seconds.append(took)
                measurement.problem = "timed once, not interleaved"
                del calls[name]
        except Exception as error:  # a library may refuse a shape or dtype in any way
            measurement.problem = f"{type(error).__name__}: {str(error).strip()[:120]}"
            calls.pop(name, None)
            continue
        if not measurement.agrees:
            measurement.problem = "computes another value"
    return measurements, calls


def measure(
    workload: Workload,
    names: Iterable[str],
    budget: float,
    progress: Callable[[str], None] = lambda text: None,
) -> tuple[list[Measurement], bool]:
    """All providers at one workload, for about `budget` seconds; False where it was interrupted.

    Rounds in random order, three at least, until the budget is used. A round calls every provider,
    a fast one five times, so that slow ones do not starve it. One that takes longer than PATIENCE
    is timed once, beforehand.
    """
    try:
        measurements, calls = prepare(workload, names)
    except KeyboardInterrupt:
        return [], False
    by_name = {m.provider: m for m in measurements}
    if workload.mode == "memory":
        return measurements, _measure_memory(by_name, list(calls), progress)
    clock = Clock(workload.device)
    order = list(calls)
    shuffle = random.Random(0)
    try:
        end, rounds = time.perf_counter() + budget, 0
        while order and (rounds < 3 or time.perf_counter() < end):
            shuffle.shuffle(order)
            for name in order:
                seconds = by_name[name].seconds
                for _ in range(1 if seconds and seconds[-1] > 0.05 else 5):
                    seconds.append(clock.time(calls[name]))
            rounds += 1
            progress(f"{workload}: round {rounds}")
    except KeyboardInterrupt:
        return measurements, False
    return measurements, True


# ---- memory ----


def _measure_memory(
    by_name: dict[str, Measurement], names: list[str], progress: Callable[[str], None]
) -> bool:
    try:
        for name in names:
            progress(f"{by_name[name].workload}: {name}")
            by_name[name].peak_bytes = peak_bytes(name, by_name[name].workload)
    except KeyboardInterrupt:
        return False
    return True


_MEMORY = """
import sys
from benchmarks.engine import Workload, call_of, resident_peak
from benchmarks.providers import BY_NAME
import torch
mode, shape, dtype, device = {workload!r}
small = Workload(mode, (1, 1, 64, 64), dtype, device)
loss = BY_NAME[{name!r}].make()
call_of(loss, small)()
call = call_of(loss, Workload(mode, shape, dtype, device))
print(resident_peak(call, device))
"""


def resident_peak(call: Callable[[], object], device: str) -> int:
    """Bytes that a call needs at its peak, beyond what was there before."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def status(name: str) -> int:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith(name)) << 10

    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts from here
    before = status("VmRSS")
    kept = call()
    del kept
    return status("VmHWM") - before


def peak_bytes(name: str, workload: Workload) -> int | None:
    """Peak extra memory of one call, in a process of its own; None where it cannot be told."""
    arguments = (workload.mode, workload.shape, workload.dtype, workload.device)
    script = _MEMORY.format(workload=arguments, name=name)
    # every large block from the system and back to it, or freed memory would hide what is used
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment
    )
    return int(run.stdout) if run.returncode == 0 else None
