"""Stand-in for piq 0.8.0: ``ssim``, ``SSIMLoss``, ``multi_scale_ssim``, ``MultiScaleSSIMLoss``.

Windows inside the image only. ``ssim`` first averages blocks of the image where its shorter side
has more than 384 pixels, unless ``downsample=False``.

Different from the original: values outside [0, data_range] are no error. With ``reduction="sum"``
the losses are sums of 1 - SSIM, as their documentation says (there 1 - the sum of SSIM). Complex
images, (N, C, H, W, 2), are not covered.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.loss import _Loss

from .._multiscale import BETAS
from ._common import check_shapes, loss, multiscale_loss, readable, similarity, term, uncovered

__all__ = ["MultiScaleSSIMLoss", "SSIMLoss", "multi_scale_ssim", "ssim"]
__version__ = "0.8.0"
STANDS_FOR = {
    "piq": [*__all__, "__version__"],
    "piq.ssim": ["SSIMLoss", "ssim"],
    "piq.ms_ssim": ["MultiScaleSSIMLoss", "multi_scale_ssim"],
}


def _check_kernel(kernel_size: int) -> None:
    if kernel_size % 2 == 0:
        # the original has an assert here, which programs may catch
        raise AssertionError(f"kernel_size must be odd, got {kernel_size}")


def _check(x: Tensor, y: Tensor, kernel_size: int) -> None:
    _check_kernel(kernel_size)
    check_shapes(x, y, (4, 5))
    if x.dim() == 5:
        uncovered("complex images in piq, (N, C, H, W, 2)")


def _of_one_type(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Images that differ in their type, in the one that holds both."""
    if x.dtype == y.dtype:
        return x, y
    dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float16)
    return x.to(dtype), y.to(dtype)


def _smaller(x: Tensor, y: Tensor, downsample: bool) -> tuple[Tensor, Tensor]:
    """Means of blocks, so that the shorter side comes to about 256 pixels."""
    block = max(1, round(min(x.shape[-2:]) / 256))
    if block == 1 or not downsample:
        return readable(x), readable(y)
    if not x.is_floating_point():
        x, y = x.float(), y.float()
    return F.avg_pool2d(x, block), F.avg_pool2d(y, block)


def _reduce(values: Tensor, reduction: str) -> Tensor:
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"reduction must be 'none', 'mean' or 'sum', got {reduction!r}")
    return values if reduction == "none" else values.mean() if reduction == "mean" else values.sum()


def _of_images(
    compute: Callable[..., Tensor],
    x: Tensor,
    y: Tensor,
    reduction: str,
    kernel_size: int,
    kernel_sigma: float,
    data_range: float,
    downsample: bool,
    k1: float,
    k2: float,
    term: str = "ssim",
) -> Tensor:
    _check(x, y, kernel_size)
    x, y = _smaller(*_of_one_type(x, y), downsample)
    values = compute(
        x,
        y,
        window_size=kernel_size,
        sigma=kernel_sigma,
        data_range=float(data_range),
        k1=k1,
        k2=k2,
        padding="valid",
        reduction="mean" if reduction == "mean" else "image",
        term=term,
    )
    return _reduce(values, reduction)


def ssim(
    x: Tensor,
    y: Tensor,
    kernel_size: int = 11,
    kernel_sigma: float = 1.5,
    data_range: int | float = 1.0,
    reduction: str = "mean",
    full: bool = False,
    downsample: bool = True,
    k1: float = 0.01,
    k2: float = 0.03,
) -> Tensor | list[Tensor]:
    """SSIM of (N, C, H, W); with ``full``, ``[ssim, contrast-structure]``."""
    settings = (reduction, kernel_size, kernel_sigma, data_range, downsample, k1, k2)
    value = _of_images(similarity, x, y, *settings)
    if not full:
        return value
    return [value, _of_images(similarity, x, y, *settings, term="contrast_structure")]


