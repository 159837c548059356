"""User errors, explained before any kernel runs, and the checked settings of one call."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
PADDINGS = ("same", "valid")
REDUCTIONS = ("mean", "sum", "image", "none")


class Settings(NamedTuple):
    """What a call computes, checked; hashable, so that it can be cached."""

    window: tuple[float, ...]  # taps of the 1-D window, sum 1
    data_range: float
    k1: float
    k2: float
    padding: str
    reduction: str

    @property
    def pad(self) -> int:
        """Zeros in front of and behind each row and column."""
        return len(self.window) // 2 if self.padding == "same" else 0


def gaussian_window(window_size: int, sigma: float) -> tuple[float, ...]:
    """Taps of a 1-D Gaussian that sum to 1."""
    half = window_size // 2
    taps = [math.exp(-0.5 * (i / sigma) ** 2) for i in range(-half, half + 1)]
    total = math.fsum(taps)
    return tuple(tap / total for tap in taps)


def _positive(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be positive and finite, got {value}")
    return float(value)


def _nonnegative(name: str, value: float) -> float:
    return 0.0 if value == 0 and not isinstance(value, bool) else _positive(name, value)


def _choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return value


def _check_settings(
    window_size: int,
    sigma: float,
    data_range: float,
    k1: float,
    k2: float,
    padding: str,
    reduction: str,
) -> Settings:
    if isinstance(window_size, bool) or not isinstance(window_size, int):
        raise TypeError(f"window_size must be an int, got {type(window_size).__name__}")
    if window_size < 1 or window_size % 2 == 0:
        raise ValueError(f"window_size must be odd and at least 1, got {window_size}")
    return Settings(
        window=gaussian_window(window_size, _positive("sigma", sigma)),
        data_range=_positive("data_range", data_range),
        k1=_nonnegative("k1", k1),
        k2=_nonnegative("k2", k2),
        padding=_choice("padding", padding, PADDINGS),
        reduction=_choice("reduction", reduction, REDUCTIONS),
    )


_cached_settings = functools.lru_cache(maxsize=256, typed=True)(_check_settings)


def check_settings(*settings: Any) -> Settings:
    """The settings of a call, ``window_size`` to ``reduction``, or a clear error."""
    # Dynamo traces through the check itself; it warns at a cache
    if torch.compiler.is_compiling():
        return _check_settings(*settings)
    return _cached_settings(*settings)


def _check_image(name: str, image: Tensor) -> None:
    if not isinstance(image, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(image).__name__}")
    if image.dtype not in DTYPES:
        raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {image.dtype}")
    if image.layout != torch.strided:
        raise TypeError(f"{name} must be a dense (strided) tensor, got layout {image.layout}")


def check_images(input: Tensor, target: Tensor, settings: Settings) -> None:
    """Both images fit each other and the window, or a clear error."""
    _check_image("input", input)
    _check_image("target", target)
    shape = input.shape
    if shape != target.shape:
        raise ValueError(
            "input and target must have the same shape, "
            f"got {tuple(shape)} and {tuple(target.shape)}"
        )
    if len(shape) not in (3, 4):
        raise ValueError(f"images must be (N, C, H, W) or (C, H, W), got shape {tuple(shape)}")
    if 0 in shape:
        raise ValueError(f"images must not be empty, got shape {tuple(shape)}")
    if input.dtype != target.dtype:
        raise TypeError(
            f"input and target must have one dtype, got {input.dtype} and {target.dtype}"
        )
    if input.device != target.device:
        raise ValueError(
            f"input and target must be on one device, got {input.device} and {target.device}"
        )
    taps = len(settings.window)
    if settings.padding == "valid" and (shape[-2] < taps or shape[-1] < taps):
        raise ValueError(
            f"padding 'valid' needs images of at least {taps} x {taps}, "
            f"got {shape[-2]} x {shape[-1]}"
        )
