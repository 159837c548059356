"""The code that ssim_fused replaces, restated: five 11x11 convolutions with zero padding.

It behaves as the article's does, flaws included: one channel only, 1e-12 in the denominator, a loss
that is a subtraction from 1. One thing differs: the window has the dtype of the images, so that the
same code serves in float64 as an oracle.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

C1 = 0.01**2
C2 = 0.03**2
EPS = 1e-12


def _window(size: int, sigma: float, like: Tensor) -> Tensor:
    """(1, 1, size, size) Gaussian that sums to 1, in the dtype and on the device of `like`."""
    offsets = torch.arange(size, dtype=like.dtype, device=like.device) - (size - 1) / 2
    taps = torch.exp(-0.5 * (offsets / sigma) ** 2)
    taps = taps / taps.sum()
    return torch.outer(taps, taps).view(1, 1, size, size)


class SSIMLoss(nn.Module):
    """1 - mean SSIM of single-channel images, or the SSIM map where `as_loss` is false."""

    def __init__(self, kernel_size: int = 11, sigma: float = 1.5) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.sigma = sigma
        self._kernel: Tensor | None = None

    def forward(self, x: Tensor, y: Tensor, as_loss: bool = True) -> Tensor:
        # labels may ride behind the image as further channels of y
        ssim_map = self._map(x, y[:, :1])
        return 1 - ssim_map.mean() if as_loss else ssim_map

    def _window_for(self, x: Tensor) -> Tensor:
        # kept between calls, as in the article, so that only the first one pays for it
        kernel = self._kernel
        if kernel is None or kernel.dtype != x.dtype or kernel.device != x.device:
            self._kernel = kernel = _window(self.kernel_size, self.sigma, x)
        return kernel

    def _map(self, x: Tensor, y: Tensor) -> Tensor:
        kernel = self._window_for(x)
        pad = self.kernel_size // 2

        def blur(image: Tensor) -> Tensor:
            return F.conv2d(image, kernel, padding=pad)

        mu_x, mu_y = blur(x), blur(y)
        var_x = blur(x * x) - mu_x * mu_x
        var_y = blur(y * y) - mu_y * mu_y
        cov = blur(x * y) - mu_x * mu_y
        above = (2 * mu_x * mu_y + C1) * (2 * cov + C2)
        below = (mu_x**2 + mu_y**2 + C1) * (var_x + var_y + C2)
        return above / (below + EPS)


class MSE_SSIM_KL_Loss(nn.Module):
    """mse + alpha * (1 - SSIM) + beta * KL, a term of weight 0 left out."""

    def __init__(self, alpha: float = 1, beta: float = 1) -> None:
        super().__init__()
        self.alpha = alpha
        self.beta = beta
        self.mse = nn.MSELoss()
        self.ssim = SSIMLoss()

    def forward(self, recon_x: Tensor, raw_x: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
        loss = self.mse(recon_x, raw_x)
        if self.alpha != 0:
            loss = loss + self.alpha * self.ssim(recon_x, raw_x)
        if self.beta != 0:
            kl = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp(), dim=-1).mean()
            loss = loss + self.beta * kl
        return loss
