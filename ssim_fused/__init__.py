"""Differentiable SSIM for PyTorch: fast, accurate, and one line to switch to."""

import importlib
from typing import TYPE_CHECKING, Any

from . import compat, reference
from ._explain import explain
from ._version import __version__
from .functional import (
    ImageTerms,
    dssim,
    image_loss,
    ms_ssim,
    ms_ssim_loss,
    psnr,
    ssim,
    ssim_loss,
)
from .modules import CVAELoss, MSE_SSIM_KL_Loss, MSSSIMLoss, PhotometricLoss, SSIMLoss

__all__ = [
    "CVAELoss",
    "ImageTerms",
    "MSE_SSIM_KL_Loss",
    "MSSSIMLoss",
    "PhotometricLoss",
    "SSIMLoss",
    "__version__",
    "compat",
    "dssim",
    "explain",
    "image_loss",
    "ms_ssim",
    "ms_ssim_loss",
    "psnr",
    "reference",
    "ssim",
    "ssim_loss",
]

# not in __all__, whose names every installation has: these need an extra
if TYPE_CHECKING:
    from . import metrics as metrics
    from .evaluation.batch import evaluate_batch as evaluate_batch


def __getattr__(name: str) -> Any:
    """What needs more than torch is imported when it is first asked for."""
    if name == "evaluate_batch":
        from .evaluation.batch import evaluate_batch

        return evaluate_batch
    if name == "metrics":
        return importlib.import_module(".metrics", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
