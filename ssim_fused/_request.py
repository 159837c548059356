"""A checked call, in the one form that every backend computes, and what a backend is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Settings(NamedTuple):
    """What a call computes, checked; hashable, so that it can be cached."""

    windows: tuple[tuple[float, ...], ...]  # taps of each axis's window, or one for every axis
    data_range: float
    k1: float
    k2: float
    padding: str
    reduction: str
    kind: str = "ssim"  # which map: of KINDS
    spatial_dims: int | None = None  # None: from the images' rank
    sample_covariance: bool = False

    def taps(self, axes: int) -> list[int]:
        """Taps along each of the last ``axes`` axes."""
        counts = [len(window) for window in self.windows]
        return counts * axes if len(counts) == 1 else counts

    def pads(self, axes: int) -> list[int]:
        """Pixels in front of and behind each of the last ``axes`` axes."""
        inside = self.padding == "valid"
        return [0 if inside else taps // 2 for taps in self.taps(axes)]

    def map_size(self, size: Sequence[int]) -> list[int]:
        """Spatial size of the map of images of a spatial size."""
        axes = len(size)
        sizes = zip(size, self.taps(axes), self.pads(axes))
        return [length + 2 * pad - (taps - 1) for length, taps, pad in sizes]


class Request(NamedTuple):
    """A checked call, in the one form that backends compute."""

    input: Tensor  # [N, C, H, W] or [N, C, D, H, W]
    target: Tensor
    settings: Settings  # padding "same" or "valid"
    # each window's share in what it is reduced to, [N, C, OH, OW] or with OD, or None for a mean
    share: Tensor | None = None
    mask: Tensor | None = None  # [N, C, H, W] or with D, in the accumulation type
    # like share: 1 / (filtered mask), and 0 where a window does not count
    coverage: Tensor | None = None

    # methods, as torch.compile sees no properties of tuples before torch 2.11
    def axes(self) -> int:
        """How many spatial axes."""
        return self.input.dim() - 2

    def map_shape(self) -> list[int]:
        """Shape of the map."""
        return [*self.input.shape[:2], *self.settings.map_size(self.input.shape[2:])]


# 1 - SSIM of a request, reduced; half-precision images give a float32 value
ReducedLoss = Callable[[Request], Tensor]


class Backend(NamedTuple):
    """What computes requests: the native operators (_ops), or plain PyTorch (reference)."""

    reduced_loss: ReducedLoss
    # [4]: the weighted sum of (SSIM loss, MSE, L1) of a request, and the three without weights
    image_terms: Callable[[Request, tuple[float, ...]], Tensor]
    # one scale of MS-SSIM, by the offset of its halves; see ssim_fused._ops.scale
    scale: Callable[[Request, tuple[int, ...]], tuple[Tensor, Tensor, Tensor]]


# The operators take words as numbers: their place here, as in the enums Kind of csrc/ssim_math.h,
# where "contrast_structure" is called contrast, and ReducedTo of csrc/ssim_operators.h.
KINDS = ("ssim", "contrast_structure", "luminance", "nonnegative")
REDUCED_TO = ("mean", "sum", "plane")
MEAN, SUM, PLANE = range(3)


def is_half(image: Tensor) -> bool:
    """Whether an image is computed in more digits than it has."""
    return image.dtype in (torch.float16, torch.bfloat16)


def value_dtype(image: Tensor) -> torch.dtype:
    """What the value of images is promised in: their own, for whole numbers float32."""
    return image.dtype if image.is_floating_point() else torch.float32


def accumulate_dtype(image: Tensor) -> torch.dtype:
    """What an image is computed in."""
    return torch.float64 if image.dtype == torch.float64 else torch.float32


def can_be_read(value: Tensor) -> bool:
    """Whether its numbers are at hand: no device to wait for, and no trace that they would end."""
    if torch.compiler.is_compiling() or value.device.type != "cpu":
        return False
    # torch.jit.trace and make_fx would keep the branch that one example took
    if torch._C._is_tracing() or torch._C._len_torch_dispatch_stack():
        return False
    return type(value) is Tensor


def is_captured(tensor: Tensor) -> bool:
    """Whether what is computed with it is recorded into a CUDA graph."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()
