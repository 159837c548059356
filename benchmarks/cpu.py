"""What each instruction set and each thread gives: `python -m benchmarks.cpu`.

Every instruction set runs in a process of its own (SSIM_FUSED_CPU_ISA); the processes are asked in
turns, in random order. Beside them stands what a bare matrix product gains from the same threads.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import statistics
import sys
from pathlib import Path

import torch

import ssim_fused  # noqa: F401  registers the operators

from . import ceilings, results
from .turns import take_turns
from .worker import Worker

SHAPES = ("16x3x256x256", "1x3x1080x1920", "128x1x28x28")
ISAS = ("baseline", "avx2", "avx512")


def available() -> list[str]:
    """The instruction sets that this processor runs, up to the one that is chosen by itself."""
    return list(ISAS[: ISAS.index(torch.ops.ssim_fused.cpu_isa()) + 1])


def measure(shapes: list[str], rounds: int) -> list[dict]:
    """One row for each instruction set, number of threads, shape and mode."""
    counts = sorted({1, torch.get_num_threads()})
    bare = {count["threads"]: count["gflops"] for count in ceilings.by_threads()}
    workers = {isa: Worker(SSIM_FUSED_CPU_ISA=isa) for isa in available()}
    rows = []
    try:
        for shape in shapes:
            pixels = 1
            for size in shape.split("x"):
                pixels *= int(size)
            for mode in ("value", "step"):
                asked = {
                    (isa, count): functools.partial(worker.times, mode, shape, count)
                    for isa, worker in workers.items()
                    for count in counts
                }
                times = take_turns(asked, rounds)
                medians = {
                    key: statistics.median(itertools.chain(*found)) for key, found in times.items()
                }
                for (isa, count), median in medians.items():
                    rows.append(
                        {
                            "isa": isa,
                            "threads": count,
                            "mode": mode,
                            "shape": shape,
                            "ns_per_pixel": 1e9 * median / pixels,
                            "gain_over_baseline": medians["baseline", count] / median,
                            "gain_of_threads": medians[isa, counts[0]] / median,
                            "bare_gain_of_threads": bare[count] / bare[counts[0]],
                        }
                    )
    finally:
        for worker in workers.values():
            worker.close()
    return rows


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu", description=__doc__)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--out", type=Path, default=results.RESULTS)
    args = parser.parse_args(argv)
    rows = measure(args.shapes, args.rounds)
    path = results.save(args.out, results.name_for("cpu", parser, args), rows)
    for row in rows:
        print(
            f"{row['mode']:<6}{row['shape']:<15}{row['isa']:<9}{row['threads']} threads"
            f"{row['ns_per_pixel']:>9.2f} ns{row['gain_over_baseline']:>7.2f}x baseline"
            f"{row['gain_of_threads']:>7.2f}x one thread (bare {row['bare_gain_of_threads']:.2f}x)"
        )
    print(f"saved in {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
