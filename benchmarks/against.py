"""Two commits on one machine: `python -m benchmarks.against REF` builds REF beside this tree.

Each side runs in a process of its own; they are asked in turns, in random order, so that whatever
else the machine does meets both. A figure has moved where the medians differ by more than 3 % and
by more than three times what chance makes of a median of so many rounds. The runs of a round follow
each other and share what disturbs them, so a round counts once, by its median. The exit status is 1
where something has become slower.
"""

from __future__ import annotations

import argparse
import functools
import math
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import torch

from .turns import take_turns
from .worker import ROOT, Worker

LEAST = 0.03  # a difference that is worth a word
SHAPES = ("16x3x256x256", "1x3x1080x1920", "1x1x28x28", "128x1x28x28", "5x1x128x128")


def moved(before: list[float], after: list[float]) -> bool:
    """Whether two samples of times, independent of each other, differ beyond noise."""

    def error(times: list[float]) -> float:  # of the median, from the quartiles
        lower, _, upper = statistics.quantiles(times, n=4)
        return 1.2533 * (upper - lower) / 1.349 / math.sqrt(len(times))

    difference = abs(statistics.median(after) - statistics.median(before))
    noise = math.hypot(error(before), error(after))
    return difference > max(3 * noise, LEAST * statistics.median(before))


def build(ref: str, place: Path) -> None:
    """`ref`'s files with its own library."""
    remove(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    git = ["git", "-C", str(ROOT), "worktree", "add", "--quiet", "--detach", str(place), ref]
    subprocess.run(git, check=True)
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    environment = {**os.environ, "SSIM_FUSED_REQUIRE_NATIVE": "1", "SSIM_FUSED_CUDA": "0"}
    run = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"{ref} does not build:\n{run.stderr[-2000:]}")


def remove(place: Path) -> None:
    git = ["git", "-C", str(ROOT), "worktree"]
    subprocess.run([*git, "remove", "--force", str(place)], capture_output=True)
    shutil.rmtree(place, ignore_errors=True)
    subprocess.run([*git, "prune"], capture_output=True)


def compare(sides: dict[str, Worker], modes: list[str], shapes: list[str], rounds: int) -> int:
    """Print every figure; how many have become slower."""
    count = 0
    threads = torch.get_num_threads()
    print(f"{'':<24}{'before':>12}{'now':>12}{'':>4}change")
    for shape in shapes:
        for mode in modes:
            asked = {
                name: functools.partial(worker.times, mode, shape, threads)
                for name, worker in sides.items()
            }
            found = take_turns(asked, rounds)
            times = {name: [statistics.median(runs) for runs in of] for name, of in found.items()}
            before, now = (statistics.median(times[name]) for name in ("before", "now"))
            is_moved = moved(times["before"], times["now"])
            count += is_moved and now > before
            change = f"{now / before - 1:+.1%}" + (" moved" if is_moved else "")
            print(f"{mode:<6}{shape:<18}{1e6 * before:>9.1f} us{1e6 * now:>9.1f} us    {change}")
    return count


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.against", description=__doc__)
    parser.add_argument("ref", help="a commit, branch or tag")
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES))
    parser.add_argument("--modes", nargs="+", choices=["value", "step"], default=["value", "step"])
    parser.add_argument("--rounds", type=int, default=30, help="of five runs on each side")
    args = parser.parse_args(argv)
    place = ROOT / "build" / "against"
    try:
        build(args.ref, place)
        sides = {"before": Worker(place), "now": Worker()}
        try:
            count = compare(sides, args.modes, args.shapes, args.rounds)
        finally:
            for side in sides.values():
                side.close()
    finally:
        remove(place)
    print(f"{count or 'no'} figure{'' if count == 1 else 's'} slower beyond noise")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
