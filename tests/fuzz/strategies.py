"""Hypothesis strategies of calls: most of a call is right, something may be wrong."""

from __future__ import annotations

import math

import torch
from hypothesis import strategies as st

from ssim_fused._windows import gaussian_window

from . import DTYPES, LAYOUTS, OPERATORS, VALUES, Case, Image

WINDOWS = [
    *((tuple(gaussian_window(size, 1.5)), (size,)) for size in (11, 11, 11, 1, 3, 7, 21, 33)),
    (tuple(gaussian_window(3, 1.0)) + tuple(gaussian_window(11, 1.5)), (3, 11)),
    (tuple(gaussian_window(1, 1.0)) * 2 + tuple(gaussian_window(5, 1.0)), (1, 1, 5)),
]
WRONG_WINDOWS = [
    *(((), ()), ((1.0,), (3,)), ((0.5, 0.5), (2,)), ((0.2, 0.3, 0.5), (3,)), ((1.0,), (-1,))),
    *(((math.nan,) * 3, (3,)), ((1e308,) * 5, (5,)), ((0.0,) * 11, (11,)), ((1.0,), (2**62 + 1,))),
    *(((1.0,) * 3, (1, 1, 1)), ((1.0, 1.0), (1, 1, 1, 1))),
]
NUMBERS = [1.0, 255.0, 1e-6, 65535.0, 1e-30, 1e30, 0.0, -1.0, math.nan, math.inf]


def mostly(right, wrong):
    """What is right, and now and then what is wrong."""
    return st.integers(0, 79).flatmap(lambda i: wrong if i == 0 else right)


shapes = mostly(
    st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 40), st.integers(1, 70))
    | st.tuples(*[st.integers(1, 2)] * 2, st.integers(1, 12), *[st.integers(1, 20)] * 2),
    st.lists(st.integers(0, 13), max_size=6).map(tuple),
)
dtypes = mostly(st.sampled_from(DTYPES[:2]) | st.sampled_from(DTYPES[:6]), st.sampled_from(DTYPES))
values = st.just("uniform") | st.sampled_from(VALUES)
seeds = st.integers(0, 2**16)


@st.composite
def images(draw, shape, dtype):
    """An image that goes with others of this shape and type, or nearly so."""
    return Image(
        draw(mostly(st.just(shape), shapes)),
        draw(mostly(st.just(dtype), dtypes)),
        draw(st.sampled_from(LAYOUTS)),
        draw(values),
        draw(seeds),
        draw(mostly(st.just("cpu"), st.just("meta"))),
        draw(mostly(st.just(""), st.sampled_from(["same", "view"]))),
    )


@st.composite
def cases(draw):
    """A call of any operator."""
    operator = draw(st.sampled_from(OPERATORS))
    shape, dtype = draw(shapes), draw(dtypes)
    window, taps = draw(mostly(st.sampled_from(WINDOWS), st.sampled_from(WRONG_WINDOWS)))
    valid = draw(st.booleans())
    accumulate = torch.float64 if dtype == torch.float64 else torch.float32
    sides = list(taps) * (len(shape) - 2) if len(taps) == 1 else list(taps)
    shrunk = [length - (side - 1 if valid else 0) for length, side in zip(shape[2:], sides)]
    of_map = (*shape[:2], *(max(length, 0) for length in shrunk))
    offset = draw(mostly(st.tuples(*[st.integers(0, 1)] * 2), st.lists(st.integers(-1, 2))))
    half = tuple((length + more) // 2 for length, more in zip(shape[2:], offset))
    if operator in ("unpool", "unpool_"):
        dtype = draw(mostly(st.just(accumulate), dtypes))
        weight = draw(images(shape[:2], accumulate))
        mask = draw(st.none() | images((*shape[:2], *half), accumulate))
        coverage = None
    else:
        needed = operator == "loss_backward"
        weight = images(of_map, accumulate)
        weight = draw(weight if needed else st.none() | weight)
        is_masked = draw(st.booleans())
        mask = draw(images(shape, accumulate)) if is_masked else None
        coverage = draw(images(of_map, accumulate)) if is_masked else None
    number = mostly(st.just(1.0), st.sampled_from(NUMBERS))
    reduction = draw(mostly(st.integers(0, 2), st.integers()))
    # only a mean has them
    terms = (
        st.just(())
        if reduction
        else st.just(()) | st.tuples(*[st.sampled_from([0.0, 1.0, -1.0, 1e30, math.nan])] * 3)
    )
    return Case(
        operator,
        draw(images(shape, dtype)),
        draw(images(shape, dtype)),
        weight,
        mask,
        coverage,
        window,
        taps,
        draw(number),
        draw(mostly(st.just(0.01), st.sampled_from(NUMBERS))),
        draw(mostly(st.just(0.03), st.sampled_from(NUMBERS))),
        valid,
        draw(mostly(st.integers(0, 3), st.integers())),
        reduction,
        draw(mostly(terms, st.lists(st.floats(), max_size=5).map(tuple))),
        tuple(offset),
        draw(st.tuples(st.booleans(), st.booleans())),
    )
