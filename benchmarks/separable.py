"""What a careful user writes in plain PyTorch: each window as two one-dimensional convolutions.

Five maps side by side, filtered down and then across. The usual form, 1 - SSIM by subtraction.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

C1 = 0.01**2
C2 = 0.03**2


class SeparableSSIMLoss(nn.Module):
    """1 - mean SSIM of (N, C, H, W) images in [0, 1], zeros outside."""

    def __init__(self, size: int = 11, sigma: float = 1.5) -> None:
        super().__init__()
        offsets = torch.arange(size) - (size - 1) / 2
        taps = torch.exp(-0.5 * (offsets / sigma) ** 2)
        self.register_buffer("taps", taps / taps.sum(), persistent=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        maps = torch.cat((x, y, x * x, y * y, x * y), dim=1)
        channels, size = maps.shape[1], self.taps.numel()
        taps = self.taps.to(maps).expand(channels, 1, size)
        pad = size // 2
        maps = F.conv2d(maps, taps.unsqueeze(3), padding=(pad, 0), groups=channels)
        maps = F.conv2d(maps, taps.unsqueeze(2), padding=(0, pad), groups=channels)
        mu_x, mu_y, square_x, square_y, product = maps.chunk(5, dim=1)
        var_x, var_y = square_x - mu_x * mu_x, square_y - mu_y * mu_y
        cov = product - mu_x * mu_y
        above = (2 * mu_x * mu_y + C1) * (2 * cov + C2)
        below = (mu_x * mu_x + mu_y * mu_y + C1) * (var_x + var_y + C2)
        return 1 - (above / below).mean()
