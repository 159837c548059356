"""Stand-in for fussim 0.3.15: ``fused_ssim``, ``ssim``, ``SSIM``.

Different from the original: it runs on a CPU, too; windows of 7 and 9 taps are Gaussians of
sigma 1.5 that sum to 1 (there 7 taps have sigma 1.0, and 9 taps sum to 0.54); any odd window and
any sigma work; both images have gradients; second derivatives are right (there wrong without a
word).
"""

from __future__ import annotations

from torch import Tensor, nn

from ._common import check_shapes, similarity, uncovered

__all__ = ["SSIM", "SUPPORTED_WINDOW_SIZES", "fused_ssim", "ssim"]
__version__ = "0.3.15"
STANDS_FOR = {"fussim": [*__all__, "__version__"]}
SUPPORTED_WINDOW_SIZES = (7, 9, 11)


def fused_ssim(
    img1: Tensor,
    img2: Tensor,
    padding: str = "same",
    train: bool = True,
    window_size: int = 11,
) -> Tensor:
    """Mean SSIM of (N, C, H, W) in [0, 1]; without ``train``, no gradient."""
    check_shapes(img1, img2, (4,))
    if padding not in ("same", "valid"):
        raise ValueError(f"padding must be 'same' or 'valid', got {padding!r}")
    if not train:
        img1, img2 = img1.detach(), img2.detach()
    return similarity(img1, img2, padding=padding, window_size=window_size)


def ssim(
    X: Tensor,
    Y: Tensor,
    data_range: float = 255,
    size_average: bool = True,
    win_size: int = 11,
    win_sigma: float = 1.5,
    win: Tensor | None = None,
    K: tuple[float, float] = (0.01, 0.03),
    nonnegative_ssim: bool = False,
) -> Tensor:
    """SSIM of (N, C, H, W): one value, or without ``size_average`` (N,).

    ``nonnegative_ssim`` clamps each window here, as in the original, where pytorch-msssim clamps
    each channel's mean.
    """
    check_shapes(X, Y, (4,))
    if win is not None:
        uncovered("fussim.ssim(win=...), as fussim itself does not")
    k1, k2 = K
    return similarity(
        X,
        Y,
        data_range=float(data_range),
        k1=k1,
        k2=k2,
        window_size=win_size,
        sigma=win_sigma,
        padding="valid",
        reduction="mean" if size_average else "image",
        nonnegative_ssim=nonnegative_ssim,
    )


class SSIM(nn.Module):
    """:func:`ssim` as a module; ``channel`` is read from the images."""

    def __init__(
        self,
        data_range: float = 255,
        size_average: bool = True,
        win_size: int = 11,
        win_sigma: float = 1.5,
        channel: int = 3,
        spatial_dims: int = 2,
        K: tuple[float, float] = (0.01, 0.03),
        nonnegative_ssim: bool = False,
    ) -> None:
        super().__init__()
        if spatial_dims != 2:
            raise ValueError(f"spatial_dims must be 2, got {spatial_dims}")
        self.data_range = data_range
        self.size_average = size_average
        self.win_size = win_size
        self.win_sigma = win_sigma
        self.K = K
        self.nonnegative_ssim = nonnegative_ssim

    def forward(self, X: Tensor, Y: Tensor) -> Tensor:
        """The similarity."""
        return ssim(
            X,
            Y,
            data_range=self.data_range,
            size_average=self.size_average,
            win_size=self.win_size,
            win_sigma=self.win_sigma,
            K=self.K,
            nonnegative_ssim=self.nonnegative_ssim,
        )
