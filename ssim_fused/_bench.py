"""The short benchmark: SSIM and its gradient against what people write themselves, verified first.

``benchmarks/`` in the repository has the long one, with every other library.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ._windows import gaussian_window
from .functional import ssim_loss

SHAPES = ((128, 1, 28, 28), (4, 3, 128, 128), (1, 3, 270, 480))
_ROUNDS = 3
_AT_LEAST = 0.02  # seconds of calls for one time


class Row(NamedTuple):
    """Median times of a call, in milliseconds."""

    images: str
    what: str
    ours: float
    usual: float


def conv2d_loss(input: Tensor, target: Tensor) -> Tensor:
    """1 - SSIM by five 11 x 11 convolutions of each channel, in the images' type."""
    channels = input.shape[1]
    taps = torch.tensor(gaussian_window(11, 1.5), dtype=input.dtype)
    kernel = torch.outer(taps, taps).expand(channels, 1, 11, 11).contiguous()

    def mean(image: Tensor) -> Tensor:
        return F.conv2d(image, kernel, padding=5, groups=channels)

    mu_x, mu_y = mean(input), mean(target)
    sigma_x_sq = mean(input.square()) - mu_x.square()
    sigma_y_sq = mean(target.square()) - mu_y.square()
    sigma_xy = mean(input * target) - mu_x * mu_y
    c1, c2 = 0.01**2, 0.03**2
    above = (2 * mu_x * mu_y + c1) * (2 * sigma_xy + c2)
    below = (mu_x.square() + mu_y.square() + c1) * (sigma_x_sq + sigma_y_sq + c2)
    return 1 - (above / below).mean()


def _step(loss: Callable[[Tensor, Tensor], Tensor], input: Tensor, target: Tensor) -> Tensor:
    input.grad = None
    value = loss(input, target)
    value.backward()
    return value


def _seconds(call: Callable[[], object]) -> float:
    calls, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < _AT_LEAST:
        call()
        calls += 1
    return passed / calls


def measure(threads: int | None = None) -> Iterator[Row]:
    """Times of the value and of a step (value and gradient), the two in turns.

    Args:
        threads: torch's number of threads; as it is by default.

    Raises:
        RuntimeError: the two do not compute the same.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    for shape in SHAPES:
        target = torch.rand(shape, generator=generator)
        noise = 0.1 * torch.randn(shape, generator=generator)
        input = (target + noise).clamp(0, 1).requires_grad_()
        losses = (ssim_loss, conv2d_loss)
        values = [loss(input.detach(), target).item() for loss in losses]
        if abs(values[0] - values[1]) > 1e-4:
            raise RuntimeError(f"ssim_fused and five conv2d differ: {values[0]} and {values[1]}")
        images = "x".join(map(str, shape))
        pair = input.detach(), target
        yield _row(images, "value", [functools.partial(of, *pair) for of in losses])
        yield _row(images, "step", [functools.partial(_step, of, input, target) for of in losses])


def _row(images: str, what: str, calls: list[Callable[[], object]]) -> Row:
    for call in calls:
        call()
    times = [[_seconds(call) for call in calls] for _ in range(_ROUNDS)]
    return Row(images, what, *(1e3 * statistics.median(of_one) for of_one in zip(*times)))
