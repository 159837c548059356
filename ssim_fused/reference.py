"""SSIM in plain PyTorch: the oracle of the tests, and the path where no native code serves.

``ssim``, ``ssim_loss`` and ``ms_ssim_loss`` of ``ssim_fused`` with their arguments, on any device,
differentiable to any order. The window is applied as 1-D convolutions to u = x + y, v = x - y and
their squares, and the loss is formed without subtraction, so it stays accurate near convergence::

    a = m_u^2 / 2 + C1      p = m_v^2      A = a + p / 2
    b = V_u / 2 + C2        q = V_v        B = b + q / 2
    1 - SSIM = (a q + p b) / (A B)

Half-precision images are computed in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._autocast import full_precision
from ._call import compute_ssim, finish, prepare
from ._filter import filter_axes, pad
from ._multiscale import compute_multiscale, halve
from ._request import Backend, ReducedLoss, Request, Settings, accumulate_dtype
from ._terms import differences, weighted_sum

# where a pivot is looked for, along a diagonal; it is the median of the first three
_PIVOT_PLACES = (0.125, 0.5, 0.875, 0.25, 0.375, 0.625, 0.75)


def _pivots(
    input: Tensor, target: Tensor, settings: Settings, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """What is taken away from each plane, (N, C, 1, ...), so that flat areas keep their digits.

    As csrc/ssim_math.h has it (Pivot): the median of three pixels; where one is masked or infinite,
    or the median far out of the data range, the first pixel that is not, else the least.
    """
    size = input.shape[2:]
    nothing = input.new_zeros(())
    if any(length < count for length, count in zip(size, settings.taps(len(size)))):
        # every window holds zeros from outside: nothing to gain
        return nothing, nothing

    def pixels(image: Tensor) -> Tensor:
        found = []
        for place in _PIVOT_PLACES:
            pixel = image.detach()
            for axis, length in enumerate(size, start=2):
                pixel = pixel.narrow(axis, int(place * length), 1)
            found.append(pixel)
        return torch.cat(found, dim=2)

    a, b = pixels(input), pixels(target)
    distance = torch.maximum(a.abs(), b.abs()).clamp(min=1.25 * settings.data_range)
    is_candidate = torch.isfinite(distance)
    if mask is not None:
        is_candidate = is_candidate & (pixels(mask) > 0)
    distance = torch.where(is_candidate, distance, torch.inf)
    nearest = distance.argmin(dim=2, keepdim=True)
    takes_part = is_candidate.any(dim=2, keepdim=True)
    has_three = is_candidate.narrow(2, 0, 3).all(dim=2, keepdim=True)
    middles = [_median_of_three(image) for image in (a, b)]
    largest = torch.maximum(middles[0].abs(), middles[1].abs())
    is_typical = has_three & (largest <= 1.25 * settings.data_range)
    pivot_input, pivot_target = (
        torch.where(is_typical, middle, torch.where(takes_part, image.gather(2, nearest), nothing))
        for image, middle in zip((a, b), middles)
    )
    return pivot_input, pivot_target


def _median_of_three(pixels: Tensor) -> Tensor:
    """Of the first three along axis 2."""
    first, second, third = (pixels.narrow(2, i, 1) for i in range(3))
    low, high = torch.minimum(first, second), torch.maximum(first, second)
    return torch.maximum(low, torch.minimum(high, third))


def _form(settings: Settings, a: Tensor, b: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """The loss of a kind, from the terms at the head of this file."""
    if settings.kind == "contrast_structure":
        return q / (b + q / 2)
    if settings.kind == "luminance":
        return p / (a + p / 2)
    delta = (a * q + p * b) / ((a + p / 2) * (b + q / 2))
    # a clamped SSIM has no slope, also where it is just 0
    return torch.where(delta < 1, delta, 1.0) if settings.kind == "nonnegative" else delta


def loss_map(request: Request) -> Tensor:
    """1 - SSIM, or the loss of another kind, at each window."""
    input, target, settings, _, mask, coverage = request
    if mask is not None:
        nothing = input.new_zeros(())
        input, target = (
            torch.where(mask > 0, input, nothing),
            torch.where(mask > 0, target, nothing),
        )
    scale = 1.0 / settings.data_range
    difference = input - target  # exact for images that are near each other
    pivot_input, pivot_target = _pivots(input, target, settings, mask)
    pivot_v = pivot_input - pivot_target
    # what lies outside is 0, or, where there is a mask, not seen
    u = (pad(input, settings) - pivot_input + (pad(target, settings) - pivot_target)) * scale
    v = (pad(difference, settings) - pivot_v) * scale
    pivot_u, pivot_v = (pivot_input + pivot_target) * scale, pivot_v * scale
    inside = settings._replace(padding="valid")
    products = [u, v, u * u, v * v]
    if mask is not None:
        seen = pad(mask, settings)
        products = [product * seen for product in products]
    m_u, m_v, e_u, e_v = filter_axes(torch.cat(products, dim=1), inside).chunk(4, dim=1)
    if coverage is not None:
        m_u, m_v, e_u, e_v = (moment * coverage for moment in (m_u, m_v, e_u, e_v))

    b = (e_u - m_u * m_u).clamp(min=0) / 2 + settings.k2**2
    q = (e_v - m_v * m_v).clamp(min=0)
    a = (m_u + pivot_u).square() / 2 + settings.k1**2
    p = (m_v + pivot_v).square()
    delta = _form(settings, a, b, p, q)
    return delta if coverage is None else torch.where(coverage > 0, delta, 0.0)


def reduced_loss(request: Request) -> Tensor:
    """1 - SSIM, reduced; half-precision images give a float32 value."""
    input, reduction = request.input, request.settings.reduction
    dtype = accumulate_dtype(input)
    with full_precision(input):
        delta = loss_map(request._replace(input=input.to(dtype), target=request.target.to(dtype)))
    if reduction == "none":
        return delta.to(input.dtype) if input.is_floating_point() else delta
    across = tuple(range({"image": 1, "channel": 2}.get(reduction, 0), delta.dim()))
    if request.share is not None:
        return (delta * request.share).sum(across)
    return delta.sum() if reduction == "sum" else delta.mean(across)


def separate_terms(loss: ReducedLoss, request: Request, term_weights: tuple[float, ...]) -> Tensor:
    """[4]: the weighted sum of a backend's SSIM loss, MSE and L1; and the three, unweighted."""
    terms = [loss(request), *differences(request.input, request.target, term_weights[1:])]
    return torch.stack((weighted_sum(term_weights, terms), *terms))


