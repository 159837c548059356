"""User errors, explained before any kernel runs."""

from __future__ import annotations

import functools
import inspect
import math
import numbers
import reprlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ._request import Settings, accumulate_dtype
from ._windows import gaussian_window

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# pictures as files hold them, for values alone, and the data range that their type implies
WHOLE = {torch.uint8: 255.0, torch.uint16: 65535.0}
BORDERS = ("reflect", "replicate", "circular")  # made by _border.py, then as "valid"
PADDINGS = ("same", "valid", *BORDERS)
REDUCTIONS = ("mean", "sum", "image", "channel", "none")
TERMS = ("ssim", "contrast_structure", "luminance")

MOST_TAPS = 2**20 - 1  # kMostTaps of csrc/ssim_operators.h

# taps along each axis, or of every axis
Taps = int | Sequence[int]
Sigma = float | Sequence[float]
# "gaussian", "uniform", the taps of one window, or those of one for each axis
Window = str | Tensor | Sequence[float] | Sequence[Sequence[float]]


# ---- numbers and words ----


def _constant(value: Any) -> Any:
    """A number as such, also where Dynamo would make it an input of its graph (dynamic=True)."""
    if not torch.compiler.is_compiling():
        return value
    from torch.fx.experimental.symbolic_shapes import guard_scalar

    return guard_scalar(value)


def _number(name: str, value: Any) -> float:
    if not isinstance(value, (int, float)) and isinstance(value, numbers.Real):
        value = float(value)  # a numpy scalar
    if isinstance(value, tuple):  # what hashable makes of lists, tensors and arrays
        raise TypeError(f"{name} must be a number without axes, got {reprlib.repr(value)}")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    return _constant(value)


def integer(name: str, value: Any) -> int:
    """A whole number, or an error."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    return _constant(value) if isinstance(value, int) else int(value)


def positive(name: str, value: float) -> float:
    """A positive, finite number, or an error."""
    value = _number(name, value)
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be positive and finite, got {value}")
    return float(value)


def nonnegative(name: str, value: float) -> float:
    """A finite number that is at least 0, or an error."""
    value = _number(name, value)
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be finite and at least 0, got {value}")
    return float(value)


def finite(name: str, value: float) -> float:
    """A finite number, or an error."""
    value = _number(name, value)
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")
    return value


def fraction(name: str, value: float) -> float:
    """A number in [0, 1), or an error."""
    value = nonnegative(name, value)
    if not value < 1:
        raise ValueError(f"{name} must be in [0, 1), got {value}")
    return value


def choice(name: str, value: Any, choices: Sequence[Any]) -> Any:
    """One of the choices, or an error."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return value


def flag(name: str, value: bool) -> bool:
    """True or False, or an error."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, got {type(value).__name__}")
    return value


def check_names(owner: object, given: Iterable[str], known: Sequence[str]) -> None:
    """Keywords that a function or an object's class knows, or an error."""
    for name in given:
        if name not in known:
            called = getattr(owner, "__name__", type(owner).__name__)
            raise TypeError(f"{called} has no argument {name!r}; it has {', '.join(known)}")


def no_gradient(name: str, value: Tensor) -> None:
    """A tensor that asks for no gradient, or an error."""
    if value.requires_grad:
        raise ValueError(f"{name} must not require a gradient: none flows to it")


# ---- windows ----


def _odd(name: str, value: int) -> int:
    value = integer(name, value)
    if value < 1 or value % 2 == 0:
        raise ValueError(f"{name} must be odd and at least 1, got {value}")
    _check_taps(name, value)
    return value


def _check_taps(name: str, taps: int) -> None:
    if taps > MOST_TAPS:
        raise ValueError(f"{name} must have at most {MOST_TAPS} taps, got {taps}")


