"""The values of one pair of pictures."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from .._checks import PADDINGS, choice, integer, positive
from .._luma import LUMAS, luma_of
from .._multiscale import BETAS
from .._terms import to_psnr
from ..functional import image_loss, ms_ssim
from .pictures import MAX_PIXELS, Inks, PictureError, data_range, read_picture

# what a result holds, in the order of the columns
FIELDS = {
    "input": str,
    "target": str,
    "ssim": float,
    "ms_ssim": float,
    "psnr": float,
    "mse": float,
    "l1": float,
    "height": int,
    "width": int,
    "channels": int,
    "dtype": str,
    "data_range": float,
    "padding": str,
    "luma": str,
    "crop_border": int,
    "error": str,
}
Result = dict[str, Any]  # FIELDS' names and values; None for what there is not
MS_SSIM_LEAST = 11 * 2 ** (len(BETAS) - 1)  # pixels of a side: the window at the coarsest scale


class Settings(NamedTuple):
    """How pairs are compared."""

    data_range: float | None = None  # None: what the pictures' type implies
    padding: str = "same"
    ms_ssim: bool = False  # it takes longer than all the others together
    max_pixels: int = MAX_PIXELS
    luma: str | None = None  # of RGB pictures this alone is compared
    crop_border: int = 0  # pixels that are left out at each side

    def checked(self) -> Settings:
        """The same, or a ValueError that names what is wrong."""
        if self.data_range is not None:
            positive("data_range", self.data_range)
        choice("padding", self.padding, PADDINGS)
        positive("max_pixels", self.max_pixels)
        if self.luma is not None:
            choice("luma", self.luma, LUMAS)
        if integer("crop_border", self.crop_border) < 0:
            raise ValueError(f"crop_border must be at least 0, got {self.crop_border}")
        return self

    def fit(self, result: Result) -> bool:
        """Whether a result that has values was made with these settings."""
        wanted = self.data_range
        if wanted is None:
            kind = np.dtype(result["dtype"])
            wanted = data_range(np.empty(0, kind))
        large = min(result["height"], result["width"]) >= MS_SSIM_LEAST
        return (
            result["padding"] == self.padding
            and result["luma"] == self.luma
            and result["crop_border"] == self.crop_border
            and result["data_range"] == wanted
            and (result["ms_ssim"] is not None) == (self.ms_ssim and large)
        )


def as_tensor(picture: np.ndarray) -> torch.Tensor:
    """(1, C, H, W) of a picture (H, W, C): its own memory where that can be, float16 as float32."""
    if picture.dtype == np.float16:
        picture = picture.astype(np.float32)
    picture = np.require(picture, requirements=("C", "W"))
    return torch.from_numpy(picture).permute(2, 0, 1)[None]


@contextlib.contextmanager
def torch_errors() -> Iterator[None]:
    """What torch raises of pictures as a PictureError; a lack of memory as a MemoryError."""
    try:
        yield
    except ValueError as error:  # a border or window that is larger than the pictures
        raise PictureError(str(error)) from None
    except RuntimeError as error:  # torch's type for a lack of memory on the CPU, too
        if "allocate memory" in str(error):
            raise MemoryError from None
        raise PictureError(f"torch: {str(error).splitlines()[0]}") from error


def check_pair(input: np.ndarray, target: np.ndarray) -> None:
    """Two pictures that can be compared, or a PictureError."""
    size, other = (f"{p.shape[1]} x {p.shape[0]}" for p in (input, target))
    if size != other:
        raise PictureError(f"the pictures differ in size: {size} and {other}")
    if input.shape[2] != target.shape[2]:
        channels = f"{input.shape[2]} and {target.shape[2]}"
        raise PictureError(f"the pictures differ in their number of channels: {channels}")
    kinds = ["CMYK" if isinstance(picture, Inks) else "RGBA" for picture in (input, target)]
    if kinds[0] != kinds[1]:
        raise PictureError(f"the pictures differ in their colours: {kinds[0]} and {kinds[1]}")
    if input.dtype != target.dtype:
        raise PictureError(f"the pictures differ in type: {input.dtype} and {target.dtype}")


def _check_values(picture: np.ndarray, settings: Settings) -> None:
    """Numbers that go with the data range: only floating-point ones can fail."""
    if picture.dtype.kind != "f":
        return
    low, high = float(picture.min()), float(picture.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise PictureError("a picture holds NaN or infinity")
    if settings.data_range is None and not -1e-3 <= low <= high <= 1 + 1e-3:
        raise PictureError(
            f"floating-point values from {low:g} to {high:g} are not in [0, 1]: "
            "give data_range (the command's --data-range)"
        )


def compared_part(picture: np.ndarray, settings: Settings) -> np.ndarray:
    """What is compared of a picture (H, W, C): without its border, its luma alone (H, W, 1).

    A grey picture is its own luma; that of whole numbers is float32, in their units, not rounded.

    Raises:
        PictureError: nothing is left, or the picture is neither RGB nor grey.
    """
    height, width, channels = picture.shape
    border = settings.crop_border
    if min(height, width) <= 2 * border:
        raise PictureError(f"a border of {border} pixels leaves nothing of {width} x {height}")
    picture = picture[border : height - border, border : width - border]
    if settings.luma is None or channels == 1:
        return picture
    if channels != 3:
        raise PictureError(f"luma is of RGB or grey pictures, not of {channels} channels")
    colours = picture.astype(np.promote_types(picture.dtype, np.float32), copy=False)
    span = settings.data_range or data_range(picture)
    return luma_of(np.split(colours, 3, axis=2), settings.luma, span)


def compare(input: np.ndarray, target: np.ndarray, settings: Settings) -> Result:
    """SSIM, MS-SSIM, PSNR, MSE and L1 of two pictures, as their channels' mean.

    Shape:
        (H, W, C), of one type. MS-SSIM is None where a side is shorter than 176 pixels. The
        result's height, width and channels are those of what is compared.

    Units:
        MSE and L1: those of the pictures. PSNR: decibels, infinite for equal pictures.

    Raises:
        PictureError: the pictures differ in size, channels or type, or hold no usable numbers.
    """
    check_pair(input, target)
    for picture in (input, target):
        _check_values(picture, settings)
    kind, span = input.dtype.name, settings.data_range or data_range(input)
    input, target = (compared_part(picture, settings) for picture in (input, target))
    height, width, channels = input.shape
    x, y = as_tensor(input), as_tensor(target)
    with torch_errors(), torch.inference_mode():
        _, terms = image_loss(
            x, y, ssim=1, mse=1, l1=1, data_range=span, padding=settings.padding,
            return_terms=True,
        )  # fmt: skip
        coarse = None
        if settings.ms_ssim and min(height, width) >= MS_SSIM_LEAST:
            coarse = ms_ssim(x, y, data_range=span).item()
    similarity = 1 - terms.ssim.item()
    if not math.isfinite(similarity):
        raise PictureError(f"SSIM of values this large is not a number in {kind}")
    return {
        "ssim": similarity,
        "ms_ssim": coarse,
        "psnr": to_psnr(terms.mse.double(), span).item(),
        "mse": terms.mse.item(),
        "l1": terms.l1.item(),
        "height": height,
        "width": width,
        "channels": channels,
        "dtype": kind,
        "data_range": span,
        "padding": settings.padding,
        "luma": settings.luma,
        "crop_border": settings.crop_border,
        "error": None,
    }


def failed(error: str) -> Result:
    """The result of a pair that could not be compared."""
    return {name: None for name in FIELDS if name not in ("input", "target")} | {"error": error}


def compare_files(input: str | Path, target: str | Path, settings: Settings) -> Result:
    """The result of two files; what is wrong with them stands in its ``error``."""
    try:
        first, second = (read_picture(path, settings.max_pixels) for path in (input, target))
    except PictureError as error:  # names its file
        return failed(str(error))
    except MemoryError:
        return failed(f"no memory to read {input} and {target}")
    try:
        return compare(first, second, settings)
    except PictureError as error:
        return failed(f"{input} and {target}: {error}")
    except MemoryError:
        return failed(f"no memory to compare {input} with {target}")
