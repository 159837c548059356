"""Taps of windows: the Gaussian, and how a window is rounded to float32."""

from __future__ import annotations

import math


def gaussian_window(window_size: int, sigma: float) -> tuple[float, ...]:
    """Taps of a 1-D Gaussian that sum to 1."""
    half = window_size // 2
    distances = [i / sigma for i in range(-half, half + 1)]
    taps = [math.exp(-0.5 * distance * distance) for distance in distances]
    total = math.fsum(taps)
    return tuple(tap / total for tap in taps)


def _single(value: float) -> float:
    """The nearest float32."""
    fraction, exponent = math.frexp(value)
    return math.ldexp(round(math.ldexp(fraction, 24)), exponent - 24)


def single_window(window: tuple[float, ...]) -> tuple[float, ...]:
    """Taps in float32 that sum to 1 as nearly as they can.

    Taps that sum to 1 + e make each variance wrong by e times the squared mean: of a bright image,
    with the 6e-8 of one rounding, the value's sixth digit. What is missing goes to the largest, of
    a uniform window's the outermost, and what is left of it to small taps, whose steps are finer;
    none is so small that it would show.
    """
    taps = [_single(tap) for tap in window]
    middle = len(taps) // 2

    def add_missing(i: int) -> None:
        share = (1 - math.fsum(taps)) / (1 if i == middle else 2)
        taps[i] = taps[-1 - i] = _single(taps[i] + share)

    largest = max(range(middle + 1), key=taps.__getitem__)
    add_missing(largest)
    fine = [i for i in range(middle + 1) if i != largest and taps[i] > 1e-4 * taps[largest]]
    if fine:
        add_missing(min(fine, key=taps.__getitem__))
    return tuple(taps)
