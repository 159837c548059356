"""Pictures and SSIM maps as images that a page or a file can show."""

from __future__ import annotations

import base64
import io
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..functional import ssim
from .compare import as_tensor, torch_errors
from .pictures import Inks

_SHOWN = 960  # pixels of the longer side
_LOSSLESS = 256  # pictures up to this size keep every bit


def _colours() -> np.ndarray:
    """(256, 3), uint8: from nearly black through purple and red to pale yellow.

    Lightness rises in equal steps of OKLab, in which equal steps look equal, so no edge shows where
    the numbers have none, and the order survives in grey and for colour-blind eyes.
    """
    step = np.linspace(0, 1, 256)
    lightness = 0.15 + 0.82 * step
    hue = np.radians(300 + 170 * step)  # purple, red, orange, yellow
    chroma = 0.17 * np.sin(np.pi * (0.12 + 0.76 * step)) ** 0.8
    a, b = chroma * np.cos(hue), chroma * np.sin(hue)
    # B. Ottosson 2020, https://bottosson.github.io/posts/oklab/
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    to_rgb = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = np.clip(to_rgb @ np.stack((long, medium, short)), 0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.round(255 * encoded).astype(np.uint8).T


COLOURS = _colours()


def ssim_map(input: np.ndarray, target: np.ndarray, data_range: float, padding: str) -> np.ndarray:
    """The channels' mean of the SSIM map of two pictures (H, W, C); (H, W), smaller for "valid"."""
    with torch_errors(), torch.inference_mode():
        found = ssim(
            as_tensor(input), as_tensor(target),
            data_range=data_range, padding=padding, reduction="none",
        )  # fmt: skip
    return found[0].mean(0).numpy()


def draw_map(similarity: np.ndarray) -> Image.Image:
    """An SSIM map (H, W) in colours: 1 is dark, 0 and what is below it bright."""
    index = np.round(255 * (1 - np.clip(similarity, 0, 1))).astype(np.uint8)
    return Image.fromarray(COLOURS[index])


def lowest(*pictures: np.ndarray) -> float:
    """What is drawn black: 0, or the least value where that is negative, one for all."""
    return min(0.0, *(float(picture.min()) for picture in pictures))


def draw_picture(picture: np.ndarray, data_range: float, low: float = 0.0) -> Image.Image:
    """A picture (H, W, C) of any type in eight bits: grey, RGB, with alpha, or CMYK.

    low: what is drawn black; the data range above it is white.
    """
    if picture.dtype != np.uint8 or data_range != 255:
        scaled = np.clip((picture.astype(np.float32) - low) / data_range, 0, 1)
        picture = np.round(255 * scaled).astype(np.uint8)
    if isinstance(picture, Inks):
        return Image.frombytes("CMYK", picture.shape[1::-1], picture.tobytes())
    return Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture)


def draw_difference(
    input: np.ndarray, target: np.ndarray, data_range: float, padding: str
) -> Image.Image:
    """Two pictures and their SSIM map, side by side, on white."""
    found = ssim_map(input, target, data_range, padding)
    low = lowest(input, target)
    parts = [draw_picture(picture, data_range, low).convert("RGB") for picture in (input, target)]
    parts.append(draw_map(found))
    gap = 8
    width = sum(part.width for part in parts) + gap * (len(parts) - 1)
    sheet = Image.new("RGB", (width, max(part.height for part in parts)), "white")
    left = 0
    for part in parts:
        sheet.paste(part, (left, 0))
        left += part.width + gap
    return sheet


def data_uri(image: Image.Image) -> str:
    """An image for a page: WebP, of at most 960 pixels a side, lossless where it is small."""
    longest = max(image.size)
    if longest > _SHOWN:
        size = (max(1, math.floor(side * _SHOWN / longest)) for side in image.size)
        image = image.resize(tuple(size), Image.Resampling.BOX)  # type: ignore[arg-type]
    if image.mode not in ("RGB", "RGBA"):
        image = image.convert("RGBA" if image.mode == "LA" else "RGB")
    out = io.BytesIO()
    image.save(out, "WEBP", lossless=longest <= _LOSSLESS, exact=True, quality=85)
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()


def save_difference(
    path: Path, input: np.ndarray, target: np.ndarray, data_range: float, padding: str = "same"
) -> None:
    """``draw_difference`` in a PNG file, whose folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_difference(input, target, data_range, padding).save(path)
