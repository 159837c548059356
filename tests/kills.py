"""``python -m kills --times 50``: training and evaluation, killed at random moments.

Whatever was reported done when a process was killed must stand in the end, and the end must be that
of a run that nobody killed.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from evaluation_tables import save_pairs
from PIL import Image

from ssim_fused.evaluation import writers

ROOT = Path(__file__).resolve().parent.parent
EPOCHS = ["--epochs", "30", "--batch-size", "4", "--checkpoint-every", "4"]  # 180 steps
PAIRS = 4000


def save_squares(folder: Path) -> Path:
    """A folder for each class: dark squares and light ones, 12 of each for training."""
    generator = np.random.default_rng(0)
    for label, level in (("dark", 60), ("light", 200)):
        (folder / label).mkdir(parents=True)
        for i in range(15):
            pixels = generator.normal(level, 10, (20, 24)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{i}.png")
    return folder


def save_many(folder: Path, count: int) -> list[Path]:
    """Two folders of so many pictures: two, under many names."""
    places = save_pairs(folder, 2)
    for i in range(2, count):
        for place in places:
            (place / f"{i:05}.png").hardlink_to(place / f"0{i % 2}.png")
    return list(places)


def run(command: list, seconds: float | None = None) -> bool:
    """Whether a command was killed: after so many seconds, unless it had ended."""
    process = subprocess.Popen(
        list(map(str, command)), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        _, said = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return True
    assert process.returncode == 0, said.decode()[-2000:]
    return False


def whole_lines(path: Path) -> list[bytes]:
    """Of a file that may end anywhere."""
    data = path.read_bytes() if path.exists() else b""
    return data[: data.rfind(b"\n") + 1].splitlines()


class Training:
    """The CVAE; what it reports is a line of metrics.csv for each epoch."""

    goes_on = False  # from its last checkpoint: later epochs are made again

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = save_squares(folder / "pictures")

    def results(self, name: str) -> Path:
        return self.folder / name / "test" / "metrics.csv"

    def reported(self, name: str) -> list:
        return whole_lines(self.results(name))

    def command(self, name: str) -> list:
        runs = self.folder / name
        options = ["--runs", runs, "--name", "test", "--data", self.data, "--device", "cpu"]
        started = (runs / "test" / "checkpoint.pt").exists()
        resume = ["--resume"] if started else []
        return [sys.executable, "examples/train_cvae.py", *options, *EPOCHS, *resume]

    def check(self, name: str, unbroken: str) -> None:
        assert self.results(name).read_bytes() == self.results(unbroken).read_bytes()
        broken, whole = (
            torch.load(self.folder / run / "test" / "checkpoint.pt", weights_only=True)["model"]
            for run in (name, unbroken)
        )
        assert all(torch.equal(broken[key], whole[key]) for key in whole)


class Evaluation:
    """``ssim-fused compare``; what it reports is a line for each pair."""

    goes_on = True  # behind the last line
    kind = "csv"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pairs = save_many(folder, PAIRS)

    def results(self, name: str) -> Path:
        return self.folder / name / f"results.{self.kind}"

    def reported(self, name: str) -> list:
        return whole_lines(self.results(name))

    def command(self, name: str) -> list:
        path = self.results(name)
        path.parent.mkdir(exist_ok=True)
        options = ["compare", *self.pairs, f"--{self.kind}", path, "--resume"]
        return [sys.executable, "-m", "ssim_fused.command", *options]

    def check(self, name: str, unbroken: str) -> None:
        # in the order in which they were done
        assert sorted(self.reported(name)) == sorted(self.reported(unbroken))


class TableEvaluation(Evaluation):
    """The same into a Parquet table, which is made at the end."""

    kind = "parquet"

    def reported(self, name: str) -> list:
        results = writers.read_results("parquet", self.results(name))
        return [json.dumps(result) for result in results]


KINDS = (Training, Evaluation, TableEvaluation)


def kill(work: Training | Evaluation, times: int, moments: random.Random) -> int:
    """Kill it so often, in as many runs as that takes, and check each; how many runs."""
    begun = time.monotonic()
    assert not run(work.command("unbroken"))
    takes = time.monotonic() - begun
    reported_by_whole = set(work.reported("unbroken"))
    killed = runs = 0
    while killed < times:
        shutil.rmtree(work.folder / "broken", ignore_errors=True)
        before: list = []
        while run(work.command("broken"), moments.uniform(0, takes) if killed < times else None):
            killed += 1
            reported = work.reported("broken")
            assert set(reported) <= reported_by_whole, "it reported what was not so"
            assert len(set(reported)) == len(reported), "it reported something twice"
            if work.goes_on:
                assert reported[: len(before)] == before, "it forgot what it had reported"
            before = reported
        work.check("broken", "unbroken")
        runs += 1
    return runs


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            runs = kill(kind(Path(folder)), given.times, random.Random(given.seed))
        print(f"{kind.__name__}: killed {given.times} times in {runs} runs, nothing lost")


if __name__ == "__main__":
    main()
