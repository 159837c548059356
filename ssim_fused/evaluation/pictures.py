"""Reading pictures: PNG, JPEG, TIFF, WebP and NPY, in all of their bits, within limits."""

from __future__ import annotations

import contextlib
import math
import os
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from PIL import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".npy")
MAX_PIXELS = 178_956_970  # from here on Pillow, too, refuses
_MOST_CHANNELS = 4
_DTYPES = ("uint8", "uint16", "float16", "float32", "float64")
_PNG_START = b"\x89PNG\r\n\x1a\n"
_JPEG_START = b"\xff\xd8"
_NPY_START = b"\x93NUMPY"
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_TIFF_BITS = (1, 2, 4, 8, 16, 32, 64)  # of a value; others, as 12, do not fill their type
_PHOTOMETRIC = tifffile.PHOTOMETRIC
# what tifffile gives as it is stored, not as colours
_INDIRECT = tuple(
    _PHOTOMETRIC[name]
    for name in ("PALETTE", "YCBCR", "CIELAB", "ICCLAB", "ITULAB", "LOGL", "LOGLUV")
)
# Pillow's modes that have the same meaning in numpy; others are converted
_PILLOW_MODES = ("L", "LA", "RGB", "RGBA", "I;16", "F")
_PILLOW_FORMATS = ("PNG", "JPEG", "TIFF", "WEBP")


class Inks(np.ndarray):
    """A CMYK picture: four channels as RGBA, but of another meaning."""


class PictureError(ValueError):
    """A picture that cannot be read, or a pair that cannot be compared: which, and why."""


