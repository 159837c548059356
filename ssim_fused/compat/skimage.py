"""Stand-in for scikit-image 0.26.0: ``structural_similarity``, arrays in and out.

The mean is over windows inside the image; ``full`` and ``gradient`` see it mirrored, its last pixel
twice.

Different from the original: the gradient counts ``use_sample_covariance``, on by default, in (there
left out, which makes a difference of up to a few percent); unknown keywords are an error (there
ignored); images of more than three axes are not covered.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import torch

from ._common import similarity, uncovered

__all__ = ["structural_similarity"]
STANDS_FOR = {"skimage.metrics": __all__}
_OPTIONS = ("K1", "K2", "sigma", "use_sample_covariance")


def _default_range(first: np.ndarray, second: np.ndarray) -> float:
    if any(np.issubdtype(image.dtype, np.floating) for image in (first, second)):
        raise ValueError("data_range must be given for floating-point images")
    if first.dtype != second.dtype:
        warnings.warn("images differ in dtype: data_range is that of the first", stacklevel=3)
    if first.dtype == np.bool_:
        return 1.0
    limits = np.iinfo(first.dtype)
    data_range = float(limits.max) - float(limits.min)
    if first.dtype != np.uint8:
        warnings.warn(
            f"data_range is {data_range:.0f}, that of {first.dtype}; give it to be sure",
            stacklevel=3,
        )
    return data_range


def structural_similarity(
    im1: np.ndarray,
    im2: np.ndarray,
    *,
    win_size: int | None = None,
    gradient: bool = False,
    data_range: float | None = None,
    channel_axis: int | None = None,
    gaussian_weights: bool = False,
    full: bool = False,
    **kwargs: Any,
) -> Any:
    """Mean SSIM; with ``gradient``, its gradient to ``im2``; with ``full``, the map.

    Keywords: K1, K2, sigma, use_sample_covariance (on unless switched off).
    """
    unknown = [name for name in kwargs if name not in _OPTIONS]
    if unknown:
        raise TypeError(f"structural_similarity has no {', '.join(unknown)}")
    k1, k2, sigma = (kwargs.get(*pair) for pair in (("K1", 0.01), ("K2", 0.03), ("sigma", 1.5)))
    if im1.shape != im2.shape:
        raise ValueError(f"images must have one shape, got {im1.shape} and {im2.shape}")
    if np.iscomplexobj(im1) or np.iscomplexobj(im2):
        uncovered("complex images in scikit-image")
    axes = im1.ndim - (channel_axis is not None)
    if not 1 <= axes <= 3:
        uncovered(f"images of {axes} axes in scikit-image")
    radius = int(3.5 * sigma + 0.5)
    if win_size is None:
        win_size = 2 * radius + 1 if gaussian_weights else 7
    taps = 2 * radius + 1 if gaussian_weights else win_size
    if win_size % 2 == 0:
        raise ValueError(f"win_size must be odd, got {win_size}")
    size = [length for axis, length in enumerate(im1.shape) if not _is(axis, channel_axis, im1)]
    if min(size) < win_size:
        raise ValueError(f"win_size {win_size} does not fit images of {size}; see channel_axis")
    if data_range is None:
        data_range = _default_range(im1, im2)
    pixels = win_size**axes
    if kwargs.get("use_sample_covariance", True):
        if pixels == 1:
            raise ValueError("win_size 1 needs use_sample_covariance=False: one pixel has none")
        # variances times pixels / (pixels - 1) are the same as C2 divided by it
        k2 *= math.sqrt((pixels - 1) / pixels)
    settings = dict(
        window="gaussian" if gaussian_weights else "uniform",
        window_size=taps,
        sigma=float(sigma),
        data_range=float(data_range),
        k1=k1,
        k2=k2,
        padding="valid",
        spatial_dims=axes,
    )
    # of any byte order
    dtype = np.float32 if im1.dtype.type in (np.float16, np.float32) else np.float64
    mean_type = dtype if channel_axis is not None else np.float64

    if not (full or gradient) and taps == win_size:
        # bytes are read as they are
        inside = np.uint8 if im1.dtype == im2.dtype == np.uint8 else dtype
        x, y = (_channels_first(image, channel_axis, inside) for image in (im1, im2))
        return mean_type(similarity(x, y, **settings).item())

    x, y = (_channels_first(image, channel_axis, dtype) for image in (im1, im2))
    y.requires_grad_(gradient)
    map_ = similarity(
        *(_mirrored(image, taps // 2) for image in (x, y)), reduction="none", **settings
    )
    if gradient:
        (slope,) = torch.autograd.grad(map_.sum(), y)
        slope = slope / math.prod(size)
    edge = (win_size - 1) // 2
    inside_map = map_.detach()
    for axis, length in enumerate(size, start=1):
        inside_map = inside_map.narrow(axis, edge, length - 2 * edge)
    results: list[Any] = [mean_type(inside_map.double().mean().item())]
    if gradient:
        results.append(_channels_back(slope, channel_axis))
    if full:
        results.append(_channels_back(map_.detach(), channel_axis))
    return results[0] if len(results) == 1 else tuple(results)


def _is(axis: int, channel_axis: int | None, image: np.ndarray) -> bool:
    return channel_axis is not None and axis == channel_axis % image.ndim


def _channels_first(image: np.ndarray, channel_axis: int | None, dtype: Any) -> torch.Tensor:
    """(C, ...), one channel where there are none."""
    image = image[None] if channel_axis is None else np.moveaxis(image, channel_axis, 0)
    return torch.from_numpy(np.array(image, dtype=dtype, order="C"))


def _channels_back(image: torch.Tensor, channel_axis: int | None) -> np.ndarray:
    array = image.numpy()
    return array[0] if channel_axis is None else np.moveaxis(array, 0, channel_axis)


def _mirrored(image: torch.Tensor, edge: int) -> torch.Tensor:
    """(C, ...) with a border that repeats the last pixel: d c b a | a b c d | d c b a."""
    for axis in range(1, image.dim()):
        length = image.shape[axis]
        around = torch.arange(-edge, length + edge) % (2 * length)
        image = image.index_select(axis, torch.minimum(around, 2 * length - 1 - around))
    return image
