"""Pictures with a label each, as float tensors in [0, 1] of shape (N, 1, size, size)."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm"}


@dataclass(frozen=True)
class Pictures:
    train: Tensor  # (N, 1, size, size)
    train_labels: Tensor  # (N,), int64
    held_out: Tensor
    held_out_labels: Tensor
    classes: tuple[str, ...]

    def fingerprint(self) -> str:
        """Tells other pictures from these, wherever they lie."""
        crc = zlib.crc32(ascii(self.classes).encode())
        for labels in (self.train_labels, self.held_out_labels):
            crc = zlib.crc32(labels.numpy(), crc)
        for images in (self.train, self.held_out):
            crc = zlib.crc32((images * 255).round().byte().numpy(), crc)
        return f"{len(self.train)} pictures in {len(self.classes)} classes ({crc:08x})"


class DataError(Exception):
    """What is wrong with the data that the user named."""


def resize(images: Tensor, size: int) -> Tensor:
    """(N, 1, H, W) to (N, 1, size, size)."""
    if images.shape[-2:] == (size, size):
        return images
    resized = F.interpolate(images, size=(size, size), mode="bicubic", antialias=True)
    return resized.clamp(0, 1)


def split(images: Tensor, labels: Tensor, classes: tuple[str, ...]) -> Pictures:
    """Every fifth picture of each class is held out; the same ones in every run."""
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(len(classes)):
        held_out[torch.nonzero(labels == label).flatten()[4::5]] = True
    if not held_out.any():
        raise DataError("too few pictures: one class at least needs five, to hold one out")
    rest = ~held_out
    return Pictures(images[rest], labels[rest], images[held_out], labels[held_out], classes)


def digits(size: int) -> Pictures:
    """scikit-learn's 1,797 handwritten digits, 8 x 8 enlarged; part of the package, no download."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.from_numpy(found.images).float()[:, None] / 16
    images = F.pad(images, (1, 1, 1, 1))  # they touch the edge
    return split(resize(images, size), torch.from_numpy(found.target).long(), tuple("0123456789"))


def read_grey(path: Path, size: int) -> np.ndarray:
    """(size, size), float32 in [0, 1]; what is transparent lies on white."""
    from common import photos
    from PIL import Image

    try:
        grey = photos.read_file(path, "L")
    except photos.PhotoError as error:
        raise DataError(str(error)) from None
    resized = grey.resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(resized, dtype=np.float32) / 255


def is_picture(file: Path) -> bool:
    """By its name; macOS leaves files ._name.png that are none."""
    return file.suffix.lower() in PICTURE_SUFFIXES and not file.name.startswith(".")


def folder(path: Path, size: int) -> Pictures:
    """One folder of pictures for each class, read as grey."""
    if not path.is_dir():
        raise DataError(f"{path} is not a folder")
    classes = sorted(f.name for f in path.iterdir() if f.is_dir() and not f.name.startswith("."))
    if not classes:
        raise DataError(f"{path} holds no folders; one for each class is needed")
    images, labels = [], []
    for label, name in enumerate(classes):
        files = sorted(filter(is_picture, (path / name).iterdir()))
        if not files:
            raise DataError(f"{path / name} holds no pictures")
        images += [read_grey(file, size) for file in files]
        labels += [label] * len(files)
    return split(torch.from_numpy(np.stack(images))[:, None], torch.tensor(labels), tuple(classes))


def _torchvision_datasets(name: str):
    try:
        from torchvision import datasets
    except ModuleNotFoundError:
        raise DataError(f"--dataset {name} needs torchvision: pip install torchvision") from None
    except (ImportError, RuntimeError) as error:  # RuntimeError: built for another torch
        reason = str(error).splitlines()[0]
        raise DataError(f"--dataset {name} needs torchvision, which is broken: {reason}") from None
    return datasets


def from_torchvision(name: str, root: Path, size: int) -> Pictures:
    """MNIST or Fashion-MNIST by torchvision's loaders, which download it where it is not there."""
    datasets = _torchvision_datasets(name)
    kind = {"mnist": datasets.MNIST, "fashion": datasets.FashionMNIST}[name]
    parts = []
    for train in (True, False):
        try:
            found = kind(str(root), train=train, download=True)
        except (OSError, RuntimeError) as error:
            raise DataError(f"{name} is not in {root} and cannot be downloaded: {error}") from None
        images = found.data.float()[:, None] / 255
        margin = max(0, size - images.shape[-1])  # black around, as is usual for 28 -> 32
        images = F.pad(images, (margin // 2, margin - margin // 2) * 2)
        parts += [resize(images, size), found.targets.long()]
    return Pictures(*parts, classes=tuple(found.classes))
