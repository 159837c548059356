"""What the stand-ins for other libraries share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from .._checks import WHOLE
from .._multiscale import combine
from ..functional import ssim, ssim_loss

# 1 - factor of one scale, [N] or [N, C]; whether it is the coarsest
Factor = Callable[[Tensor, Tensor, bool], Tensor]


def uncovered(what: str) -> NoReturn:
    """Refuse what a stand-in does not do."""
    raise NotImplementedError(f"ssim_fused.compat does not cover {what}")


def similarity(input: Tensor, target: Tensor, **settings: Any) -> Tensor:
    """Call :func:`ssim_fused.ssim` for one value."""
    value = ssim(input, target, **settings)
    assert isinstance(value, Tensor)
    return value


def loss(input: Tensor, target: Tensor, **settings: Any) -> Tensor:
    """Call :func:`ssim_fused.ssim_loss`."""
    return ssim_loss(input, target, **settings)


def multiscale_loss(
    input: Tensor,
    target: Tensor,
    betas: Sequence[float],
    factor: Factor,
    halve: Callable[[Tensor], Tensor],
    normalize: str | None = "relu",
) -> Tensor:
    """1 - MS-SSIM for pyramids and factors that :func:`ssim_fused.ms_ssim_loss` does not have."""
    losses = []
    for left in reversed(range(len(betas))):
        losses.append(factor(input, target, left == 0))
        if left:
            input, target = halve(input), halve(target)
    return combine(torch.stack(losses), tuple(betas), normalize)


def term(coarsest: bool) -> str:
    """The term of SSIM that a scale contributes to MS-SSIM."""
    return "ssim" if coarsest else "contrast_structure"


def check_shapes(first: Tensor, second: Tensor, axes: Sequence[int]) -> None:
    """One shape, with one of these numbers of axes, or a ValueError."""
    if first.shape != second.shape or first.dim() not in axes:
        ranks = " or ".join(map(str, axes))
        raise ValueError(
            f"images must have one shape of {ranks} axes, "
            f"got {tuple(first.shape)} and {tuple(second.shape)}"
        )


def number(data_range: Any) -> float:
    """A data range as a number; one that asks for a gradient would get none."""
    if isinstance(data_range, Tensor) and data_range.requires_grad:
        raise ValueError("the data range must not require a gradient: there is none for it")
    return float(data_range)


def readable(image: Tensor) -> Tensor:
    """Whole numbers in float32, but for those that the kernels read."""
    known = image.is_floating_point() or image.is_complex() or image.dtype in WHOLE
    return image if known else image.float()


def odd_window(size: int | Sequence[int]) -> None:
    """Refuse windows with an even number of taps, which have no middle."""
    sizes = size if isinstance(size, Sequence) else (size,)
    if any(taps % 2 == 0 for taps in sizes):
        uncovered(f"windows with an even number of taps, got {size}")
