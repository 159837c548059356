"""Multi-scale SSIM: the product of SSIM's factors over a pyramid of halved images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _border
from ._autocast import promised_dtype, under_autocast
from ._checks import (
    BORDERS,
    WHOLE,
    by,
    check_images,
    check_rank,
    check_settings,
    choice,
    flag,
    hashable,
    nonnegative,
    resolve_range,
)
from ._distributed import constants, is_spread
from ._masks import sum_from
from ._request import Backend, Request, Settings, accumulate_dtype, can_be_read

# Wang, Simoncelli, Bovik 2003, section 3.2
BETAS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
NORMALIZE = (None, "relu", "simple")
POOLINGS = ("floor", "pad", "edge")
# below this a factor's power goes to 0 in a straight line, so its slope stays finite
LEAST = 1e-6


def check_multiscale(
    betas: Sequence[float],
    normalize: str | None,
    pooling: str,
    per_channel: bool,
    reduction: str,
    spatial_dims: int | None,
) -> tuple[float, ...]:
    """The settings that single-scale SSIM does not have, or a clear error; the betas."""
    choice("normalize", normalize, NORMALIZE)
    choice("pooling", pooling, POOLINGS)
    reductions = ("mean", "image", "channel")
    choice("reduction", reduction, reductions[: 3 if flag("per_channel", per_channel) else 2])
    choice("spatial_dims", spatial_dims, (None, 2, 3))
    betas = hashable("betas", betas)
    if not isinstance(betas, tuple) or not betas:
        raise TypeError(f"betas must be a list of numbers, one for each scale, got {betas!r}")
    betas = tuple(nonnegative(f"betas[{i}]", beta) for i, beta in enumerate(betas))
    if not any(betas):
        raise ValueError(f"betas must not all be 0, got {betas}")
    return betas


def _smallest(settings: Settings, axes: int, scales: int, pooling: str) -> list[int]:
    """The smallest images whose coarsest scale the window still fits."""
    halvings = 2 ** (scales - 1)
    smallest = []
    for taps in settings.taps(axes):
        least = {"valid": taps, "reflect": taps // 2 + 1, "circular": taps // 2}
        size = max(least.get(settings.padding, 1), 1)
        smallest.append(size * halvings if pooling == "floor" else (size - 1) * halvings + 1)
    return smallest


def _check_size(image: Tensor, settings: Settings, axes: int, scales: int, pooling: str) -> None:
    smallest = _smallest(settings, axes, scales, pooling)
    size = image.shape[-axes:]
    if any(length < least for length, least in zip(size, smallest)):
        way = "fewer betas" if settings.padding == "same" else "fewer betas, or padding='same'"
        raise ValueError(
            f"{scales} scales with this window and padding {settings.padding!r} need images of at "
            f"least {by(smallest)}, got {by(size)}: give {way}"
        )


def _to_even(image: Tensor, axes: int) -> Tensor:
    """The last pixel twice along each axis of odd length."""
    for axis in range(-axes, 0):
        length = image.shape[axis]
        if length % 2:
            image = torch.cat((image, image.narrow(axis, length - 1, 1)), dim=axis)
    return image


def halve(image: Tensor, offset: tuple[int, ...]) -> Tensor:
    """Means of 2 x 2 (x 2) pixels, in the type of sums; offset: see ssim_fused._ops.scale."""
    image = image.to(accumulate_dtype(image))
    if is_spread(image):  # DTensor knows no pooling's gradient
        return _average_pairs(image, offset)
    if len(offset) == 2:
        return F.avg_pool2d(image, 2, padding=offset)
    return F.avg_pool3d(image, 2, padding=offset)


def _average_pairs(image: Tensor, offset: tuple[int, ...]) -> Tensor:
    """The same, one axis after the other."""
    for axis, is_padded in enumerate(offset, start=2):
        if is_padded:
            image = torch.cat((torch.zeros_like(image.narrow(axis, 0, 1)), image), dim=axis)
        half = image.shape[axis] // 2
        image = image.narrow(axis, 0, 2 * half).unflatten(axis, (half, 2)).mean(axis + 1)
    return image


def _next_scale(image: Tensor, pooling: str) -> Tensor:
    """The image halved, by a word of POOLINGS."""
    if pooling == "edge":
        image = _to_even(image.to(accumulate_dtype(image)), image.dim() - 2)
    return halve(image, _offset(image, pooling))


def _offset(image: Tensor, pooling: str) -> tuple[int, ...]:
    return tuple(length % 2 if pooling == "pad" else 0 for length in image.shape[2:])


def _factors(
    backend: Backend, input: Tensor, target: Tensor, settings: Settings, scales: int, pooling: str
) -> list[Tensor]:
    """1 minus the factor of each scale, [N, C]: contrast-structure, and SSIM at the coarsest."""
    losses = []
    inside = settings._replace(reduction="channel")
    if settings.padding in BORDERS:
        inside = inside._replace(padding="valid")
    for i in range(scales):
        last = i == scales - 1
        kind = "ssim" if last else "contrast_structure"
        request = Request(input, target, inside._replace(kind=kind))
        if settings.padding in BORDERS:
            pads = settings.pads(input.dim() - 2)
            request = request._replace(
                input=_border.extend(input, pads, settings.padding),
                target=_border.extend(target, pads, settings.padding),
            )
        # asked of "edge" alone: compiled code is made for the answer
        twice = pooling == "edge" and any(length % 2 for length in input.shape[2:])
        if not last and settings.padding not in BORDERS and not twice:
            planes, input, target = backend.scale(request, _offset(input, pooling))
        else:
            planes = backend.reduced_loss(request)
            if not last:
                input, target = (_next_scale(image, pooling) for image in (input, target))
        losses.append(planes)
    return losses


def _are_far(losses: Tensor) -> bool:
    """Whether all factors are far enough above 0, told without waiting for a device."""
    if not can_be_read(losses) or torch._C._are_functorch_transforms_active():
        return False
    return losses.detach().max().item() < 1 - LEAST


def combine(losses: Tensor, betas: tuple[float, ...], normalize: str | None) -> Tensor:
    """1 - MS-SSIM of [scales, ...] losses of the factors, exact for small ones.

    In float64: a vector's powers and a single number's differ in float32's last digit, so that an
    image's value would depend on how many others are in its batch.
    """
    dtype = losses.dtype
    if losses.device.type != "mps":
        losses = losses.double()
    if not all(betas):  # s^0 is 1: these have no say
        used = [i for i, beta in enumerate(betas) if beta]
        losses = torch.stack([losses[i] for i in used])
        betas = tuple(betas[i] for i in used)
    exponents = constants(betas, losses).view(-1, *(1,) * (losses.dim() - 1))
    if normalize == "simple":
        losses = losses / 2
    # factors s = 1 - loss; log(s) of those that are far enough above 0, to which powers apply
    all_far = _are_far(losses)
    far = losses if all_far else losses.clamp(max=1 - LEAST)
    power = -torch.expm1((exponents * torch.log1p(-far)).sum(0))
    if all_far:  # what follows would change nothing
        return power.to(dtype)
    # the least of the others, 0 <= s < LEAST, scales the product down to 0
    near = ((1 - losses) / LEAST).clamp(0, 1).amin(0)
    loss = torch.lerp(torch.ones_like(power), power, near)
    if normalize is None:  # beyond 0 it goes on in a straight line
        loss = loss + (exponents * (losses - 1).clamp(min=0)).sum(0)
    return loss.to(dtype)


def compute_multiscale(
    backend: Backend,
    input: Tensor,
    target: Tensor,
    *,
    betas: Sequence[float] = BETAS,
    normalize: str | None = None,
    pooling: str = "floor",
    per_channel: bool = True,
    data_range: float | None = None,
    padding: str = "valid",
    reduction: str = "mean",
    spatial_dims: int | None = None,
    **names: Any,
) -> Tensor:
    """ms_ssim_loss, by a backend; names: the other settings, as in ssim_loss."""
    exponents = check_multiscale(betas, normalize, pooling, per_channel, reduction, spatial_dims)
    settings = check_settings(
        data_range=resolve_range(data_range, input),
        padding=padding,
        spatial_dims=spatial_dims,
        **names,
    )
    input, target = under_autocast(input, target)
    axes = check_rank(input, target, spatial_dims)
    _check_size(input, settings, axes, len(exponents), pooling)
    check_images(input, target, settings)
    dtype = promised_dtype(input)
    batched = input.dim() == axes + 2
    if not batched:
        input, target = input.unsqueeze(0), target.unsqueeze(0)
    if input.dtype in WHOLE:
        # contiguous rows are halved faster
        input, target = input.contiguous().float(), target.contiguous().float()
    losses = torch.stack(_factors(backend, input, target, settings, len(exponents), pooling))
    if not per_channel:
        losses = losses.mean(2)
    value = combine(losses, exponents, normalize)
    if reduction == "mean":
        value = sum_from(value).squeeze() / value.numel()
    elif reduction == "image" and per_channel:
        value = value.mean(1)
    if not batched and reduction != "mean":
        value = value.squeeze(0)
    return value.to(dtype)
