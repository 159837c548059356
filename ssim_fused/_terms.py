"""More terms than SSIM: squared and absolute differences, and what falls out of them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ._autocast import promised_dtype, under_autocast
from ._call import to_request, with_batch
from ._checks import (
    check_beside,
    check_pair,
    check_range,
    check_rank,
    check_settings,
    choice,
    finite,
    positive,
    resolve_range,
)
from ._masks import sum_from, verify
from ._request import Backend, Settings, accumulate_dtype, can_be_read

_SLICE = 2**19  # numbers whose differences stay in the cache


def compute_terms(
    backend: Backend,
    input: Tensor,
    target: Tensor,
    term_weights: tuple[float, float, float],
    mask: Tensor | None,
    mask_threshold: float,
    *,
    data_range: float | None = None,
    **names: Any,
) -> tuple[Tensor, tuple[Tensor, ...], Tensor, float]:
    """image_loss, by a backend: the loss, its detached terms, the MSE unrounded, the data range.

    names: as in ssim_loss.
    """
    ssim, mse, l1 = term_weights
    term_weights = finite("ssim", ssim), finite("mse", mse), finite("l1", l1)
    if not any(term_weights):
        raise ValueError("at least one of the weights ssim, mse and l1 must not be 0")
    settings = check_settings(data_range=resolve_range(data_range, input), **names)
    input, target = under_autocast(input, target)
    one_pass = settings.padding in ("same", "valid") and mask is None
    one_pass = one_pass and term_weights[0] != 0 and any(term_weights[1:])
    if one_pass:
        made = backend.image_terms(to_request(input, target, settings)[0], term_weights)
        value, found = made[0], made.detach().unbind()[1:]
    else:
        value, found = _separate_terms(
            backend, input, target, settings, term_weights, mask, mask_threshold
        )
    dtype, terms = promised_dtype(input), found
    if value.dtype != dtype:  # asking each term takes longer
        value, terms = value.to(dtype), tuple(term.to(dtype) for term in found)
    elif one_pass:
        value = value.clone()  # a view is not to be written to, and FSDP2 warns of one
    return value, terms, found[1], settings.data_range


def _separate_terms(
    backend: Backend,
    input: Tensor,
    target: Tensor,
    settings: Settings,
    term_weights: tuple[float, float, float],
    mask: Tensor | None,
    mask_threshold: float,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Loss and detached terms, in the type of sums, where one pass does not serve.

    That is for masks, volumes, borders, or no SSIM at all.
    """
    axes = check_rank(input, target, settings.spatial_dims)
    if term_weights[0]:
        request, _ = to_request(input, target, settings, mask, mask_threshold)
        alone = backend.image_terms(request, (1.0, 0.0, 0.0))[0]
    else:
        alone = input.new_zeros((), dtype=accumulate_dtype(input))
    seen = None
    if mask is not None:
        batched = input.dim() == axes + 2
        image = input if batched else input.unsqueeze(0)
        seen = with_batch(mask, axes, batched) if isinstance(mask, Tensor) else mask
        check_beside("mask", seen, image, image.shape[2:])
        seen = seen.to(accumulate_dtype(input))
        _check_seen(seen)
        seen = seen if batched else seen.squeeze(0)
    found = [alone, *differences(input, target, term_weights[1:], seen)]
    return weighted_sum(term_weights, found), tuple(term.detach() for term in found)


def _check_seen(seen: Tensor) -> None:
    verify((seen >= 0) & (seen <= 1), "mask must lie in [0, 1]")
    sums = sum_from(seen, 1).flatten()
    verify(sums > 0, "mask is zero all over", of_images=True)


def to_psnr(mse: Tensor, data_range: float) -> Tensor:
    """Decibels; a quotient such as 255^2 / mse may be beyond its type."""
    check_range("square", data_range * data_range, data_range, mse)
    return 20 * math.log10(data_range) - 10 * torch.log10(mse.to(accumulate_dtype(mse)))


def differences(
    input: Tensor, target: Tensor, weights: Sequence[float], seen: Tensor | None = None
) -> list[Tensor]:
    """Means of squared and of absolute differences, weighted with ``seen``; 0 for a weight of 0.

    seen: (N or 1, C or 1, ...).
    """
    means = zip(weights, (torch.square, torch.abs))
    zero = input.new_zeros((), dtype=accumulate_dtype(input))
    return [_mean_of(of, input, target, seen) if weight else zero for weight, of in means]


def _mean_of(
    of: Callable[[Tensor], Tensor], input: Tensor, target: Tensor, seen: Tensor | None
) -> Tensor:
    dtype = accumulate_dtype(input)
    difference = input.to(dtype) - target.to(dtype)
    if seen is None:
        # a sum and not a mean: of images in many processes it is the sum of theirs
        return sum_from(of(difference)).squeeze() / difference.numel()
    # what is not seen may be NaN
    difference = torch.where(seen > 0, difference, torch.zeros_like(difference))
    copies = difference.numel() // seen.numel()  # one mask may be for all channels or images
    return (sum_from(of(difference) * seen) / (copies * sum_from(seen))).squeeze()


def weighted_sum(weights: Sequence[float], terms: Sequence[Tensor]) -> Tensor:
    """The sum of terms that have a weight."""
    parts = [weight * term for weight, term in zip(weights, terms) if weight]
    return functools.reduce(torch.add, parts)


def _square_sums(input: Tensor, target: Tensor, first: int) -> Tensor:
    """Sums of squared differences over the axes from ``first`` on, which are kept.

    On the CPU large images go in slices of rows, as getting memory for the differences of whole
    ones takes several times as long as computing them.
    """
    rows = max(1, input.dim() - 2)
    whole = input.numel() <= _SLICE or input.dim() == 1
    if whole or not (can_be_read(input) and can_be_read(target)):
        return _squares(input, target, first)
    length = max(1, _SLICE * input.shape[rows] // input.numel())
    slices = zip(input.split(length, rows), target.split(length, rows))
    return sum_from(torch.cat([_squares(x, y, 1) for x, y in slices], rows), first)


def _squares(input: Tensor, target: Tensor, first: int) -> Tensor:
    dtype = accumulate_dtype(input)
    return sum_from((input.to(dtype) - target.to(dtype)).square(), first)


def compute_psnr(input: Tensor, target: Tensor, data_range: float | None, reduction: str) -> Tensor:
    """Peak signal-to-noise ratio."""
    choice("reduction", reduction, ("mean", "image"))
    data_range = positive("data_range", resolve_range(data_range, input))
    input, target = under_autocast(input, target)
    check_pair(input, target)
    pooled = reduction == "mean"
    sums = _square_sums(input, target, 0 if pooled else 1).flatten()
    mse = sums * len(sums) / input.numel()
    return to_psnr(mse.squeeze() if pooled else mse, data_range)
