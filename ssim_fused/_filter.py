"""The separable window in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ._distributed import beside, is_spread
from ._request import Settings
from ._windows import single_window


def pad(image: Tensor, settings: Settings) -> Tensor:
    """Zeros around the last axes, as the settings' padding says."""
    pads = settings.pads(image.dim() - 2)
    # F.pad goes from the last axis to the first, both ends of each
    return F.pad(image, [pad for pad in reversed(pads) for _ in range(2)]) if any(pads) else image


def _filter_axis(maps: Tensor, window: Tensor, axis: int) -> Tensor:
    """A 1-D window along one spatial axis of (N, channels, ...), without padding."""
    shape = maps.shape
    if shape[1] == 1 or is_spread(maps):
        # for one channel a CPU's convolution is slower than a sum of shifted images, and a GPU's
        # may round to TF32; a DTensor has none with a kernel that every process holds
        length = shape[axis] - len(window) + 1
        shifted = (maps.narrow(axis, k, length) for k in range(len(window)))
        filtered = next(shifted) * window[0]
        for tap, image in zip(window[1:], shifted):
            filtered = torch.addcmul(filtered, image, tap)
        return filtered
    if axis == maps.dim() - 1:
        maps = maps.reshape(shape[0], shape[1], -1, shape[-1])
        kernel = window.view(1, 1, 1, -1)
    else:  # what comes before the axis are channels, what comes behind it are columns
        maps = maps.reshape(shape[0], -1, shape[axis], shape[axis + 1 :].numel())
        kernel = window.view(1, 1, -1, 1)
    channels = maps.shape[1]
    if maps.device.type == "cpu":
        # a CPU filters channels that lie side by side; plane after plane takes 20 times as long. No
        # memory_format=channels_last, which vmap does not know.
        maps = maps.movedim(1, -1).contiguous().movedim(-1, 1)
    else:  # a GPU may round channels side by side to TF32 (cuDNN)
        maps = maps.contiguous()
    filtered = F.conv2d(maps, kernel.expand(channels, -1, -1, -1), groups=channels)
    return filtered.reshape(*shape[:axis], -1, *shape[axis + 1 :])


def filter_axes(maps: Tensor, settings: Settings) -> Tensor:
    """The window over each channel of (N, channels, ...), zeros outside for padding "same"."""
    axes = maps.dim() - 2
    windows = settings.windows * (axes if len(settings.windows) == 1 else 1)
    maps = pad(maps, settings)
    for axis, taps in enumerate(windows, start=2):
        if len(taps) > 1:
            if maps.dtype != torch.float64:
                taps = single_window(taps)
            maps = _filter_axis(maps, beside(maps, taps), axis)
    return maps
