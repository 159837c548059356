"""What `ssim-fused compare` costs beside decoding: `python -m benchmarks.evaluating`, minutes.

Pairs of 1080p photographs as PNG are decoded by Pillow, decoded as the command does, and compared,
each with a thread a core, in random order, several rounds. docs/evaluating.md has the table.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from examples.common.photos import NAMES, photo
from release import tables
from ssim_fused.evaluation.compare import Settings
from ssim_fused.evaluation.pairs import Pair
from ssim_fused.evaluation.pictures import read_picture
from ssim_fused.evaluation.run import Outcome, evaluate

from . import results
from .turns import take_turns

SIZE = (1080, 1920)
PILLOW, OWN = "decoding both with Pillow", "decoding both as the command does (imagecodecs)"


def pixels(name: str) -> np.ndarray:
    """A photograph (H, W, 3) in eight bits."""
    return (photo(name) * 255).round().byte().permute(1, 2, 0).numpy()


def save_pair(folder: Path, i: int, picture: np.ndarray, random_: np.random.Generator) -> Pair:
    """A picture and the same with noise, as PNG."""
    noisy = (picture + random_.normal(0, 2, picture.shape)).round().clip(0, 255).astype(np.uint8)
    files = [folder / f"{i}-{side}.png" for side in "ab"]
    for file, each in zip(files, (picture, noisy)):
        Image.fromarray(each).save(file)
    return Pair(*map(str, files))


def photographs(folder: Path, count: int) -> list[Pair]:
    """Photographs, mirrored at their edges until they fill the size, and the same with noise."""
    random_ = np.random.default_rng(0)
    pairs = []
    for i in range(count):
        picture = pixels(NAMES[i % len(NAMES)])[: SIZE[0], : SIZE[1]]
        missing = [(0, full - had) for full, had in zip(SIZE, picture.shape)]
        full = np.pad(picture, (*missing, (0, 0)), mode="symmetric")
        full = np.roll(full, random_.integers(0, SIZE[1], 2), (0, 1))
        pairs.append(save_pair(folder, i, full, random_))
    return pairs


def _decode(read: Callable[[str], object]) -> Callable[[list[Pair], int], None]:
    def both(pair: Pair) -> None:
        for file in pair[:2]:
            read(file)

    def run(pairs: list[Pair], threads: int) -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(both, pairs))

    return run


def _read_with_pillow(file: str) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image)


def _compare(settings: Settings) -> Callable[[list[Pair], int], None]:
    def run(pairs: list[Pair], threads: int) -> None:
        outcome = Outcome()
        evaluate(pairs, settings, {}, append=False, threads=threads, outcome=outcome)
        assert outcome.summary.compared == len(pairs)

    return run


WORK = {
    PILLOW: _decode(_read_with_pillow),
    OWN: _decode(read_picture),
    "`ssim-fused compare`": _compare(Settings()),
    "`ssim-fused compare --ms-ssim`": _compare(Settings(ms_ssim=True)),
}


def measure(pairs: list[Pair], repeat: int, rounds: int, threads: int) -> list[dict]:
    """Medians of milliseconds for a pair: of the clock, and of all cores together."""
    pairs = pairs * repeat

    def timed_both(work: Callable[[list[Pair], int], None]) -> tuple[float, float]:
        start = time.perf_counter(), time.process_time()
        work(pairs, threads)
        end = time.perf_counter(), time.process_time()
        return tuple(1e3 * (b - a) / len(pairs) for a, b in zip(start, end))

    turns = {name: functools.partial(timed_both, work) for name, work in WORK.items()}
    times = take_turns(turns, rounds)
    clock, cores = (
        {name: statistics.median(t[i] for t in found) for name, found in times.items()}
        for i in range(2)
    )
    return [
        {
            "work": name,
            "pairs": len(pairs),
            "rounds": rounds,
            "threads": threads,
            "clock_ms": clock[name],
            "cores_ms": cores[name],
            "to_pillow": clock[name] / clock[PILLOW],
            "to_own_decoder": clock[name] / clock[OWN],
        }
        for name in WORK
    ]


def markdown(rows: list[dict[str, str]]) -> str:
    """The table of docs/evaluating.md."""
    titles = ["", "milliseconds a pair", "of all cores together", "of Pillow's decoding"]
    titles += ["of the command's own decoding"]
    lines = [titles]
    for row in rows:
        cells = [row["work"], f"{float(row['clock_ms']):.0f}", f"{float(row['cores_ms']):.0f}"]
        cells += [f"{float(row[name]):.2f}x" for name in ("to_pillow", "to_own_decoder")]
        lines.append(cells)
    return tables.markdown(lines)


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evaluating", description=__doc__)
    parser.add_argument("--pairs", type=int, default=20, help="different ones")
    parser.add_argument("--repeat", type=int, default=10, help="how often each is compared")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=results.RESULTS)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        pairs = photographs(Path(folder), args.pairs)
        rows = measure(pairs, args.repeat, args.rounds, os.cpu_count() or 1)
    path = results.save(args.out, results.name_for("evaluating", parser, args), rows)
    print(markdown(rows), f"saved in {path}", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
