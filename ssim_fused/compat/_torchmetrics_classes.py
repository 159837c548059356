"""torchmetrics' SSIM Metric classes, with its own Metric as their base."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _metric
from .._multiscale import BETAS
from .torchmetrics import (
    check_scales,
    multiscale_structural_similarity_index_measure,
    structural_similarity_index_measure,
)

REDUCTIONS = ("elementwise_mean", "sum", "none", None)


class _PerImage(_metric.Metric):
    """Sum and number of the values of images, or all of them."""

    higher_is_better = True
    is_differentiable = True
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    similarity: Any
    total: Tensor

    def _keep(self, **settings: Any) -> None:
        """Settings as attributes of their names: what is set later counts from then on."""
        for name, value in settings.items():
            setattr(self, name, value)
        self._names = tuple(settings)

    def _settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._names}

    def _add_states(self, reduction: str | None) -> None:
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction must be one of {REDUCTIONS}, got {reduction!r}")
        self.reduction = reduction
        if reduction in ("elementwise_mean", "sum"):
            self.add_state("similarity", default=torch.tensor(0.0), dist_reduce_fx="sum")
        else:
            self.add_state("similarity", default=[], dist_reduce_fx=None)
        self.add_state("total", default=torch.tensor(0.0), dist_reduce_fx="sum")

    def _add(self, values: Tensor) -> None:
        if self.reduction in ("elementwise_mean", "sum"):
            self.similarity += values.sum()
        else:
            self.similarity.append(values)
        self.total += len(values)

    def _value(self) -> Tensor:
        if self.reduction == "elementwise_mean":
            return self.similarity / self.total
        if self.reduction == "sum":
            return self.similarity
        return _metric.dim_zero_cat(self.similarity)

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot one value, or several."""
        return self._plot(val, ax)


class StructuralSimilarityIndexMeasure(_PerImage):
    """SSIM over all images of all batches."""

    image_return: list[Tensor]
    return_full_image: bool
    return_contrast_sensitivity: bool

    def __init__(
        self,
        gaussian_kernel: bool = True,
        sigma: float | Sequence[float] = 1.5,
        kernel_size: int | Sequence[int] = 11,
        reduction: str | None = "elementwise_mean",
        data_range: float | tuple[float, float] | None = None,
        k1: float = 0.01,
        k2: float = 0.03,
        return_full_image: bool = False,
        return_contrast_sensitivity: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._add_states(reduction)
        if return_full_image or return_contrast_sensitivity:
            self.add_state("image_return", default=[], dist_reduce_fx="cat")
        self._keep(
            gaussian_kernel=gaussian_kernel,
            sigma=sigma,
            kernel_size=kernel_size,
            data_range=data_range,
            k1=k1,
            k2=k2,
            return_full_image=return_full_image,
            return_contrast_sensitivity=return_contrast_sensitivity,
        )

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add a batch."""
        values = structural_similarity_index_measure(
            preds, target, reduction="none", **self._settings()
        )
        if isinstance(values, tuple):
            values, beside = values
            self.image_return.append(beside)
        self._add(values)

    def compute(self) -> Tensor | tuple[Tensor, Tensor]:
        """The value of all batches so far; with a flag, also maps or contrast-structure."""
        value = self._value()
        if self.return_full_image or self.return_contrast_sensitivity:
            return value, _metric.dim_zero_cat(self.image_return)
        return value


class MultiScaleStructuralSimilarityIndexMeasure(_PerImage):
    """MS-SSIM over all images of all batches."""

    def __init__(
        self,
        gaussian_kernel: bool = True,
        kernel_size: int | Sequence[int] = 11,
        sigma: float | Sequence[float] = 1.5,
        reduction: str | None = "elementwise_mean",
        data_range: float | tuple[float, float] | None = None,
        k1: float = 0.01,
        k2: float = 0.03,
        betas: tuple[float, ...] = BETAS,
        normalize: str | None = "relu",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_scales(betas, normalize)
        self._add_states(reduction)
        self._keep(
            gaussian_kernel=gaussian_kernel,
            kernel_size=kernel_size,
            sigma=sigma,
            data_range=data_range,
            k1=k1,
            k2=k2,
            betas=betas,
            normalize=normalize,
        )

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add a batch."""
        self._add(
            multiscale_structural_similarity_index_measure(
                preds, target, reduction="none", **self._settings()
            )
        )

    def compute(self) -> Tensor:
        """The value of all batches so far."""
        return self._value()
