"""Pictures that scikit-image and scikit-learn bring along, as float tensors (3, H, W) in [0, 1]."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
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
    from PIL import Image

    if not Path(name).is_file():
        raise PhotoError(f"{name} is neither a file nor one of {', '.join(NAMES)}")
    try:
        with Image.open(name) as picture:
            pixels = np.array(picture.convert("RGB"))
    # Pillow has no exception of its own for a broken file: it raises these
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise PhotoError(f"{name} cannot be read as a picture: {error}") from None
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


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