def _each(name: str, value: Any) -> tuple:
    """A value for every axis, or one for each."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if not 1 <= len(values) <= 3:
        raise ValueError(f"{name} must be one number or one for each axis, got {value!r}")
    return values


def _user_window(name: str, taps: Sequence[float]) -> tuple[float, ...]:
    _check_taps(name, len(taps))
    taps = tuple(finite(name, tap) for tap in taps)
    if len(taps) % 2 == 0:
        raise ValueError(f"{name} must have an odd number of taps, got {len(taps)}")
    if min(taps) < 0:  # variances would be, too
        raise ValueError(f"{name} must have taps of at least 0, got {min(taps)}")
    total = math.fsum(taps)
    if abs(total - 1) > 1e-4:
        raise ValueError(f"{name} must sum to 1, got a sum of {total:.6g}")
    if any(abs(tap - other) > 1e-6 for tap, other in zip(taps, reversed(taps))):
        raise ValueError(f"{name} must be symmetric, got {taps}")
    # what rounding left of sum and symmetry
    return tuple(0.5 * (tap + other) / total for tap, other in zip(taps, reversed(taps)))


def _checked_windows(window_size: Taps, sigma: Sigma, window: Any) -> tuple[tuple[float, ...], ...]:
    if isinstance(window, str):
        choice("window", window, ("gaussian", "uniform"))
        sizes = tuple(_odd("window_size", size) for size in _each("window_size", window_size))
        sigmas = tuple(positive("sigma", value) for value in _each("sigma", sigma))
        if 1 < len(sizes) != len(sigmas) > 1:
            raise ValueError(
                f"window_size and sigma differ in their axes, got {window_size} and {sigma}"
            )
        axes = max(len(sizes), len(sigmas))
        sizes, sigmas = sizes * (axes // len(sizes)), sigmas * (axes // len(sigmas))
        if window == "uniform":
            return tuple((1.0 / size,) * size for size in sizes)
        return tuple(map(gaussian_window, sizes, sigmas))
    if not isinstance(window, tuple) or not window:
        raise TypeError(
            "window must be 'gaussian', 'uniform', or the taps of 1-D windows, "
            f"got {type(window).__name__}"
        )
    if all(isinstance(axis, tuple) for axis in window):
        if len(window) > 3:
            raise ValueError(f"window must have one axis to three, got {len(window)}")
        return tuple(_user_window(f"window of axis {i}", axis) for i, axis in enumerate(window))
    return (_user_window("window", window),)


def hashable(name: str, value: Any) -> Any:
    """Lists, tensors and numpy's arrays as tuples."""
    if isinstance(value, (int, float)):  # Dynamo cannot ask its numbers for attributes
        return value
    if isinstance(value, Tensor):
        no_gradient(name, value)
        value = value.detach()
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return tuple(hashable(name, each) for each in value)
    return value


# ---- all settings ----


def _spatial_dims(axes: int | None) -> int | None:
    if axes is not None:
        axes = integer("spatial_dims", axes)
    return choice("spatial_dims", axes, (None, 1, 2, 3))


def _check_settings(
    window_size: Taps = 11,
    sigma: Sigma = 1.5,
    data_range: float = 1.0,
    k1: float = 0.01,
    k2: float = 0.03,
    padding: str = "same",
    reduction: str = "mean",
    window: Any = "gaussian",
    term: str = "ssim",
    nonnegative_ssim: bool = False,
    sample_covariance: bool = False,
    spatial_dims: int | None = None,
) -> Settings:
    kind = choice("term", term, TERMS)
    if flag("nonnegative_ssim", nonnegative_ssim):
        if term != "ssim":
            raise ValueError(f"nonnegative_ssim goes with term 'ssim', got {term!r}")
        kind = "nonnegative"
    return Settings(
        windows=_checked_windows(window_size, sigma, window),
        data_range=positive("data_range", data_range),
        k1=nonnegative("k1", k1),
        k2=nonnegative("k2", k2),
        padding=choice("padding", padding, PADDINGS),
        reduction=choice("reduction", reduction, REDUCTIONS),
        kind=kind,
        spatial_dims=_spatial_dims(spatial_dims),
        sample_covariance=flag("sample_covariance", sample_covariance),
    )


# what it takes; and what of that says which map is meant, where a function has more than one
SETTINGS = tuple(inspect.signature(_check_settings).parameters)
MAP_SETTINGS = ("term", "nonnegative_ssim", "sample_covariance")

_cached_settings = functools.lru_cache(maxsize=256, typed=True)(_check_settings)


def check_settings(*settings: Any, **named: Any) -> Settings:
    """The settings of a call as _check_settings names them, or a clear error."""
    # Dynamo traces through the check itself; it warns at a cache
    check = _check_settings if torch.compiler.is_compiling() else _cached_settings
    if not torch.compiler.is_compiling():
        try:
            return check(*settings, **named)
        except TypeError as error:
            tensors = any(isinstance(value, Tensor) for value in (*settings, *named.values()))
            if not tensors and "unhashable" not in str(error):
                raise
    named = dict(zip(SETTINGS, settings)) | named
    return check(**{name: hashable(name, value) for name, value in named.items()})


def check_early(**settings: Any) -> None:
    """Settings, ``mask_threshold`` among them, before there are images, or a clear error."""
    if "mask_threshold" in settings:
        fraction("mask_threshold", settings.pop("mask_threshold"))
    if settings.get("data_range") is None:
        settings["data_range"] = 1.0  # stands for what the images will imply
    check_settings(**settings)


def resolve_range(data_range: float | None, image: Tensor) -> float:
    """The data range that is given, or where none is, that of the image's dtype."""
    if data_range is not None:
        return hashable("data_range", data_range)
    return WHOLE.get(image.dtype, 1.0) if isinstance(image, Tensor) else 1.0


# of what images are computed in; asking torch takes as long as all of a call's other checks
_LIMITS = {
    dtype: (torch.finfo(dtype).tiny, torch.finfo(dtype).max)
    for dtype in (torch.float32, torch.float64)
}


