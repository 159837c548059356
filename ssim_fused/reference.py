"""SSIM in plain PyTorch: the oracle of the tests, and the path where no native code serves.

The same functions with the same signatures as :mod:`ssim_fused`, on any device, differentiable to
any order. The window is applied as two 1-D convolutions to u = x + y, v = x - y and their squares,
and the loss is formed without subtraction, so it stays accurate near convergence::

    a = m_u^2 / 2 + C1      p = m_v^2      A = a + p / 2
    b = V_u / 2 + C2        q = V_v        B = b + q / 2
    1 - SSIM = (a q + p b) / (A B)

Half-precision images are computed in float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ._call import apply, to_similarity
from ._checks import Settings, check_settings


def _pivot(image: Tensor, taps: int) -> Tensor:
    """The centre pixel of each plane, (N, C, 1, 1): a constant that keeps flat areas accurate."""
    h, w = image.shape[-2:]
    pixel = image[..., h // 2 : h // 2 + 1, w // 2 : w // 2 + 1].detach()
    if h < taps or w < taps:  # every window holds zeros from outside: nothing to gain
        return torch.zeros_like(pixel)
    return torch.where(torch.isfinite(pixel), pixel, torch.zeros_like(pixel))


def _pad(image: Tensor, settings: Settings) -> Tensor:
    return F.pad(image, (settings.pad,) * 4) if settings.pad else image


def _filter(maps: Tensor, window: Tensor) -> Tensor:
    """The separable window over each channel of (N, channels, H, W), without padding."""
    channels = maps.shape[1]
    if maps.device.type == "cpu":
        # a CPU filters channels that lie side by side; plane after plane takes 20 times as long
        maps = maps.contiguous(memory_format=torch.channels_last)
    down = window.view(1, 1, -1, 1).expand(channels, -1, -1, -1)
    across = window.view(1, 1, 1, -1).expand(channels, -1, -1, -1)
    return F.conv2d(F.conv2d(maps, down, groups=channels), across, groups=channels)


def loss_map(input: Tensor, target: Tensor, settings: Settings) -> Tensor:
    """1 - SSIM at each window: (N, C, H, W) images to (N, C, OH, OW)."""
    scale = 1.0 / settings.data_range
    taps = len(settings.window)
    difference = input - target  # exact for images that are near each other
    pivot_input, pivot_target = _pivot(input, taps), _pivot(target, taps)
    pivot_v = _pivot(difference, taps)
    u = _pad(input, settings) - pivot_input + (_pad(target, settings) - pivot_target)
    u, v = u * scale, (_pad(difference, settings) - pivot_v) * scale
    pivot_u, pivot_v = (pivot_input + pivot_target) * scale, pivot_v * scale
    maps = torch.cat((u, v, u * u, v * v), dim=1)
    window = torch.tensor(settings.window, dtype=input.dtype, device=input.device)
    m_u, m_v, e_u, e_v = _filter(maps, window).chunk(4, dim=1)

    b = (e_u - m_u * m_u).clamp(min=0) / 2 + settings.k2**2
    q = (e_v - m_v * m_v).clamp(min=0)
    a = (m_u + pivot_u).square() / 2 + settings.k1**2
    p = (m_v + pivot_v).square()
    return (a * q + p * b) / ((a + p / 2) * (b + q / 2))


def reduced_loss(input: Tensor, target: Tensor, settings: Settings) -> Tensor:
    """1 - SSIM of (N, C, H, W) images, reduced; half-precision images give a float32 value."""
    half = input.dtype in (torch.float16, torch.bfloat16)
    if half:
        delta = loss_map(input.float(), target.float(), settings)
    else:
        delta = loss_map(input, target, settings)
    if settings.reduction == "none":
        return delta.to(input.dtype)
    if settings.reduction == "image":
        return delta.mean(dim=(1, 2, 3))
    return delta.mean() if settings.reduction == "mean" else delta.sum()


def ssim_loss(
    input: Tensor,
    target: Tensor,
    *,
    window_size: int = 11,
    sigma: float = 1.5,
    data_range: float = 1.0,
    k1: float = 0.01,
    k2: float = 0.03,
    padding: str = "same",
    reduction: str = "mean",
) -> Tensor:
    """:func:`ssim_fused.ssim_loss` in plain PyTorch; see there."""
    settings = check_settings(window_size, sigma, data_range, k1, k2, padding, reduction)
    return apply(reduced_loss, input, target, settings)


def ssim(
    input: Tensor,
    target: Tensor,
    *,
    window_size: int = 11,
    sigma: float = 1.5,
    data_range: float = 1.0,
    k1: float = 0.01,
    k2: float = 0.03,
    padding: str = "same",
    reduction: str = "mean",
) -> Tensor:
    """:func:`ssim_fused.ssim` in plain PyTorch; see there."""
    settings = check_settings(window_size, sigma, data_range, k1, k2, padding, reduction)
    return to_similarity(apply(reduced_loss, input, target, settings), input, settings)


__all__ = ["ssim", "ssim_loss"]
