"""Calls that take turns, in random order: whatever else the machine does meets all of them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

Name = TypeVar("Name", bound=Hashable)
Result = TypeVar("Result")


def take_turns(
    calls: Mapping[Name, Callable[[], Result]], rounds: int, seconds: float = 0.0
) -> dict[Name, list[Result]]:
    """What each call returned, round by round: so many rounds, and more until time is up."""
    shuffle, names = random.Random(0), list(calls)
    found: dict[Name, list[Result]] = {name: [] for name in names}
    end = time.perf_counter() + seconds
    while len(found[names[0]]) < rounds or time.perf_counter() < end:
        for name in shuffle.sample(names, len(names)):
            found[name].append(calls[name]())
    return found


def timed(call: Callable[[], object]) -> Callable[[], float]:
    """A call that returns the seconds it took."""

    def run() -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    return run
