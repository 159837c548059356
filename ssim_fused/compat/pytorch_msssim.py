"""Stand-in for pytorch-msssim 1.0.0: ``ssim``, ``ms_ssim``, ``SSIM``, ``MS_SSIM``.

Data range 255 unless told otherwise, windows inside the image only. Where an axis is shorter than
the window, the original leaves it unfiltered, with a warning; so does this.

Different from the original: its window is float32 in float64 images, too, which moves values by up
to 1e-5; integer images give a value; channels and axes are read from the images.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ms_ssim_loss
from .._multiscale import BETAS
from .._windows import gaussian_window
from ._common import (
    check_shapes,
    loss,
    multiscale_loss,
    number,
    readable,
    similarity,
    term,
    uncovered,
)

__all__ = ["MS_SSIM", "SSIM", "ms_ssim", "ssim"]
STANDS_FOR = {"pytorch_msssim": __all__, "pytorch_msssim.ssim": __all__}


def _dropped(image: Tensor) -> Tensor:
    """Without spatial axes of length 1, as numbers that can be computed with."""
    kept = [length for length in image.shape[2:] if length != 1]
    return readable(image.reshape(*image.shape[:2], *kept))


def _taps(win: Tensor | None, size: int, sigma: float) -> tuple[float, ...]:
    if win is None:
        if size % 2 == 0:
            raise ValueError(f"win_size must be odd, got {size}")
        return gaussian_window(size, sigma)
    taps = win.detach().double().reshape(-1, win.shape[-1])
    if taps.shape[-1] % 2 == 0:
        raise ValueError(f"win must have an odd number of taps, got {taps.shape[-1]}")
    first = taps[0]
    if not torch.equal(taps, first.expand_as(taps)):
        uncovered("a win that differs from channel to channel")
    if not torch.allclose(first, first.flip(0), atol=1e-6) or abs(first.sum() - 1) > 1e-4:
        uncovered("a win that is not symmetric or does not sum to 1")
    if first.min() < 0:
        uncovered("a win with negative taps")
    return tuple(first.tolist())


def _windows(image: Tensor, taps: tuple[float, ...]) -> tuple[tuple[float, ...], ...]:
    """The window of each axis: one tap where the axis is too short for it."""
    short = [length for length in image.shape[2:] if length < len(taps)]
    if not short:
        return (taps,)
    warnings.warn(
        f"axes of length {short} are not filtered: shorter than the window of {len(taps)}",
        stacklevel=3,
    )
    return tuple(taps if length >= len(taps) else (1.0,) for length in image.shape[2:])


def ssim(
    X: Tensor,
    Y: Tensor,
    data_range: float = 255,
    size_average: bool = True,
    win_size: int = 11,
    win_sigma: float = 1.5,
    win: Tensor | None = None,
    K: tuple[float, float] | list[float] = (0.01, 0.03),
    nonnegative_ssim: bool = False,
) -> Tensor:
    """SSIM of (N, C, H, W) or (N, C, D, H, W): one value, or without ``size_average`` (N,)."""
    check_shapes(X, Y, (3, 4, 5))
    X, Y = _dropped(X), _dropped(Y)
    check_shapes(X, Y, (4, 5))
    window = _windows(X, _taps(win, win_size, win_sigma))
    k1, k2 = K
    settings: dict[str, Any] = dict(
        data_range=number(data_range), k1=k1, k2=k2, padding="valid", window=window
    )
    if nonnegative_ssim:
        planes = similarity(X, Y, reduction="channel", **settings).relu()
        return planes.mean() if size_average else planes.mean(1)
    return similarity(X, Y, reduction="mean" if size_average else "image", **settings)


def ms_ssim(
    X: Tensor,
    Y: Tensor,
    data_range: float = 255,
    size_average: bool = True,
    win_size: int = 11,
    win_sigma: float = 1.5,
    win: Tensor | None = None,
    weights: Sequence[float] | None = None,
    K: tuple[float, float] | list[float] = (0.01, 0.03),
) -> Tensor:
    """MS-SSIM of (N, C, H, W) or (N, C, D, H, W): one value, or without ``size_average`` (N,)."""
    check_shapes(X, Y, (3, 4, 5))
    X, Y = _dropped(X), _dropped(Y)
    check_shapes(X, Y, (4, 5))
    taps = _taps(win, win_size, win_sigma)
    needed = (len(taps) - 1) * 16
    if min(X.shape[-2:]) <= needed:
        # the original has an assert here, which programs may catch
        raise AssertionError(f"images must be larger than {needed}, got {tuple(X.shape[-2:])}")
    betas = tuple(BETAS if weights is None else [float(weight) for weight in weights])
    k1, k2 = K
    settings: dict[str, Any] = dict(data_range=number(data_range), k1=k1, k2=k2, padding="valid")
    if len(betas) <= 5 and (X.dim() == 4 or X.shape[2] > needed):
        return 1 - ms_ssim_loss(
            X,
            Y,
            betas=betas,
            normalize="relu",
            pooling="pad",
            window=taps,
            reduction="mean" if size_average else "image",
            **settings,
        )

    def factor(x: Tensor, y: Tensor, coarsest: bool) -> Tensor:
        window = _windows(x, taps)
        return loss(x, y, term=term(coarsest), reduction="channel", window=window, **settings)

    def halve(image: Tensor) -> Tensor:
        pool = F.avg_pool2d if image.dim() == 4 else F.avg_pool3d
        return pool(image, 2, padding=[length % 2 for length in image.shape[2:]])

    planes = 1 - multiscale_loss(X, Y, betas, factor, halve)
    return planes.mean() if size_average else planes.mean(1)


class _Windowed(nn.Module):
    """A module that has a window to read and to set."""

    def _make(self, size: int, sigma: float, channel: int, spatial_dims: int) -> None:
        self.win_size = size
        self.win_sigma = sigma
        self._shape = (channel, *(1,) * spatial_dims, 1)
        self._win: Tensor | None = None  # ssim makes one of numbers, which torch.compile can trace

    @property
    def win(self) -> Tensor:
        """The window, [channel, 1, ..., win_size]; in float64 unless it is set."""
        if self._win is None:
            taps = _taps(None, self.win_size, self.win_sigma)
            self._win = torch.tensor(taps, dtype=torch.float64).repeat(self._shape)
        return self._win

    @win.setter
    def win(self, win: Tensor) -> None:
        self._win = win

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Also that of the original, which has its window and not its sigma."""
        if "win" in state:
            state = {"win_sigma": None, "_win": state["win"], **state}
            del state["win"]
        super().__setstate__(state)


