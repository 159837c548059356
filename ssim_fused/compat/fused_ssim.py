"""Stand-in for fused-ssim (rahul-goel, as of 2025): ``fused_ssim``, and 2-D and 3-D of its other
module.

Images in [0, 1], zeros outside or windows inside only. Different from the original: it runs on a
CPU, too; the second image has a gradient where it asks for one; second derivatives are right (there
wrong without a word).
"""

from __future__ import annotations

from torch import Tensor

from ._common import check_shapes, similarity

__all__ = ["fused_ssim", "fused_ssim2d", "fused_ssim3d"]
STANDS_FOR = {
    "fused_ssim": ["allowed_padding", "fused_ssim"],
    "fused_ssim3d": ["fused_ssim2d", "fused_ssim3d"],
}
allowed_padding = ["same", "valid"]


def _fused(img1: Tensor, img2: Tensor, padding: str, train: bool, axes: int) -> Tensor:
    check_shapes(img1, img2, (axes + 2,))
    if padding not in allowed_padding:
        # the original has an assert here, which programs may catch
        raise AssertionError(f"padding must be one of {allowed_padding}, got {padding!r}")
    if not train:
        img1, img2 = img1.detach(), img2.detach()
    return similarity(img1, img2, padding=padding)


def fused_ssim(img1: Tensor, img2: Tensor, padding: str = "same", train: bool = True) -> Tensor:
    """Mean SSIM of (N, C, H, W); without ``train``, no gradient."""
    return _fused(img1, img2, padding, train, 2)


def fused_ssim2d(img1: Tensor, img2: Tensor, padding: str = "same", train: bool = True) -> Tensor:
    """Mean SSIM of (N, C, H, W); without ``train``, no gradient."""
    return _fused(img1, img2, padding, train, 2)


def fused_ssim3d(img1: Tensor, img2: Tensor, padding: str = "same", train: bool = True) -> Tensor:
    """Mean SSIM of (N, C, D, H, W); without ``train``, no gradient."""
    return _fused(img1, img2, padding, train, 3)