def image_terms(request: Request, term_weights: tuple[float, ...]) -> Tensor:
    """The same as :func:`ssim_fused._ops.image_terms` in plain PyTorch."""
    return separate_terms(reduced_loss, request, term_weights)


def pooled_scale(
    loss: ReducedLoss, request: Request, offset: tuple[int, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """One scale of MS-SSIM by a backend's loss, and the images halved; see _ops.scale."""
    return loss(request), halve(request.input, offset), halve(request.target, offset)


def scale(request: Request, offset: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """The same as :func:`ssim_fused._ops.scale` in plain PyTorch."""
    return pooled_scale(reduced_loss, request, offset)


BACKEND = Backend(reduced_loss, image_terms, scale)


def ssim_loss(input: Tensor, target: Tensor, **settings: Any) -> Tensor:
    """:func:`ssim_fused.ssim_loss` in plain PyTorch; see there."""
    request, promise = prepare(input, target, **settings)
    return finish(reduced_loss(request), promise)


def ssim(
    input: Tensor, target: Tensor, *, return_cs: bool = False, **settings: Any
) -> Tensor | tuple[Tensor, Tensor]:
    """:func:`ssim_fused.ssim` in plain PyTorch; see there."""
    request, promise = prepare(input, target, **settings)
    return compute_ssim(BACKEND, request, promise, return_cs)


def ms_ssim_loss(input: Tensor, target: Tensor, **settings: Any) -> Tensor:
    """:func:`ssim_fused.ms_ssim_loss` in plain PyTorch; see there."""
    return compute_multiscale(BACKEND, input, target, **settings)


__all__ = ["ms_ssim_loss", "ssim", "ssim_loss"]
