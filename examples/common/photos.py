"""Pictures that scikit-image and scikit-learn bring along, as float tensors (3, H, W) in [0, 1]."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.TiffImagePlugin import BITSPERSAMPLE, TiffImageFile
from torch import Tensor

# those that are part of the packages: nothing is downloaded
SCIKIT_IMAGE = ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field")
SCIKIT_LEARN = ("china", "flower")
NAMES = SCIKIT_IMAGE + SCIKIT_LEARN


class PhotoError(Exception):
    """Why there is no such picture."""


def photo_or_file(name: str) -> Tensor:
    """One of NAMES, or a file of the user's; (3, H, W)."""
    if name in NAMES:
        return photo(name)
    if not Path(name).is_file():
        raise PhotoError(f"{name} is neither a file nor one of {', '.join(NAMES)}")
    pixels = np.array(read_file(Path(name), "RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


def read_file(path: Path, mode: str) -> Image.Image:
    """A file as L or RGB: more bits are scaled to 8, what is transparent lies on white."""
    try:
        with Image.open(path) as picture:
            return _on_white(_of_8_bits(picture)).convert(mode)
    # Pillow has no exception of its own for a broken file: it raises these
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise PhotoError(f"{path} cannot be read as a picture: {error}") from None


def _of_8_bits(picture: Image.Image) -> Image.Image:
    """Grey of more bits by its range; Pillow would clip it at 255."""
    if picture.mode[0] not in "IF":
        return picture
    numbers = np.asarray(picture) / _white(picture)
    if not (numbers.min() >= 0 and numbers.max() <= 1):
        found = f"{numbers.min():g} to {numbers.max():g}"
        raise ValueError(f"its numbers (mode {picture.mode}) are {found}, not 0 to 1")
    return Image.fromarray((255 * numbers).round().astype(np.uint8))


def _white(picture: Image.Image) -> int:
    """The number that white is in a picture of mode I;16, I or F."""
    if picture.mode == "F":
        return 1
    if picture.mode == "I" and picture.format not in ("PNG", "PPM"):  # these have 16 bits
        raise ValueError("the range of its numbers (mode I) is not known")
    bits = picture.tag_v2[BITSPERSAMPLE] if isinstance(picture, TiffImageFile) else (16,)
    return 2 ** bits[0] - 1


def _on_white(picture: Image.Image) -> Image.Image:
    if picture.getbands()[-1] not in "Aa" and "transparency" not in picture.info:
        return picture
    seen = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen)


def photo(name: str) -> Tensor:
    """(3, H, W), float32."""
    if name in SCIKIT_LEARN:
        from sklearn.datasets import load_sample_image

        pixels = load_sample_image(f"{name}.jpg")
    else:
        import skimage.data

        pixels = getattr(skimage.data, name)()
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1).float() / 255


def squared(picture: Tensor, size: int) -> Tensor:
    """The middle square of a picture (3, H, W), as (3, size, size)."""
    h, w = picture.shape[-2:]
    side = min(h, w)
    top, left = (h - side) // 2, (w - side) // 2
    middle = picture[None, :, top : top + side, left : left + side]
    how = dict(mode="bicubic", antialias=True)
    return torch.nn.functional.interpolate(middle, size=(size, size), **how)[0].clamp(0, 1)