class SSIM(_Windowed):
    """:func:`ssim` as a module; ``channel`` and ``spatial_dims`` are read from the images."""

    def __init__(
        self,
        data_range: float = 255,
        size_average: bool = True,
        win_size: int = 11,
        win_sigma: float = 1.5,
        channel: int = 3,
        spatial_dims: int = 2,
        K: tuple[float, float] | list[float] = (0.01, 0.03),
        nonnegative_ssim: bool = False,
    ) -> None:
        super().__init__()
        self.data_range = data_range
        self.size_average = size_average
        self._make(win_size, win_sigma, channel, spatial_dims)
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
            win=self._win,
            K=self.K,
            nonnegative_ssim=self.nonnegative_ssim,
        )


class MS_SSIM(_Windowed):
    """:func:`ms_ssim` as a module; ``channel`` and ``spatial_dims`` are read from the images."""

    def __init__(
        self,
        data_range: float = 255,
        size_average: bool = True,
        win_size: int = 11,
        win_sigma: float = 1.5,
        channel: int = 3,
        spatial_dims: int = 2,
        weights: Sequence[float] | None = None,
        K: tuple[float, float] | list[float] = (0.01, 0.03),
    ) -> None:
        super().__init__()
        self.data_range = data_range
        self.size_average = size_average
        self._make(win_size, win_sigma, channel, spatial_dims)
        self.weights = weights
        self.K = K

    def forward(self, X: Tensor, Y: Tensor) -> Tensor:
        """The similarity."""
        return ms_ssim(
            X,
            Y,
            data_range=self.data_range,
            size_average=self.size_average,
            win_size=self.win_size,
            win_sigma=self.win_sigma,
            win=self._win,
            weights=self.weights,
            K=self.K,
        )
