"""Masks and weights: each window's share in the value, and which pixels it sees."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from . import _border
from ._autocast import full_precision
from ._checks import BORDERS, check_beside, fraction
from ._filter import filter_axes
from ._request import Request, Settings, accumulate_dtype, is_captured


def _is_proxied() -> bool:
    """Whether make_fx records what is computed."""
    if torch._C._len_torch_dispatch_stack() == 0:
        return False
    from torch.fx.experimental.proxy_tensor import get_proxy_mode

    return get_proxy_mode() is not None


def verify(holds: Tensor, message: str, of_images: bool = False) -> None:
    """A ValueError unless all of ``holds``; where nobody may look at values, when it runs.

    of_images: there is one for each image, and the error says which ones fail.
    """
    is_later = torch.compiler.is_compiling() or isinstance(holds, FakeTensor)
    if is_later or is_captured(holds) or _is_proxied():
        torch._assert_async(holds.all(), f"ssim_fused: {message}")
    elif torch._C._functorch.is_functorch_wrapped_tensor(holds):
        verify(torch._C._functorch.get_unwrapped(holds), message)
    elif not holds.is_meta and not holds.all():
        which = f" in images {(~holds).nonzero().flatten().tolist()}" if of_images else ""
        raise ValueError(message + which)


# at::internal::GRAIN_SIZE: from here on torch cuts a sum to a single number into one part for each
# thread; a sum to several numbers it cuts between them
_CUT_FROM = 2**15


def _sum_along(value: Tensor, axis: int) -> Tensor:
    length = value.shape[axis]
    if value.numel() == length >= _CUT_FROM:
        half = length // 2
        halves = value.narrow(axis, 0, 2 * half).unflatten(axis, (2, half)).sum(axis + 1)
        value = torch.cat((halves, value.narrow(axis, 2 * half, length % 2)), axis)
    return value.sum(axis, keepdim=True)


def sum_from(value: Tensor, first: int = 0) -> Tensor:
    """The sum over the axes from ``first`` on, kept, bitwise one for all thread counts."""
    for axis in reversed(range(first, value.dim())):
        value = _sum_along(value, axis)
    return value


def _sum_expanded(value: Tensor, shape: Sequence[int], first: int) -> Tensor:
    """The sum over the axes from ``first`` on of a value expanded to a shape; they are kept."""
    repeats = 1
    for axis in range(first, len(shape)):
        repeats *= shape[axis] // value.shape[axis]
    return sum_from(value, first) * repeats


def _shares(weight: Tensor, request: Request) -> Tensor:
    """Weights of windows, divided by their sum over what they are reduced to."""
    reduction, shape = request.settings.reduction, request.map_shape()
    if reduction != "sum":
        first = {"mean": 0, "image": 1, "channel": 2}[reduction]
        weight = weight / _sum_expanded(weight, shape, first)
    return weight.expand(shape)


def _check_each_image_counts(weight: Tensor, request: Request, what: str) -> None:
    """Every image has windows that count, or an error that names those that have none."""
    n, c = request.map_shape()[:2]
    planes = _sum_expanded(weight, request.map_shape(), 2).flatten(1).expand(n, c)
    # where each channel has a value, the lightest decides
    sums = planes.amin(1) if request.settings.reduction == "channel" else planes.sum(1)
    verify(sums > 0, what, of_images=True)


def with_shares(
    request: Request,
    mask: Tensor | None,
    threshold: float,
    weight: Tensor | None,
    given: Settings,
) -> Request:
    """A request whose windows see a mask's pixels alone, count by a weight, or both.

    given: the settings of the call, with the border that is around the images already.
    """
    if weight is not None:
        weight = _checked_weight(request, weight)
    if mask is not None:
        threshold = fraction("mask_threshold", threshold)
        request, counted = _with_mask(request, mask, threshold, given)
        if request.settings.reduction == "none":
            return request
        counted = counted.to(accumulate_dtype(request.input))
        weight = counted if weight is None else counted * weight
        what = f"mask leaves no window of which more than mask_threshold = {threshold} is seen"
        _check_each_image_counts(weight, request, what)
    return request if weight is None else request._replace(share=_shares(weight, request))


def _checked_weight(request: Request, weight: Tensor) -> Tensor:
    """A weight in the type of sums, or a clear error."""
    check_beside("weight", weight, request.input, request.map_shape()[2:])
    if request.settings.reduction == "none":
        raise ValueError("weight needs a reduction, got 'none'")
    weight = weight.to(accumulate_dtype(request.input))
    verify((weight >= 0) & (weight < math.inf), "weight must be finite and not negative")
    _check_each_image_counts(weight, request, "weight is zero all over")
    return weight


def _with_mask(
    request: Request, mask: Tensor, threshold: float, given: Settings
) -> tuple[Request, Tensor]:
    """A request with a mask and its coverage; and which windows count."""
    image = request.input
    mask = mask.to(accumulate_dtype(image))
    verify((mask >= 0) & (mask <= 1), "mask must lie in [0, 1]")
    if given.padding in BORDERS:
        mask = _border.extend(mask, given.pads(request.axes()), given.padding)
    with full_precision(image):
        seen = filter_axes(mask, request.settings)
    # rounding must not decide about windows that are seen just as far; and for those of which next
    # to nothing is seen, float32 has no digits
    margin = 2e-5 * min(threshold, 1 - threshold)
    counted = seen > max(threshold + margin, 1e-20)
    coverage = torch.where(counted, 1 / seen, torch.zeros_like(seen)).expand(request.map_shape())
    whole = request.map_shape()[:2] + list(mask.shape[2:])
    return request._replace(mask=mask.expand(whole), coverage=coverage), counted
