"""Batches of pairs as a cluster's scheduler hands them out."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from .compare import FIELDS, Result, Settings, compare, compare_files, failed
from .pictures import MAX_PIXELS, PictureError, picture_of

_NAMES = [name for name in FIELDS if name not in ("input", "target")]  # of results


def evaluate_batch(
    batch: dict[str, Any],
    *,
    data_range: float | None = None,
    padding: str = "same",
    ms_ssim: bool = False,
    max_pixels: int = MAX_PIXELS,
    luma: str | None = None,
    crop_border: int = 0,
) -> dict[str, np.ndarray]:
    """SSIM, MS-SSIM, PSNR, MSE and L1 of a batch of pairs, for ``ray.data.Dataset.map_batches``.

    Args:
        batch: columns ``input`` and ``target``: paths, or pictures, Pillow's or (H, W) or
            (H, W, C). Other columns are handed on.
        data_range: range of the values; by default 255, 65535 or 1, by their type.
        padding: border of the SSIM map, as in :func:`ssim_fused.ssim_loss`.
        ms_ssim: whether to compute MS-SSIM, of pictures of at least 176 x 176.
        max_pixels: the most pixels of a file that are decoded.
        luma: compare the luma of RGB pictures alone: ``"bt601"``, ``"bt709"`` or ``"matlab"``.
        crop_border: pixels that are left out at each side.

    Shape:
        Columns of N; results are N numbers or words, NaN or empty where there are none. A pair
        that cannot be compared has an ``error``, and the others are still done.

    Raises:
        ValueError: a column is missing, longer than another or named as one of the results, or a
            setting is wrong.

    Example:
        >>> ray.data.read_csv("pairs.csv").map_batches(ssim_fused.evaluate_batch).write_csv("out")
    """
    settings = Settings(data_range, padding, ms_ssim, max_pixels, luma, crop_border).checked()
    missing = {"input", "target"}.difference(batch)
    if missing:
        raise ValueError(f"a batch needs the columns input and target, got {', '.join(batch)}")
    if taken := [name for name in _NAMES if name in batch]:
        raise ValueError(f"a batch has columns that are named as results: {', '.join(taken)}")
    lengths = {name: len(column) for name, column in batch.items()}
    if len({*lengths.values()}) > 1:
        said = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise ValueError(f"columns of a batch must have one length, got {said}")
    results = [_result(*pair, settings) for pair in zip(batch["input"], batch["target"])]
    return dict(batch) | {name: _column(name, results) for name in _NAMES}


def _is_path(what: Any) -> bool:
    return isinstance(what, (str, os.PathLike))


def _result(input: Any, target: Any, settings: Settings) -> Result:
    if _is_path(input) and _is_path(target):
        return compare_files(os.fsdecode(input), os.fsdecode(target), settings)
    try:
        first = _picture("input", input, settings)
        return compare(first, _picture("target", target, settings), settings)
    except PictureError as error:
        return failed(str(error))
    except MemoryError:
        return failed("no memory to compare the pictures")


def _picture(name: str, what: Any, settings: Settings) -> np.ndarray:
    """A picture of a column, or a PictureError."""
    if what is None or (isinstance(what, (float, np.floating)) and np.isnan(what)):
        raise PictureError(f"{name} is null")
    return picture_of(name, what, settings.max_pixels)


def _column(name: str, results: list[Result]) -> np.ndarray:
    values = [result[name] for result in results]
    if FIELDS[name] is str:
        return np.array([value or "" for value in values], dtype=str)
    if FIELDS[name] is int:
        return np.array([value or 0 for value in values], dtype=np.int64)
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
