"""torchmetrics' base class, or what to install."""

from __future__ import annotations

try:
    from torchmetrics import Metric
    from torchmetrics.utilities import dim_zero_cat
except ImportError as error:
    raise ImportError(
        "this part of ssim_fused needs torchmetrics: pip install torchmetrics"
    ) from error

__all__ = ["Metric", "dim_zero_cat"]
