"""Pictures in files, for the tests of what compares them."""

from __future__ import annotations

import imagecodecs
import numpy as np
import tifffile
from PIL import Image


def picture(size=(40, 48), channels=3, dtype=np.uint8, seed=0):
    """(H, W, C), smooth and noisy, in a type's full range; without channels (H, W)."""
    random = np.random.default_rng(seed)
    height, width = size
    y, x = np.mgrid[:height, :width]
    shape = (*size, channels) if channels else size
    waves = 0.5 + 0.3 * np.sin(x / 5.0) * np.cos(y / 7.0)
    values = (waves[..., None] if channels else waves) + random.normal(0, 0.08, shape)
    values = np.clip(values, 0, 1)
    kind = np.dtype(dtype)
    return (
        values.astype(kind)
        if kind.kind == "f"
        else np.round(values * np.iinfo(kind).max).astype(kind)
    )


def save(path, array):
    """By its suffix; .png and .tif in 16 bits, too."""
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".tif":
        rgb = array.ndim == 3 and array.shape[2] >= 3
        tifffile.imwrite(path, array, photometric="rgb" if rgb else "minisblack", compression="lzw")
    elif path.suffix == ".png":
        path.write_bytes(imagecodecs.png_encode(array))
    else:
        Image.fromarray(array).save(path, lossless=True, exact=True)
    return path


def save_pairs(folder, count, **shape):
    """Two folders of PNGs of the same names; the second is noisier with each."""
    ours, theirs = folder / "a", folder / "b"
    for i in range(count):
        first = picture(seed=i, **shape)
        noise = np.random.default_rng(100 + i).integers(-3 * i, 3 * i + 1, first.shape)
        second = np.clip(first.astype(int) + noise, 0, 255).astype(np.uint8)
        for place, array in ((ours, first), (theirs, second)):
            place.mkdir(exist_ok=True)
            save(place / f"{i:02}.png", array)
    return ours, theirs
