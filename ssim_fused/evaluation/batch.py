"""Batches of pairs as a cluster's scheduler hands them out."""

from __future__ import annotations

from typing import Any

import numpy as np

from .compare import FIELDS, Result, Settings, compare, compare_files, failed
from .pictures import MAX_PIXELS, PictureError, checked


def evaluate_batch(
    batch: dict[str, Any],
    *,
    data_range: float | None = None,
    padding: str = "same",
    ms_ssim: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> dict[str, np.ndarray]:
    """SSIM, MS-SSIM, PSNR, MSE and L1 of a batch of pairs, for ``ray.data.Dataset.map_batches``.

    Args:
        batch: columns ``input`` and ``target``: paths, or pictures (H, W) or (H, W, C). Other
            columns are handed on.
        data_range: range of the values; by default 255, 65535 or 1, by their type.
        padding: border of the SSIM map, as in :func:`ssim_fused.ssim_loss`.
        ms_ssim: whether to compute MS-SSIM, of pictures of at least 176 x 176.
        max_pixels: the most pixels of a file that are decoded.

    Shape:
        Columns of N; results are N numbers or words, NaN or empty where there are none. A pair
        that cannot be compared has an ``error``, and the others are still done.

    Raises:
        ValueError: a column is missing, or a setting is wrong.

    Example:
        >>> ray.data.read_csv("pairs.csv").map_batches(ssim_fused.evaluate_batch).write_csv("out")
    """
    settings = Settings(data_range, padding, ms_ssim, max_pixels).checked()
    missing = {"input", "target"}.difference(batch)
    if missing:
        raise ValueError(f"a batch needs the columns input and target, got {', '.join(batch)}")
    results = [_result(*pair, settings) for pair in zip(batch["input"], batch["target"])]
    names = [name for name in FIELDS if name not in ("input", "target")]
    return dict(batch) | {name: _column(name, results) for name in names}


def _result(input: Any, target: Any, settings: Settings) -> Result:
    if isinstance(input, str) and isinstance(target, str):
        return compare_files(input, target, settings)
    try:
        return compare(checked(np.asarray(input)), checked(np.asarray(target)), settings)
    except PictureError as error:
        return failed(str(error))


def _column(name: str, results: list[Result]) -> np.ndarray:
    values = [result[name] for result in results]
    if FIELDS[name] is str:
        return np.array([value or "" for value in values], dtype=str)
    if FIELDS[name] is int:
        return np.array([value or 0 for value in values], dtype=np.int64)
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
