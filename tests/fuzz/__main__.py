"""``python -m fuzz [--seconds 60] [--seed 0]``: arbitrary calls of the native operators.

The call that is being made stands in .cache/fuzz_call.txt, for the case that it does not return;
a finding goes into corpus.py.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from pathlib import Path

import hypothesis
import torch

from . import Case, run
from .strategies import cases

CALL = Path(__file__).resolve().parents[2] / ".cache" / "fuzz_call.txt"


def main() -> None:
    """Make calls until the time is over, each round from the next seed."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    CALL.parent.mkdir(exist_ok=True)
    made: Counter[str] = Counter()
    seed, end = arguments.seed, time.monotonic() + arguments.seconds

    def call(case: Case) -> None:
        CALL.write_text(f"{case}\n")
        made[f"{case.operator} {run(case)}"] += 1

    while time.monotonic() < end:
        rounds = hypothesis.settings(max_examples=100, deadline=None, database=None)
        given = hypothesis.given(cases())(call)
        hypothesis.seed(seed)(rounds(given))()
        seed += 1
    for name, count in sorted(made.items()):
        print(f"{name}: {count}")
    print(f"done: {sum(made.values())} calls, seeds {arguments.seed} to {seed - 1}")


if __name__ == "__main__":
    main()
