"""Stand-in for MONAI 1.6.1: ``SSIMLoss``, ``compute_ssim_and_cs``, ``compute_ms_ssim``.

Windows inside the image only, float32 results whatever the images are. The cumulative metric
classes (``SSIMMetric``, ``MultiScaleSSIMMetric``) are not covered: see ``ssim_fused.metrics``.
Windows with an even number of taps, which have no middle, are not
covered either.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.loss import _Loss

from .. import ms_ssim_loss
from .. import ssim as _ssim
from .._multiscale import BETAS
from ._common import check_shapes, loss, number, odd_window, uncovered

__all__ = ["SSIMLoss", "compute_ms_ssim", "compute_ssim_and_cs"]
STANDS_FOR = {
    "monai.losses": ["SSIMLoss"],
    "monai.losses.ssim_loss": ["SSIMLoss"],
    "monai.metrics": ["compute_ms_ssim", "compute_ssim_and_cs"],
    "monai.metrics.regression": ["compute_ms_ssim", "compute_ssim_and_cs"],
}


def _settings(
    spatial_dims: int,
    data_range: float,
    kernel_type: str,
    kernel_size: int | Sequence[int],
    kernel_sigma: float | Sequence[float],
    k1: float,
    k2: float,
) -> dict[str, Any]:
    if spatial_dims not in (1, 2, 3):
        uncovered(f"spatial_dims={spatial_dims} in MONAI")
    odd_window(kernel_size)
    return {
        "spatial_dims": spatial_dims,
        "data_range": number(data_range),
        "window": str(kernel_type),
        "window_size": kernel_size if isinstance(kernel_size, int) else list(kernel_size),
        "sigma": list(kernel_sigma) if isinstance(kernel_sigma, Sequence) else kernel_sigma,
        "k1": k1,
        "k2": k2,
        "padding": "valid",
    }


def _float32(image: Any) -> Tensor:
    """A plain float32 tensor of a tensor, MONAI's MetaTensor or an array."""
    return torch.as_tensor(image).as_subclass(Tensor).float()


class SSIMLoss(_Loss):
    """1 - SSIM of (N, C, ...): one value, or for ``reduction="none"`` (N, 1)."""

    def __init__(
        self,
        spatial_dims: int,
        data_range: float = 1.0,
        kernel_type: str = "gaussian",
        win_size: int | Sequence[int] = 11,
        kernel_sigma: float | Sequence[float] = 1.5,
        k1: float = 0.01,
        k2: float = 0.03,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        self.reduction = str(getattr(reduction, "value", reduction))
        if self.reduction not in ("none", "mean", "sum"):
            raise ValueError(f"reduction must be 'none', 'mean' or 'sum', got {reduction!r}")
        self.spatial_dims = spatial_dims
        self.data_range = data_range
        self.kernel_type = str(getattr(kernel_type, "value", kernel_type))
        self.kernel_size = win_size
        self.kernel_sigma = kernel_sigma
        self.k1 = k1
        self.k2 = k2

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss."""
        settings = _settings(
            self.spatial_dims,
            self.data_range,
            self.kernel_type,
            self.kernel_size,
            self.kernel_sigma,
            self.k1,
            self.k2,
        )
        input, target = _float32(input), _float32(target)
        check_shapes(input, target, (self.spatial_dims + 2,))
        reduction = "mean" if self.reduction == "mean" else "image"
        values = loss(input, target, reduction=reduction, **settings)
        if self.reduction == "none":
            return values.unsqueeze(1)
        return values.sum() if self.reduction == "sum" else values


def compute_ssim_and_cs(
    y_pred: Tensor,
    y: Tensor,
    spatial_dims: int,
    kernel_size: Sequence[int],
    kernel_sigma: Sequence[float],
    data_range: float = 1.0,
    kernel_type: str = "gaussian",
    k1: float = 0.01,
    k2: float = 0.03,
) -> tuple[Tensor, Tensor]:
    """The map of SSIM, and that of contrast-structure."""
    kind = str(getattr(kernel_type, "value", kernel_type))
    settings = _settings(spatial_dims, data_range, kind, kernel_size, kernel_sigma, k1, k2)
    y_pred, y = _float32(y_pred), _float32(y)
    check_shapes(y_pred, y, (spatial_dims + 2,))
    maps = _ssim(y_pred, y, reduction="none", return_cs=True, **settings)
    assert isinstance(maps, tuple)
    return maps


def compute_ms_ssim(
    y_pred: Tensor,
    y: Tensor,
    spatial_dims: int,
    data_range: float = 1.0,
    kernel_type: str = "gaussian",
    kernel_size: int | Sequence[int] = 11,
    kernel_sigma: float | Sequence[float] = 1.5,
    k1: float = 0.01,
    k2: float = 0.03,
    weights: Sequence[float] = BETAS,
) -> Tensor:
    """MS-SSIM of each image, (N, 1)."""
    kind = str(getattr(kernel_type, "value", kernel_type))
    settings = _settings(spatial_dims, data_range, kind, kernel_size, kernel_sigma, k1, k2)
    y_pred, y = _float32(y_pred), _float32(y)
    check_shapes(y_pred, y, (spatial_dims + 2,))
    values = ms_ssim_loss(
        y_pred,
        y,
        betas=tuple(float(weight) for weight in weights),
        normalize="relu",
        per_channel=False,
        reduction="image",
        **settings,
    )
    return (1 - values).unsqueeze(1)
