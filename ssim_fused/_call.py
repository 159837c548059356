"""What every way of computing the loss shares: checks, (C, H, W) images, autocast, dtypes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ._checks import Settings, check_images

# 1 - SSIM of (N, C, H, W) images, reduced; see reference.reduced_loss
ReducedLoss = Callable[[Tensor, Tensor, Settings], Tensor]


def _autocast(image: Tensor) -> bool:
    return torch.is_autocast_enabled(image.device.type)


def apply(loss: ReducedLoss, input: Tensor, target: Tensor, settings: Settings) -> Tensor:
    """Check the images, compute, and give the value in the shape and dtype that is promised."""
    if (
        isinstance(input, Tensor)
        and isinstance(target, Tensor)
        and input.dtype != target.dtype
        and input.is_floating_point()
        and target.is_floating_point()
        and _autocast(input)
    ):
        # a network's half-precision output meets float32 data: as autocast does for torch's losses
        input, target = input.float(), target.float()
    check_images(input, target, settings)
    if input.dim() == 4:
        value = loss(input, target, settings)
    else:
        value = loss(input.unsqueeze(0), target.unsqueeze(0), settings)
        if settings.reduction in ("image", "none"):
            value = value.squeeze(0)
    # under autocast a half-precision loss stays float32, as torch's own losses do
    return value if value.dtype == input.dtype or _autocast(input) else value.to(input.dtype)


def to_similarity(loss: Tensor, input: Tensor, settings: Settings) -> Tensor:
    """SSIM from its loss; never above 1, since the loss is never negative."""
    if settings.reduction != "sum":
        return 1 - loss
    shrink = len(settings.window) - 1 - 2 * settings.pad
    *planes, h, w = input.shape
    windows = (h - shrink) * (w - shrink)
    for size in planes:
        windows *= size
    return windows - loss
