"""Stand-in for torchmetrics 1.9.0: SSIM and MS-SSIM, as functions and as Metric classes.

Reflected borders; a Gaussian of as many taps as ``sigma`` asks for, whatever ``kernel_size`` is,
which is that of the uniform window; the data range is that of the images where none is given.
MS-SSIM takes contrast-structure from windows inside the image, and SSIM with reflected borders.

Different from the original: in 3-D the last axis is padded for its own window (there for
``kernel_size``, which changes the size of the map where the two differ); MS-SSIM with
``normalize=None`` has a value and a gradient where a factor is negative (there NaN); integer images
give a value. The Metric classes need torchmetrics itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ssim as _ssim
from .._multiscale import BETAS
from ._common import check_shapes, loss, multiscale_loss, number, readable

_FUNCTIONS = [
    "multiscale_structural_similarity_index_measure",
    "structural_similarity_index_measure",
]
_CLASSES = ["MultiScaleStructuralSimilarityIndexMeasure", "StructuralSimilarityIndexMeasure"]
__all__ = [*_CLASSES, *_FUNCTIONS]
STANDS_FOR = {
    "torchmetrics.functional.image": _FUNCTIONS,
    "torchmetrics.functional.image.ssim": _FUNCTIONS,
    "torchmetrics.image": _CLASSES,
    "torchmetrics.image.ssim": _CLASSES,
}
# older names of the same, in modules that have much else
ALSO_IN = {"torchmetrics": _CLASSES, "torchmetrics.functional": _FUNCTIONS}
Range = float | tuple[float, float] | None


def __getattr__(name: str) -> Any:
    if name in _CLASSES:
        from . import _torchmetrics_classes

        return getattr(_torchmetrics_classes, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _each(value: Any, axes: int) -> list:
    """One number for each axis."""
    values = list(value) if isinstance(value, Sequence) else [value] * axes
    if len(values) != axes:
        raise ValueError(f"kernel_size and sigma must have {axes} numbers, got {value}")
    return values


def _window(
    gaussian_kernel: bool,
    sigma: float | Sequence[float],
    kernel_size: int | Sequence[int],
    axes: int,
) -> dict[str, Any]:
    sigmas, sizes = _each(sigma, axes), _each(kernel_size, axes)
    if any(size % 2 == 0 or size <= 0 for size in sizes):
        raise ValueError(f"kernel_size must be odd and positive, got {kernel_size}")
    if any(value <= 0 for value in sigmas):
        raise ValueError(f"sigma must be positive, got {sigma}")
    if gaussian_kernel:
        sizes = [int(3.5 * value + 0.5) * 2 + 1 for value in sigmas]
    kind = "gaussian" if gaussian_kernel else "uniform"
    return {"window": kind, "window_size": sizes, "sigma": sigmas}


def _ranged(preds: Tensor, target: Tensor, data_range: Range) -> tuple[Tensor, Tensor, float]:
    """Both images, and their range."""
    if target.dtype != preds.dtype:
        target = target.to(preds.dtype)
    check_shapes(preds, target, (4, 5))
    if data_range is not None and not isinstance(data_range, tuple):
        return readable(preds), readable(target), number(data_range)
    if not preds.is_floating_point():
        preds, target = preds.float(), target.float()
    if data_range is not None:
        low, high = data_range
        return preds.clamp(low, high), target.clamp(low, high), number(high - low)
    # SSIM of images divided by their range, so that the range has its gradient
    ranges = preds.max() - preds.min(), target.max() - target.min()
    found = torch.where(ranges[1] > ranges[0], ranges[1], ranges[0])  # one has all the gradient
    return preds / found, target / found, 1.0


def _reduced(values: Tensor, reduction: str | None) -> Tensor:
    if reduction == "elementwise_mean":
        return values.mean()
    if reduction == "sum":
        return values.sum()
    if reduction in ("none", None):
        return values
    raise ValueError(
        f"reduction must be 'elementwise_mean', 'sum', 'none' or None, got {reduction!r}"
    )


def check_scales(betas: tuple[float, ...], normalize: str | None) -> None:
    """The settings that MS-SSIM alone has, or a ValueError."""
    if not isinstance(betas, tuple) or not all(isinstance(beta, float) for beta in betas):
        raise ValueError(f"betas must be a tuple of floats, got {betas!r}")
    if normalize not in ("relu", "simple", None):
        raise ValueError(f"normalize must be 'relu', 'simple' or None, got {normalize!r}")


def structural_similarity_index_measure(
    preds: Tensor,
    target: Tensor,
    gaussian_kernel: bool = True,
    sigma: float | Sequence[float] = 1.5,
    kernel_size: int | Sequence[int] = 11,
    reduction: str | None = "elementwise_mean",
    data_range: float | tuple[float, float] | None = None,
    k1: float = 0.01,
    k2: float = 0.03,
    return_full_image: bool = False,
    return_contrast_sensitivity: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """SSIM of (N, C, H, W) or (N, C, D, H, W); with a flag, also the map or contrast-structure."""
    if return_full_image and return_contrast_sensitivity:
        raise ValueError("return_full_image and return_contrast_sensitivity exclude each other")
    preds, target, found = _ranged(preds, target, data_range)
    settings = _window(gaussian_kernel, sigma, kernel_size, preds.dim() - 2)
    settings |= {"data_range": found, "k1": k1, "k2": k2}
    if return_full_image:
        full = _ssim(preds, target, padding="reflect", reduction="none", **settings)
        assert isinstance(full, Tensor)
        return _reduced(full.flatten(1).mean(1), reduction), full
    inside = "mean" if reduction == "elementwise_mean" else "image"
    values = 1 - loss(preds, target, padding="reflect", reduction=inside, **settings)
    value = _reduced(values, reduction)
    if not return_contrast_sensitivity:
        return value
    settings |= {"padding": "valid", "reduction": "image", "term": "contrast_structure"}
    return value, 1 - loss(preds, target, **settings)


def multiscale_structural_similarity_index_measure(
    preds: Tensor,
    target: Tensor,
    gaussian_kernel: bool = True,
    sigma: float | Sequence[float] = 1.5,
    kernel_size: int | Sequence[int] = 11,
    reduction: str | None = "elementwise_mean",
    data_range: float | tuple[float, float] | None = None,
    k1: float = 0.01,
    k2: float = 0.03,
    betas: tuple[float, ...] = BETAS,
    normalize: str | None = "relu",
) -> Tensor:
    """MS-SSIM of (N, C, H, W) or (N, C, D, H, W).

    Without a data range, each scale has that of its own halved images.
    """
    check_scales(betas, normalize)
    if target.dtype != preds.dtype:
        target = target.to(preds.dtype)
    check_shapes(preds, target, (4, 5))
    axes = preds.dim() - 2
    settings = _window(gaussian_kernel, sigma, kernel_size, axes)
    settings |= {"k1": k1, "k2": k2, "reduction": "image"}
    steps = max(1, len(betas) - 1) ** 2
    rows, columns = (max(2 ** len(betas), steps * k) for k in _each(kernel_size, axes)[:2])
    if preds.shape[-2] < rows or preds.shape[-1] < columns:
        raise ValueError(
            f"images must be at least {rows} x {columns}, got {tuple(preds.shape[-2:])}"
        )
    if not preds.is_floating_point():
        preds, target = preds.float(), target.float()

    def factor(x: Tensor, y: Tensor, coarsest: bool) -> Tensor:
        x, y, found = _ranged(x, y, data_range)
        if coarsest:
            return loss(x, y, padding="reflect", data_range=found, **settings)
        kind = {"padding": "valid", "term": "contrast_structure"}
        return loss(x, y, data_range=found, **kind, **settings)

    def halve(image: Tensor) -> Tensor:
        return F.avg_pool2d(image, 2) if axes == 2 else F.avg_pool3d(image, 2)

    return _reduced(1 - multiscale_loss(preds, target, betas, factor, halve, normalize), reduction)
