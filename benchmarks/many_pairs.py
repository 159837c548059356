"""What `ssim-fused compare` costs for a long list: `python -m benchmarks.many_pairs`, minutes.

Small pairs, cut from photographs, are compared by the command in a process of its own, a short list
and a long one in turns. What their difference costs a pair is what a million of them would.
docs/evaluating.md has the table.
"""

from __future__ import annotations

import argparse
import csv
import functools
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from examples.common.photos import NAMES
from release import tables
from ssim_fused.evaluation.pairs import Pair

from . import results
from .evaluating import pixels, save_pair
from .turns import take_turns

SIDE = 64
PROJECTED = 1_000_000
# the peak of a process starts at its parent's: so a small parent stands between
WATCH = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
clock, used = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps({"clock_s": clock, "processor_s": used.ru_utime + used.ru_stime,
                  "peak_bytes": 1024 * used.ru_maxrss}))
"""


def cuttings(folder: Path, count: int) -> list[Pair]:
    """Pieces of photographs, and the same with noise."""
    random_ = np.random.default_rng(0)
    photos = [pixels(name) for name in NAMES]
    pairs = []
    for i in range(count):
        whole = photos[i % len(photos)]
        top, left = (random_.integers(0, size - SIDE + 1) for size in whole.shape[:2])
        piece = whole[top : top + SIDE, left : left + SIDE]
        pairs.append(save_pair(folder, i, piece, random_))
    return pairs


def compare(folder: Path, pairs: list[Pair]) -> dict[str, float]:
    """Seconds of the clock and of the processor, and the peak memory, of comparing a list."""
    listed, written = folder / "pairs.csv", folder / "results.csv"
    with listed.open("w", newline="") as file:
        csv.writer(file).writerows([("input", "target"), *(pair[:2] for pair in pairs)])
    written.unlink(missing_ok=True)
    command = [sys.executable, "-m", "ssim_fused.command", "compare", str(listed)]
    watched = subprocess.run(
        [sys.executable, "-c", WATCH, *command, "--csv", str(written)],
        check=True,
        capture_output=True,
        text=True,
    )
    compared = [row for row in results.load(written) if not row["error"]]
    assert len(compared) == len(pairs)
    return json.loads(watched.stdout)


def measure(folder: Path, counts: list[int], rounds: int) -> list[dict]:
    """Medians for a list of each length."""
    pairs = cuttings(folder, max(counts))
    turns = {count: functools.partial(compare, folder, pairs[:count]) for count in counts}
    rows = []
    for count, found in take_turns(turns, rounds).items():
        medians = {name: statistics.median(run[name] for run in found) for name in found[0]}
        rows.append({"pairs": count, "side": SIDE, "rounds": rounds} | medians)
    return rows


def markdown(rows: list[dict[str, str]]) -> str:
    """The table of docs/evaluating.md."""
    lines = [["pairs", "time, start included", "processor time", "memory at most"]]
    for row in rows:
        cells = [f"{int(row['pairs']):,}", f"{float(row['clock_s']):.1f} s"]
        cells += [f"{float(row['processor_s']):.1f} s", f"{float(row['peak_bytes']) / 1e6:.0f} MB"]
        lines.append(cells)
    short, long = rows[0], rows[-1]
    more = int(long["pairs"]) - int(short["pairs"])
    minutes = [
        (float(long[name]) - float(short[name])) / more * PROJECTED / 60
        for name in ("clock_s", "processor_s")
    ]
    lines.append([f"{PROJECTED:,}, projected", *(f"{each:.0f} minutes" for each in minutes), ""])
    return tables.markdown(lines)


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.many_pairs", description=__doc__)
    parser.add_argument("--pairs", type=int, nargs=2, default=[1000, 10_000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=results.RESULTS)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), args.pairs, args.rounds)
    path = results.save(args.out, results.name_for("many_pairs", parser, args), rows)
    print(markdown(rows), f"saved in {path}", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