class SSIMLoss(_Loss):
    """1 - SSIM, of (N, C, H, W)."""

    def __init__(
        self,
        kernel_size: int = 11,
        kernel_sigma: float = 1.5,
        k1: float = 0.01,
        k2: float = 0.03,
        downsample: bool = True,
        reduction: str = "mean",
        data_range: int | float = 1.0,
    ) -> None:
        super().__init__()
        _check_kernel(kernel_size)
        self.kernel_size = kernel_size
        self.kernel_sigma = kernel_sigma
        self.k1 = k1
        self.k2 = k2
        self.downsample = downsample
        self.reduction = reduction
        self.data_range = data_range

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss."""
        return _of_images(
            loss,
            x,
            y,
            self.reduction,
            self.kernel_size,
            self.kernel_sigma,
            self.data_range,
            self.downsample,
            self.k1,
            self.k2,
        )


def _halve(image: Tensor) -> Tensor:
    """Means of 2 x 2 pixels; where an axis is odd, both first get their first pixel twice."""
    if any(length % 2 for length in image.shape[2:]):
        image = F.pad(image, (1, 0, 1, 0), mode="replicate")
    return F.avg_pool2d(image, 2)


def _multiscale_loss(
    x: Tensor,
    y: Tensor,
    kernel_size: int,
    kernel_sigma: float,
    data_range: float,
    reduction: str,
    scale_weights: Tensor | None,
    k1: float,
    k2: float,
) -> Tensor:
    _check(x, y, kernel_size)
    betas = list(BETAS)
    if scale_weights is not None:
        if scale_weights.dim() != 1:
            raise ValueError(f"scale_weights must be a vector, got {scale_weights.dim()} axes")
        betas = (scale_weights / scale_weights.sum()).tolist()
    needed = (kernel_size - 1) * 2 ** (len(betas) - 1) + 1
    if min(x.shape[-2:]) < needed:
        raise ValueError(f"images must be at least {needed} x {needed}, got {tuple(x.shape[-2:])}")
    x, y = _of_one_type(x, y)
    if not x.is_floating_point():
        x, y = x.float(), y.float()

    def factor(x: Tensor, y: Tensor, coarsest: bool) -> Tensor:
        return loss(
            x,
            y,
            window_size=kernel_size,
            sigma=kernel_sigma,
            data_range=float(data_range),
            k1=k1,
            k2=k2,
            padding="valid",
            reduction="channel",
            term=term(coarsest),
        )

    return _reduce(multiscale_loss(x, y, betas, factor, _halve).mean(1), reduction)


def multi_scale_ssim(
    x: Tensor,
    y: Tensor,
    kernel_size: int = 11,
    kernel_sigma: float = 1.5,
    data_range: int | float = 1.0,
    reduction: str = "mean",
    scale_weights: Tensor | None = None,
    k1: float = 0.01,
    k2: float = 0.03,
) -> Tensor:
    """MS-SSIM of (N, C, H, W); ``scale_weights`` are divided by their sum."""
    inside = "none" if reduction == "sum" else reduction
    values = 1 - _multiscale_loss(
        x, y, kernel_size, kernel_sigma, data_range, inside, scale_weights, k1, k2
    )
    return values.sum() if reduction == "sum" else values


class MultiScaleSSIMLoss(_Loss):
    """1 - MS-SSIM, of (N, C, H, W); the weights of scales are divided by their sum, 1.0001."""

    def __init__(
        self,
        kernel_size: int = 11,
        kernel_sigma: float = 1.5,
        k1: float = 0.01,
        k2: float = 0.03,
        scale_weights: Tensor | None = None,
        reduction: str = "mean",
        data_range: int | float = 1.0,
    ) -> None:
        super().__init__()
        _check_kernel(kernel_size)
        self.register_buffer(
            "scale_weights", torch.tensor(BETAS) if scale_weights is None else scale_weights
        )
        self.kernel_size = kernel_size
        self.kernel_sigma = kernel_sigma
        self.k1 = k1
        self.k2 = k2
        self.reduction = reduction
        self.data_range = data_range

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss."""
        weights = self.scale_weights
        assert isinstance(weights, Tensor)
        return _multiscale_loss(
            x,
            y,
            self.kernel_size,
            self.kernel_sigma,
            self.data_range,
            self.reduction,
            weights,
            self.k1,
            self.k2,
        )