def check_range(name: str, used: float, data_range: float, image: Tensor) -> None:
    """What is made of a data range is a number where images are computed, or a clear error."""
    dtype = accumulate_dtype(image)
    least, most = _LIMITS[dtype]
    if not least <= used <= most:
        raise ValueError(f"data_range has no {name} in {dtype}, got {data_range}")


# ---- images ----


def _check_dense(name: str, value: Tensor) -> None:
    if value.layout != torch.strided or value.is_nested:
        kind = "a nested tensor" if value.is_nested else f"layout {value.layout}"
        raise TypeError(f"{name} must be a dense (strided) tensor, got {kind}")


def check_image(name: str, image: Tensor) -> None:
    """A tensor of a kind that images have, or a clear error."""
    if not isinstance(image, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(image).__name__}")
    if image.dtype not in FLOATING and image.dtype not in WHOLE:
        raise TypeError(
            f"{name} must be float16, bfloat16, float32, float64, or, for a value alone, "
            f"uint8 or uint16, got {image.dtype}"
        )
    _check_dense(name, image)


SHAPES = {
    None: "(N, C, H, W), (C, H, W) or (N, C, D, H, W)",
    1: "(N, C, L) or (C, L)",
    2: "(N, C, H, W) or (C, H, W)",
    3: "(N, C, D, H, W) or (C, D, H, W)",
}


def check_pair(input: Tensor, target: Tensor) -> None:
    """Two images that can be compared pixel by pixel, or a clear error."""
    check_image("input", input)
    check_image("target", target)
    shape = input.shape
    if shape != target.shape:
        raise ValueError(
            "input and target must have the same shape, "
            f"got {tuple(shape)} and {tuple(target.shape)}"
        )
    if 0 in shape or not shape:
        raise ValueError(f"images must not be empty, got shape {tuple(shape)}")
    if input.dtype != target.dtype:
        floating = input.is_floating_point() and target.is_floating_point()
        way = "call the loss under autocast too, or convert one" if floating else "convert one"
        raise TypeError(
            f"input and target must have one dtype, got {input.dtype} and {target.dtype}: {way}"
        )
    if input.device != target.device:
        raise ValueError(
            f"input and target must be on one device, got {input.device} and {target.device}"
        )


def check_rank(input: Tensor, target: Tensor, axes: int | None) -> int:
    """Both images fit each other and spatial_dims, or a clear error; how many spatial axes."""
    check_pair(input, target)
    shape = input.shape
    rank = len(shape)
    if (rank not in (3, 4, 5)) if axes is None else (rank not in (axes + 1, axes + 2)):
        raise ValueError(f"images must be {SHAPES[axes]}, got shape {tuple(shape)}")
    if axes is None:
        axes = 3 if rank == 5 else 2
    return axes


def check_images(input: Tensor, target: Tensor, settings: Settings) -> int:
    """The same, and both fit the window and the data range."""
    axes = check_rank(input, target, settings.spatial_dims)
    check_range("reciprocal", 1 / settings.data_range, settings.data_range, input)
    _check_fit(input.shape[input.dim() - axes :], settings)
    return axes


def by(sizes: Sequence[int]) -> str:
    """A spatial size in words, such as "16 x 20"."""
    return " x ".join(map(str, sizes))


def _check_fit(size: Sequence[int], settings: Settings) -> None:
    """The windows and the border fit the images' spatial size, or a clear error."""
    axes = len(size)
    if len(settings.windows) not in (1, axes):
        raise ValueError(
            f"window settings for {len(settings.windows)} axes do not fit images of {axes}"
        )
    if settings.padding == "same" or settings.padding == "replicate":
        return
    taps = settings.taps(axes)
    if settings.padding == "valid":
        needed = taps
    else:  # a border reaches no further than the image itself
        needed = [count // 2 + (settings.padding == "reflect") for count in taps]
    if any(length < least for length, least in zip(size, needed)):
        raise ValueError(
            f"padding {settings.padding!r} needs images of at least {by(needed)}, got {by(size)}"
        )


def check_beside(name: str, value: Tensor, image: Tensor, size: Sequence[int]) -> Tensor:
    """A mask or weight that lies beside (N, C, ...) images, with their rank, or a clear error."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if value.dtype != torch.bool and value.dtype not in FLOATING:
        raise TypeError(f"{name} must be bool or floating-point, got {value.dtype}")
    _check_dense(name, value)
    no_gradient(name, value)
    if value.device != image.device:
        raise ValueError(f"{name} must be on the images' device {image.device}, got {value.device}")
    n, c = image.shape[:2]
    shape = tuple(value.shape)
    fits = len(shape) == image.dim() and shape[0] in (1, n) and shape[1] in (1, c)
    if not fits or shape[2:] != tuple(size):
        counts = ["1" if count == 1 else f"{count} or 1" for count in (n, c)]
        batch = " (without the first axis where the images have none)" if n == 1 else ""
        raise ValueError(
            f"{name} must be ({', '.join((*counts, *map(str, size)))}){batch}, got shape {shape}"
        )
    return value
