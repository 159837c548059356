"""Differentiable SSIM for PyTorch: fast, accurate, and one line to switch to."""

from . import reference
from ._version import __version__
from .functional import ssim, ssim_loss
from .modules import CVAELoss, MSE_SSIM_KL_Loss, SSIMLoss

__all__ = [
    "CVAELoss",
    "MSE_SSIM_KL_Loss",
    "SSIMLoss",
    "__version__",
    "reference",
    "ssim",
    "ssim_loss",
]