def read_picture(path: str | Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """The picture in a file.

    Args:
        path: a PNG, JPEG, TIFF, WebP or NPY file, told apart by its content. NPY: (H, W) or
            (H, W, C) of uint8, uint16 or floating-point numbers.
        max_pixels: the most pixels that are decoded; the header is asked first.

    Shape:
        (H, W, C), C at most 4, in the file's own type; CMYK as :class:`Inks`.

    Raises:
        PictureError: names the file and what is wrong with it.
    """
    path = Path(path)
    try:
        picture = _read(path, max_pixels)
        return checked(picture)
    except PictureError as error:
        raise PictureError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise PictureError(f"{path}: no such file") from None
    except MemoryError:
        raise PictureError(f"{path}: no memory for it") from None
    except Exception as error:  # decoders raise whatever they like
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise PictureError(f"{path}: cannot be read: {lines[0]}") from error


def data_range(picture: np.ndarray) -> float:
    """The range that a picture's type implies: 255, 65535, or 1 for floating-point numbers."""
    if picture.dtype.kind == "f":
        return 1.0
    return float(np.iinfo(picture.dtype).max)


def holds_picture(path: Path) -> bool:
    """Whether there is a file that begins as a picture does."""
    try:
        return _reader(path) is not None
    except (OSError, PictureError):
        return False


def _reader(path: Path) -> Callable[[Path, int], np.ndarray] | None:
    """What reads a file of this kind, told by its first bytes; None for no picture."""
    if not stat.S_ISREG(path.stat().st_mode):  # a device or a pipe may never end
        raise PictureError("is not a file")
    with path.open("rb") as file:
        start = file.read(12)
    if start.startswith(_NPY_START):
        return _read_npy
    if start.startswith(_TIFF_STARTS):
        return _read_tiff
    if start.startswith(_PNG_START):
        return _read_png
    if start.startswith(_JPEG_START) or (start.startswith(b"RIFF") and start[8:] == b"WEBP"):
        return _read_pillow
    return None


def _read(path: Path, max_pixels: int) -> np.ndarray:
    read = _reader(path)
    if read is None:
        raise PictureError("is not a PNG, JPEG, TIFF, WebP or NPY file")
    return read(path, max_pixels)


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise PictureError(
            f"{width} x {height} are {width * height} pixels, more than the limit of {max_pixels}"
        )


def _read_npy(path: Path, max_pixels: int) -> np.ndarray:
    picture = np.load(path, mmap_mode="r", allow_pickle=False)
    if picture.ndim not in (2, 3):
        raise PictureError(f"must be (H, W) or (H, W, C), got shape {picture.shape}")
    _check_size(picture.shape[1], picture.shape[0], max_pixels)
    _check_kind(picture.dtype.name, picture.shape)
    return np.array(picture)


def _read_tiff(path: Path, max_pixels: int) -> np.ndarray:
    with tifffile.TiffFile(path) as tiff:
        _check_single(len(tiff.pages))
        page: Any = tiff.pages[0]
        _check_size(page.imagewidth, page.imagelength * page.imagedepth, max_pixels)
        if page.bitspersample not in _TIFF_BITS:
            raise PictureError(f"has {page.bitspersample} bits a value, which is not supported")
        _check_segments(page, tiff.filehandle.size)
        # JPEG within a TIFF becomes RGB when it is decoded
        jpeg = page.photometric == _PHOTOMETRIC.YCBCR and page.compression == 7
        if page.bitspersample >= 8 and (jpeg or page.photometric not in _INDIRECT):
            return _tiff_values(page)
    return _read_pillow(path, max_pixels)


def _check_segments(page: Any, size: int) -> None:
    """All strips or tiles lie in the file: decoders would invent what does not."""
    segments = list(zip(page.dataoffsets, page.databytecounts))
    whole = all(offset and count and offset + count <= size for offset, count in segments)
    if not whole or len(segments) < math.prod(page.chunked):
        raise PictureError("cannot be read: a part of its pixels is not in the file")


def _tiff_values(page: Any) -> np.ndarray:
    channels = page.samplesperpixel
    _check_kind(str(page.dtype), (page.imagelength, page.imagewidth, channels))
    picture = page.asarray()
    if picture.ndim == 3 and page.axes[0] == "S":
        picture = np.moveaxis(picture, 0, -1)
    if page.photometric == _PHOTOMETRIC.MINISWHITE:
        if channels > 1 or picture.dtype.kind == "f":
            raise PictureError(f"has white as zero in {channels} x {picture.dtype}: not supported")
        return np.iinfo(picture.dtype).max - picture
    inks = page.photometric == _PHOTOMETRIC.SEPARATED and channels == 4
    return picture.view(Inks) if inks else picture


def _check_single(pictures: int) -> None:
    if pictures != 1:
        raise PictureError(f"holds {pictures} pictures, not one")


def _png_pictures(content: bytes) -> int:
    """How many are in an animation, which says so before its pixels (chunk acTL)."""
    before, at = {}, 8
    while at + 8 <= len(content) and content[at + 4 : at + 8] != b"IDAT":
        (length,) = struct.unpack_from(">I", content, at)
        before[content[at + 4 : at + 8]] = content[at + 8 : at + 8 + length]
        at += 12 + length
    if b"acTL" not in before:
        return 1
    # without a control of its own (fcTL) the picture is none of the animation's
    return int.from_bytes(before[b"acTL"][:4], "big") + (b"fcTL" not in before)


def _read_png(path: Path, max_pixels: int) -> np.ndarray:
    # libpng by way of imagecodecs takes half of Pillow's time, and keeps 16 bits of a colour
    with path.open("rb") as file:
        header = file.read(24)
        width, height = (int.from_bytes(header[at : at + 4], "big") for at in (16, 20))
        _check_size(width, height, max_pixels)
        content = header + file.read()
    _check_single(_png_pictures(content))
    return imagecodecs.png_decode(content)


_lock = threading.Lock()
_limits: list[int | None] = []  # what Pillow's limit was, for each file that is being read


@contextlib.contextmanager
def _pillow_unlimited() -> Iterator[None]:
    """Pillow's limit, one for the process, makes way for that of the caller."""
    with _lock:
        _limits.append(Image.MAX_IMAGE_PIXELS)
        Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        with _lock:
            limit = _limits.pop()
            if not _limits:  # the last one has what the first one found
                Image.MAX_IMAGE_PIXELS = limit


def _read_pillow(path: Path, max_pixels: int) -> np.ndarray:
    with _pillow_unlimited(), Image.open(path, "r", _PILLOW_FORMATS) as image:
        _check_size(*image.size, max_pixels)
        if image.format != "MPO":
            _check_single(getattr(image, "n_frames", 1))
        return from_pillow(image)


def from_pillow(image: Image.Image) -> np.ndarray:
    """A picture of Pillow's as numbers: colours, not indices of a palette; CMYK as Inks."""
    if image.mode == "CMYK":
        return np.asarray(image).view(Inks)
    if image.mode in _PILLOW_MODES:
        return np.asarray(image)
    if image.mode == "P":
        return np.asarray(image.convert("RGBA" if "transparency" in image.info else "RGB"))
    if image.mode in ("1", "PA", "RGBX", "YCbCr", "LAB"):
        return np.asarray(image.convert("L" if image.mode == "1" else "RGB"))
    raise PictureError(f"has pixels of a kind that is not supported ({image.mode})")


def picture_of(name: str, what: Any, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """The picture that a path, an image of Pillow's or anything that numpy takes stands for.

    Raises:
        PictureError: there is none in it; it is called by its name, or by that of its file.
    """
    if isinstance(what, (str, os.PathLike)):
        return read_picture(os.fsdecode(what), max_pixels)
    try:
        picture = from_pillow(what) if isinstance(what, Image.Image) else np.asarray(what)
    except (MemoryError, PictureError):
        raise
    except Exception as error:  # of a cut or closed image, a ragged list, an object's conversion
        raise PictureError(f"{name} is no picture: {error}") from error
    return checked(picture)


def _check_kind(dtype: str, shape: tuple[int, ...]) -> None:
    if dtype not in _DTYPES:
        raise PictureError(f"must hold {', '.join(_DTYPES)}, got {dtype}")
    if len(shape) == 3 and shape[2] > _MOST_CHANNELS:
        raise PictureError(
            f"must be (H, W) or (H, W, C) with at most {_MOST_CHANNELS} channels, got shape {shape}"
        )


def checked(picture: np.ndarray) -> np.ndarray:
    """A picture as (H, W, C) in this machine's byte order, or a PictureError."""
    if picture.ndim == 2:
        picture = picture[..., None]
    if picture.ndim != 3 or picture.size == 0:
        raise PictureError(f"must be (H, W) or (H, W, C), got shape {picture.shape}")
    _check_kind(picture.dtype.name, picture.shape)
    if not picture.dtype.isnative:
        picture = picture.astype(picture.dtype.newbyteorder("="))
    return picture
