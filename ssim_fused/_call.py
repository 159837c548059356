"""What every way of computing the loss shares: checks, shapes, borders, autocast, dtypes."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from . import _border
from ._autocast import promised_dtype, under_autocast
from ._checks import (
    BORDERS,
    Sigma,
    Taps,
    Window,
    check_beside,
    check_images,
    check_settings,
    resolve_range,
)
from ._masks import sum_from, with_shares
from ._request import Backend, Request, Settings, value_dtype


def _sample_covariance(settings: Settings, axes: int) -> Settings:
    """Variances divided by the number of pixels less one: k2 divided instead, which is the same."""
    pixels = math.prod(settings.taps(axes))
    if pixels == 1:
        raise ValueError("sample_covariance needs a window of more than one pixel")
    return settings._replace(k2=settings.k2 * math.sqrt((pixels - 1) / pixels))


def _for_rows(settings: Settings) -> Settings:
    """Settings of signals, for images of one row."""
    return settings._replace(windows=((1.0,), settings.windows[-1]))


class Promise(NamedTuple):
    """What the value of a call is promised to look like."""

    dtype: torch.dtype
    reduction: str
    axes: int  # spatial ones that the images were given
    batched: bool


def prepare(
    input: Tensor,
    target: Tensor,
    window_size: Taps = 11,
    sigma: Sigma = 1.5,
    data_range: float | None = None,
    k1: float = 0.01,
    k2: float = 0.03,
    padding: str = "same",
    reduction: str = "mean",
    window: Window = "gaussian",
    term: str = "ssim",
    nonnegative_ssim: bool = False,
    sample_covariance: bool = False,
    spatial_dims: int | None = None,
    mask: Tensor | None = None,
    mask_threshold: float = 0.5,
    weight: Tensor | None = None,
) -> tuple[Request, Promise]:
    """Check a call of ssim_loss, and bring it into the form that backends compute."""
    # fmt: off
    settings = check_settings(
        window_size, sigma, resolve_range(data_range, input), k1, k2, padding, reduction, window,
        term, nonnegative_ssim, sample_covariance, spatial_dims,
    )
    # fmt: on
    return to_request(input, target, settings, mask, mask_threshold, weight)


def to_request(
    input: Tensor,
    target: Tensor,
    settings: Settings,
    mask: Tensor | None = None,
    mask_threshold: float = 0.5,
    weight: Tensor | None = None,
) -> tuple[Request, Promise]:
    """The same where the settings are checked already."""
    input, target = under_autocast(input, target)
    axes = check_images(input, target, settings)
    promise = Promise(
        promised_dtype(input), settings.reduction, axes, batched=input.dim() == axes + 2
    )
    if settings.reduction == "none" and promise.dtype != value_dtype(input):
        input, target = input.float(), target.float()  # a map is stored in the images' dtype
    if not promise.batched:
        input, target = input.unsqueeze(0), target.unsqueeze(0)
    if settings.sample_covariance:
        settings = _sample_covariance(settings, axes)
    if axes == 1:
        settings = _for_rows(settings)
        input, target = input.unsqueeze(-2), target.unsqueeze(-2)
    if mask is not None or weight is not None:
        mask, weight = (_beside(value, promise) for value in (mask, weight))
    if mask is not None:
        check_beside("mask", mask, input, input.shape[2:])
    given = settings
    if settings.padding in BORDERS:
        pads = settings.pads(input.dim() - 2)
        input = _border.extend(input, pads, settings.padding)
        target = _border.extend(target, pads, settings.padding)
        settings = settings._replace(padding="valid")
    request = Request(input, target, settings)
    if mask is not None or weight is not None:
        request = with_shares(request, mask, mask_threshold, weight, given)
    return request, promise


def _beside(value: Tensor | None, promise: Promise) -> Tensor | None:
    """A mask or weight with the axes that the images were given."""
    if not isinstance(value, Tensor):
        return value  # an error that check_beside explains
    value = with_batch(value, promise.axes, promise.batched)
    return value.unsqueeze(-2) if promise.axes == 1 and value.dim() == 3 else value


def with_batch(value: Tensor, axes: int, batched: bool) -> Tensor:
    """A mask or weight beside images with a batch: of one image, it need not have that axis."""
    return value if batched or value.dim() != axes + 1 else value.unsqueeze(0)


def finish(value: Tensor, promise: Promise) -> Tensor:
    """A backend's value in the shape and dtype that is promised."""
    if promise.reduction == "none" and promise.axes == 1:
        value = value.squeeze(-2)
    if not promise.batched and promise.reduction in ("image", "channel", "none"):
        value = value.squeeze(0)
    return value if value.dtype == promise.dtype else value.to(promise.dtype)


def compute_ssim(
    backend: Backend, request: Request, promise: Promise, return_cs: bool
) -> Tensor | tuple[Tensor, Tensor]:
    """ssim, by a backend: SSIM of a request, with return_cs ``(ssim, cs)``."""
    contrast = _contrast_of(request) if return_cs else None
    similarity = _to_similarity(finish(backend.reduced_loss(request), promise), request)
    if contrast is None:
        return similarity
    return similarity, _to_similarity(finish(backend.reduced_loss(contrast), promise), contrast)


def _contrast_of(request: Request) -> Request:
    """The request of ``cs`` beside one of SSIM."""
    if request.settings.kind != "ssim":
        raise ValueError("return_cs goes with term 'ssim' and without nonnegative_ssim")
    return request._replace(settings=request.settings._replace(kind="contrast_structure"))


def _to_similarity(loss: Tensor, request: Request) -> Tensor:
    """SSIM from its loss; never above 1, since the loss is never negative."""
    if request.settings.reduction != "sum":
        return 1 - loss
    if request.share is not None:
        return sum_from(request.share).squeeze().to(loss.dtype) - loss
    return math.prod(request.map_shape()) - loss
