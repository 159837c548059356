"""The libraries that ssim_fused.compat stands in for, as they come from PyPI."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import sys
import warnings
from collections.abc import Iterator
from typing import Any

# package on PyPI, and the version that a stand-in equals
PINNED = {
    "frame_analytics": ("frame-analytics", "0.7.0"),
    "fused_ssim": ("fused-ssim", "any"),
    "fussim": ("fussim", "0.3.15"),
    "kornia": ("kornia", "0.9.0"),
    "monai": ("monai", "1.6.1"),
    "piq": ("piq", "0.8.0"),
    "pytorch_msssim": ("pytorch-msssim", "1.0.0"),
    "skimage": ("scikit-image", "0.26.0"),
    "torchmetrics": ("torchmetrics", "1.9.0"),
}


def shim(library: str) -> Any:
    """The stand-in's module."""
    return importlib.import_module(f"ssim_fused.compat.{library}")


def missing(library: str) -> str | None:
    """Why a library cannot be compared here, or None."""
    return missing_package(*PINNED[library])


def missing_package(package: str, version: str) -> str | None:
    """Why a package of PyPI cannot be compared here, or None."""
    try:
        found = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return f"{package} is not installed (pip install {package}=={version})"
    return None if found == version else f"{package} {version} is compared, {found} is installed"


def load(library: str, name: str) -> Any:
    """What the library itself has under a name that its stand-in has."""
    target = next(key for key, names in shim(library).STANDS_FOR.items() if name in names)
    stand_in = _torchvision() if library == "piq" else contextlib.nullcontext()
    with warnings.catch_warnings(), stand_in:
        warnings.simplefilter("ignore")
        return getattr(importlib.import_module(target), name)


class _Unused(type):
    """Classes that have every attribute, each again such a class."""

    def __getattr__(cls, name: str) -> _Unused:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Unused(name, (), {})


@contextlib.contextmanager
def _torchvision() -> Iterator[None]:
    """Lets piq be imported without torchvision, of which its SSIM calls nothing: PyPI's builds do
    not load beside a CPU torch."""
    if importlib.util.find_spec("torchvision"):
        yield
        return
    stand_in = _Unused("torchvision", (), {})
    names = {"torchvision": stand_in, "torchvision.models": stand_in.models}
    sys.modules.update(names)
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]
