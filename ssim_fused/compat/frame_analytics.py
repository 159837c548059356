"""Stand-in for frame-analytics 0.7.0: ``ssim``, ``ms_ssim``, ``SSIM``, ``MSSSIM``.

Windows inside the image only; values are float64, maps float32 (float64 for float64 images).

Different from the original: there are second derivatives (there refused, but on a slower path).
Its other metrics are not covered.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ms_ssim_loss
from .._luma import LUMAS, luma_of
from .._multiscale import BETAS
from ._common import odd_window, similarity

__all__ = ["MSSSIM", "MS_SSIM_WEIGHTS", "SSIM", "ms_ssim", "ssim"]
__version__ = "0.7.0"
STANDS_FOR = {
    "frame_analytics": [*__all__, "__version__"],
    "frame_analytics.functional": ["MS_SSIM_WEIGHTS", "ms_ssim", "ssim"],
    "frame_analytics.modules": ["MSSSIM", "SSIM"],
}
MS_SSIM_WEIGHTS = BETAS

_RANGES = {torch.uint8: 255.0, torch.int16: 65535.0, torch.int32: 65535.0, torch.uint16: 65535.0}


def _luma(image: Tensor, mode: str | bool, data_range: float) -> Tensor:
    mode = "bt601" if mode is True else mode
    if mode not in LUMAS:
        raise ValueError(f"luma must be one of {', '.join(LUMAS)}, got {mode!r}")
    if image.shape[1] != 3:
        raise ValueError(f"luma needs three channels, got {image.shape[1]}")
    return luma_of(image.split(1, dim=1), str(mode), data_range)


def _downsampled(image: Tensor) -> Tensor:
    """Means of blocks, a block to each 256 pixels of the shorter side, as MATLAB's ssim has it."""
    block = max(1, round(min(image.shape[-2:]) / 256))
    if block == 1:
        return image
    return F.avg_pool2d(F.pad(image, (block // 2,) * 4, mode="replicate"), block)


def _prepared(
    x: Tensor,
    y: Tensor,
    data_range: float | None,
    dtype: torch.dtype | None,
    luma: str | bool | None,
    crop_border: int,
) -> tuple[Tensor, Tensor, float]:
    """Both images as (N, C, H, W) in the type that is computed in, and their range."""
    if x.shape != y.shape or x.dim() not in (2, 3, 4):
        raise ValueError(
            f"images must have one shape of 2 to 4 axes, got {tuple(x.shape)} and {tuple(y.shape)}"
        )
    if crop_border < 0 or min(x.shape[-2:]) <= 2 * crop_border:
        raise ValueError(f"crop_border {crop_border} does not fit images of {tuple(x.shape)}")
    data_range = _RANGES.get(x.dtype, 1.0) if data_range is None else float(data_range)
    dtype = dtype or (torch.float64 if x.dtype == torch.float64 else torch.float32)
    images = []
    for image in (x, y):
        image = image.reshape((1,) * (4 - image.dim()) + tuple(image.shape)).to(dtype)
        rows, columns = image.shape[-2:]
        image = image[..., crop_border : rows - crop_border, crop_border : columns - crop_border]
        images.append(_luma(image, luma, data_range) if luma else image)
    return images[0], images[1], data_range


def _reduction(reduction: str) -> str:
    if reduction not in ("mean", "none"):
        raise ValueError(f"reduction must be 'mean' or 'none', got {reduction!r}")
    return "mean" if reduction == "mean" else "image"


def ssim(
    x: Tensor,
    y: Tensor,
    *,
    data_range: float | None = None,
    win_size: int = 11,
    sigma: float = 1.5,
    K: Sequence[float] = (0.01, 0.03),
    reduction: str = "mean",
    return_map: bool = False,
    dtype: torch.dtype | None = None,
    downsample: bool = False,
    backend_hint: str = "auto",
    luma: str | bool | None = None,
    crop_border: int = 0,
) -> Tensor:
    """SSIM of (H, W), (C, H, W) or (N, C, H, W): one value, (N,), or the map.

    Args:
        luma: compare the luma of RGB: ``"bt601"`` or True, ``"bt709"``, or ``"matlab"`` (BT.601 as
            ``rgb2ycbcr`` has it, from 16/255 to 235/255 of the range).
        crop_border: pixels that are cut off at each side first.
        downsample: compare means of blocks, whose side is the shorter side / 256, rounded.
        backend_hint: changes nothing.
    """
    odd_window(win_size)
    reduction = _reduction(reduction)
    x, y, data_range = _prepared(x, y, data_range, dtype, luma, crop_border)
    if downsample:
        x, y = _downsampled(x), _downsampled(y)
    value = similarity(
        x,
        y,
        data_range=data_range,
        window_size=win_size,
        sigma=sigma,
        k1=float(K[0]),
        k2=float(K[1]),
        padding="valid",
        reduction="none" if return_map else reduction,
    )
    return value if return_map else value.double()


def ms_ssim(
    x: Tensor,
    y: Tensor,
    *,
    data_range: float | None = None,
    win_size: int = 11,
    sigma: float = 1.5,
    K: Sequence[float] = (0.01, 0.03),
    weights: Sequence[float] | None = None,
    reduction: str = "mean",
    dtype: torch.dtype | None = None,
    backend_hint: str = "auto",
    luma: str | bool | None = None,
    crop_border: int = 0,
) -> Tensor:
    """MS-SSIM of (H, W), (C, H, W) or (N, C, H, W): one value, or (N,).

    ``luma`` and ``crop_border`` as in :func:`ssim`; ``backend_hint`` changes nothing.
    """
    odd_window(win_size)
    reduction = _reduction(reduction)
    x, y, data_range = _prepared(x, y, data_range, dtype, luma, crop_border)
    value = 1 - ms_ssim_loss(
        x,
        y,
        betas=tuple(float(weight) for weight in (BETAS if weights is None else weights)),
        normalize="relu",
        data_range=data_range,
        window_size=win_size,
        sigma=sigma,
        k1=float(K[0]),
        k2=float(K[1]),
        reduction=reduction,
    )
    return value.double()


class SSIM(nn.Module):
    """:func:`ssim` as a module."""

    def __init__(
        self,
        data_range: float | None = None,
        win_size: int = 11,
        sigma: float = 1.5,
        K: Sequence[float] = (0.01, 0.03),
        reduction: str = "mean",
        return_map: bool = False,
        dtype: torch.dtype | None = None,
        downsample: bool = False,
        luma: str | bool | None = None,
        crop_border: int = 0,
    ) -> None:
        super().__init__()
        self.data_range = data_range
        self.win_size = win_size
        self.sigma = sigma
        self.K = tuple(K)
        self.reduction = reduction
        self.return_map = return_map
        self.dtype_ = dtype
        self.downsample = downsample
        self.luma = luma
        self.crop_border = crop_border

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The similarity."""
        return ssim(
            x,
            y,
            data_range=self.data_range,
            win_size=self.win_size,
            sigma=self.sigma,
            K=self.K,
            reduction=self.reduction,
            return_map=self.return_map,
            dtype=self.dtype_,
            downsample=self.downsample,
            luma=self.luma,
            crop_border=self.crop_border,
        )

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """1 - SSIM."""
        return 1 - self(x, y)


class MSSSIM(nn.Module):
    """:func:`ms_ssim` as a module."""

    def __init__(
        self,
        data_range: float | None = None,
        win_size: int = 11,
        sigma: float = 1.5,
        K: Sequence[float] = (0.01, 0.03),
        weights: Sequence[float] | None = None,
        reduction: str = "mean",
        dtype: torch.dtype | None = None,
        luma: str | bool | None = None,
        crop_border: int = 0,
    ) -> None:
        super().__init__()
        self.data_range = data_range
        self.win_size = win_size
        self.sigma = sigma
        self.K = tuple(K)
        self.weights = BETAS if weights is None else tuple(weights)
        self.reduction = reduction
        self.dtype_ = dtype
        self.luma = luma
        self.crop_border = crop_border

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The similarity."""
        return ms_ssim(
            x,
            y,
            data_range=self.data_range,
            win_size=self.win_size,
            sigma=self.sigma,
            K=self.K,
            weights=self.weights,
            reduction=self.reduction,
            dtype=self.dtype_,
            luma=self.luma,
            crop_border=self.crop_border,
        )

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """1 - MS-SSIM."""
        return 1 - self(x, y)
