"""Stand-in for kornia 0.9.0: ``ssim``, ``SSIM``, ``ssim_loss``, ``SSIMLoss``, and their 3-D forms.

Sigma 1.5 whatever the window, reflected borders for ``padding="same"``, the map for ``ssim``; the
loss is halved.

Different from the original: ``eps`` is not added to the denominator (there 1e-12 makes black
against black cost 1.1e-5 for images in [0, 1]); an ``eps`` that would change more than that is not
covered.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ._common import check_shapes, loss, number, odd_window, similarity, uncovered

_METRICS = ["SSIM", "SSIM3D", "ssim", "ssim3d"]
_LOSSES = ["SSIM3DLoss", "SSIMLoss", "ssim3d_loss", "ssim_loss"]
__all__ = [*_METRICS, *_LOSSES]
STANDS_FOR = {
    "kornia.metrics": _METRICS,
    "kornia.metrics.ssim": ["SSIM", "ssim"],
    "kornia.metrics.ssim3d": ["SSIM3D", "ssim3d"],
    "kornia.losses": _LOSSES,
    "kornia.losses.ssim": ["SSIMLoss", "ssim_loss"],
    "kornia.losses.ssim3d": ["SSIM3DLoss", "ssim3d_loss"],
}


def _settings(window_size: int, max_val: float, eps: float, padding: str) -> dict:
    odd_window(window_size)
    # what eps can change of a value: its share in the smallest denominator
    if eps > 1.2e-5 * (0.01 * max_val) ** 2 * (0.03 * max_val) ** 2:
        uncovered(f"eps={eps} in kornia with max_val={max_val}; pass eps=0.0")
    padding = str(padding).lower()
    if padding not in ("same", "valid"):
        raise ValueError(f"padding must be 'same' or 'valid', got {padding!r}")
    return {
        "window_size": window_size,
        "data_range": number(max_val),
        "padding": "reflect" if padding == "same" else "valid",
    }


def _pair(img1: Tensor, img2: Tensor, axes: int) -> tuple[Tensor, Tensor]:
    """Both images in one floating-point type."""
    for image in (img1, img2):
        if not isinstance(image, Tensor):
            raise TypeError(f"images must be torch.Tensors, got {type(image).__name__}")
        if image.is_complex():
            uncovered("complex images in kornia")
    check_shapes(img1, img2, (axes + 2,))
    img1, img2 = (x if x.is_floating_point() else x.float() for x in (img1, img2))
    dtype = torch.promote_types(img1.dtype, img2.dtype)
    return img1.to(dtype), img2.to(dtype)


def _map(axes: int, img1: Tensor, img2: Tensor, *settings: object) -> Tensor:
    img1, img2 = _pair(img1, img2, axes)
    return similarity(img1, img2, reduction="none", **_settings(*settings))  # type: ignore[arg-type]


def _loss(axes: int, img1: Tensor, img2: Tensor, reduction: str, *settings: object) -> Tensor:
    img1, img2 = _pair(img1, img2, axes)
    if reduction not in ("mean", "sum", "none"):
        raise NotImplementedError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
    return loss(img1, img2, reduction=reduction, **_settings(*settings)) / 2  # type: ignore[arg-type]


def ssim(
    img1: Tensor,
    img2: Tensor,
    window_size: int,
    max_val: float = 1.0,
    eps: float = 1e-12,
    padding: str = "same",
) -> Tensor:
    """The SSIM map of (N, C, H, W)."""
    return _map(2, img1, img2, window_size, max_val, eps, padding)


def ssim3d(
    img1: Tensor,
    img2: Tensor,
    window_size: int,
    max_val: float = 1.0,
    eps: float = 1e-12,
    padding: str = "same",
) -> Tensor:
    """The SSIM map of (N, C, D, H, W)."""
    return _map(3, img1, img2, window_size, max_val, eps, padding)


def ssim_loss(
    img1: Tensor,
    img2: Tensor,
    window_size: int,
    max_val: float = 1.0,
    eps: float = 1e-12,
    reduction: str = "mean",
    padding: str = "same",
) -> Tensor:
    """(1 - SSIM) / 2 of (N, C, H, W)."""
    return _loss(2, img1, img2, reduction, window_size, max_val, eps, padding)


def ssim3d_loss(
    img1: Tensor,
    img2: Tensor,
    window_size: int,
    max_val: float = 1.0,
    eps: float = 1e-12,
    reduction: str = "mean",
    padding: str = "same",
) -> Tensor:
    """(1 - SSIM) / 2 of (N, C, D, H, W)."""
    return _loss(3, img1, img2, reduction, window_size, max_val, eps, padding)


class SSIM(nn.Module):
    """:func:`ssim` as a module."""

    def __init__(
        self, window_size: int, max_val: float = 1.0, eps: float = 1e-12, padding: str = "same"
    ) -> None:
        super().__init__()
        self.window_size = window_size
        self.max_val = max_val
        self.eps = eps
        self.padding = padding

    def forward(self, img1: Tensor, img2: Tensor) -> Tensor:
        """The map."""
        return ssim(img1, img2, self.window_size, self.max_val, self.eps, self.padding)


class SSIM3D(SSIM):
    """:func:`ssim3d` as a module."""

    def forward(self, img1: Tensor, img2: Tensor) -> Tensor:
        """The map."""
        return ssim3d(img1, img2, self.window_size, self.max_val, self.eps, self.padding)


class SSIMLoss(nn.Module):
    """:func:`ssim_loss` as a module."""

    def __init__(
        self,
        window_size: int,
        max_val: float = 1.0,
        eps: float = 1e-12,
        reduction: str = "mean",
        padding: str = "same",
    ) -> None:
        super().__init__()
        self.window_size = window_size
        self.max_val = max_val
        self.eps = eps
        self.reduction = reduction
        self.padding = padding

    def forward(self, img1: Tensor, img2: Tensor) -> Tensor:
        """The loss."""
        settings = (self.window_size, self.max_val, self.eps, self.reduction, self.padding)
        return ssim_loss(img1, img2, *settings)


class SSIM3DLoss(SSIMLoss):
    """:func:`ssim3d_loss` as a module."""

    def forward(self, img1: Tensor, img2: Tensor) -> Tensor:
        """The loss."""
        settings = (self.window_size, self.max_val, self.eps, self.reduction, self.padding)
        return ssim3d_loss(img1, img2, *settings)
