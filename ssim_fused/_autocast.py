"""What torch.autocast changes: half-precision images give a float32 value, and may meet float32."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor

from ._request import is_half, value_dtype

_MEETING = (torch.float16, torch.bfloat16, torch.float32)  # one another; float64 meets none


def autocast_enabled(image: Tensor) -> bool:
    """Whether the device of an image is under autocast."""
    device = image.device.type
    return device != "meta" and torch.is_autocast_enabled(device)


def full_precision(image: Tensor) -> Any:
    """Operators in the precision they are asked for, also under autocast."""
    if autocast_enabled(image):
        return torch.autocast(image.device.type, enabled=False)
    return contextlib.nullcontext()


def promised_dtype(image: Tensor) -> torch.dtype:
    """What the value of images is given in: under autocast float32 for half precision."""
    return torch.float32 if is_half(image) and autocast_enabled(image) else value_dtype(image)


def under_autocast(input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """A network's half-precision output meets float32 data: as autocast does for torch's losses."""
    if (
        isinstance(input, Tensor)
        and isinstance(target, Tensor)
        and input.dtype != target.dtype
        and input.dtype in _MEETING
        and target.dtype in _MEETING
        and autocast_enabled(input)
    ):
        return input.float(), target.float()
    return input, target
