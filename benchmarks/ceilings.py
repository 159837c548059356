"""What this machine can do at most: multiply-adds a second, and bytes read a second.

Measured with torch's own kernels, the best of many runs: a matrix product for the arithmetic, the
sum of a large array for memory. For the cache, a sum that passes many times over an array which
each core keeps in its own: one pass alone would time the start of the threads. They are ceilings
that real code reached here, not a data sheet's.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

# a pixel and channel: four maps (value), and three more for a gradient, filtered down and across
VALUE_FLOPS = 2 * 4 * 22
STEP_FLOPS = VALUE_FLOPS + 2 * 3 * 22
VALUE_BYTES, STEP_BYTES = 8, 12  # two images read, one gradient written, float32
CACHED, PASSES = 64 << 10, 1024  # floats that fit a core's L2 cache, and how often each is read


def _best(call: Callable[[], object], seconds: float) -> float:
    call()
    times, end = [], time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def measure(seconds: float = 1.0) -> dict[str, float]:
    """GFLOP/s of float32 multiply-adds, GB/s of reading memory and cache, with torch's threads."""
    size = 2048
    a, b = torch.rand(size, size), torch.rand(size, size)
    large, small = torch.rand(64 << 20), torch.rand(CACHED).expand(PASSES, CACHED)
    return {
        "threads": torch.get_num_threads(),
        "gflops": 2 * size**3 / _best(lambda: a @ b, seconds) / 1e9,
        "memory_gb_s": 4 * large.numel() / _best(large.sum, seconds) / 1e9,
        "cache_gb_s": 4 * small.numel() / _best(small.sum, seconds) / 1e9,
    }


def by_threads(seconds: float = 1.0) -> list[dict[str, float]]:
    """The same with one thread and with all."""
    threads = torch.get_num_threads()
    found = []
    for count in sorted({1, threads}):
        torch.set_num_threads(count)
        found.append(measure(seconds))
    torch.set_num_threads(threads)
    return found
