"""torchmetrics Metrics of SSIM: needs torchmetrics, ``pip install torchmetrics``.

State is a sum in float64 and a count, whatever the number of images; it is summed across processes.
It stays float64 in a model that ``.to(torch.float16)`` converts, and after ``set_dtype``: half
precision does not count beyond 65504. Every image counts once, so the value does not depend on how
images are split into batches and processes. Beside them 16 bytes mark the settings, so that a
MetricCollection takes no two metrics of other settings for one. Apple's GPUs have no float64:
there, give a metric what ``.cpu()`` makes of the images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ._checks import MAP_SETTINGS, SETTINGS, check_early, check_names, hashable
from ._metric import Metric
from ._multiscale import BETAS, check_multiscale
from ._request import is_half
from .functional import ms_ssim_loss, ssim_loss

__all__ = ["MultiScaleStructuralSimilarity", "StructuralSimilarity"]

_NAMES = [name for name in SETTINGS if name != "reduction"]


def _checked(metric: Metric, settings: dict[str, Any], names: Sequence[str]) -> None:
    """Settings are checked before there are images; each image has its own value."""
    if "reduction" in settings:
        raise TypeError("reduction is not a setting of a metric: it is the mean over images")
    check_names(metric, settings, names)
    early = (*SETTINGS, "mask_threshold")
    check_early(**{name: value for name, value in settings.items() if name in early})


def _mark(metric: Metric, settings: dict[str, Any]) -> Tensor:
    """[16] bytes that metrics of one class and equal settings share, and no others."""
    named = sorted((name, hashable(name, value)) for name, value in settings.items())
    said = repr((type(metric).__name__, named))
    return torch.tensor(list(hashlib.sha256(said.encode()).digest()[:16]), dtype=torch.uint8)


def _unrounded(input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """A pair in half precision as float32, and so each image's loss; others as they are."""
    if not (isinstance(input, Tensor) and isinstance(target, Tensor)):
        return input, target  # an error that the loss explains
    if not is_half(input) or input.dtype != target.dtype:
        return input, target
    return input.float(), target.float()


class _Mean(Metric):
    """1 minus the mean of losses of images."""

    higher_is_better = True
    is_differentiable = True
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    loss: Tensor
    images: Tensor
    settings: dict[str, Any]

    def _add_states(self) -> None:
        zero = torch.zeros((), dtype=torch.float64)
        self.add_state("loss", default=zero, dist_reduce_fx="sum")
        self.add_state("images", default=zero.clone(), dist_reduce_fx="sum")
        # metrics whose states are equal after a first batch are one to a MetricCollection
        self.add_state("mark", default=_mark(self, self.settings), dist_reduce_fx="max")

    def _add(self, losses: Tensor) -> None:
        self.loss = self.loss + losses.double().sum()
        self.images = self.images + losses.numel()

    def compute(self) -> Tensor:
        """Mean similarity of all images so far, in float64; NaN where there are none."""
        return 1 - self.loss / self.images

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot the value, or one or several that are given; needs matplotlib.

        Returns figure and axes; ``(None, ax)`` where axes are given.
        """
        return self._plot(val, ax)

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> Any:
        """To another device, in the same dtype."""

        def move(state: Tensor) -> Tensor:
            moved = fn(state)
            return moved if moved.dtype == state.dtype else state.to(moved.device)

        return super()._apply(move, exclude_state)

    def _filter_kwargs(self, **kwargs: Any) -> dict[str, Any]:
        """Keywords of a MetricCollection, whose other metrics name the input ``preds``."""
        if "preds" in kwargs:
            kwargs.setdefault("input", kwargs.pop("preds"))
        return super()._filter_kwargs(**kwargs)


class StructuralSimilarity(_Mean):
    """Mean SSIM of images, as :func:`ssim_fused.ssim` has it.

    Args:
        settings: those of :func:`ssim_fused.ssim_loss`, less reduction, mask and weight. Keywords
            of :class:`torchmetrics.Metric` (``sync_on_compute``, ``process_group``, ...) may stand
            beside them.

    Shape:
        input, target: (N, C, H, W), (C, H, W), and what else ``spatial_dims`` allows. Batches may
        differ in size. Value: (), float64. A :class:`torchmetrics.MetricCollection` may be given
        ``preds``, as other metrics name the input.

    Example:
        >>> metric = StructuralSimilarity(data_range=1.0)
        >>> for x, y in loader:
        ...     metric.update(model(x), y)
        >>> metric.compute()
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**_taken(settings))
        _checked(self, settings, (*_NAMES, "mask_threshold"))
        self.settings = settings
        self._add_states()

    def update(self, input: Tensor, target: Tensor, mask: Tensor | None = None) -> None:
        """Add a batch; ``mask`` as in :func:`ssim_fused.ssim_loss`."""
        input, target = _unrounded(input, target)
        self._add(ssim_loss(input, target, reduction="image", mask=mask, **self.settings))


class MultiScaleStructuralSimilarity(_Mean):
    """Mean MS-SSIM of images, as :func:`ssim_fused.ms_ssim` has it.

    Args:
        settings: those of :func:`ssim_fused.ms_ssim_loss`, less reduction, and keywords of
            :class:`torchmetrics.Metric`.

    Shape:
        As in :class:`StructuralSimilarity`, at least 176 x 176 for the default five scales.

    Example:
        >>> MultiScaleStructuralSimilarity(data_range=255.0)(x, y)
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**_taken(settings))
        names = [name for name in _NAMES if name not in MAP_SETTINGS]
        _checked(self, settings, (*names, "betas", "normalize", "pooling", "per_channel"))
        check_multiscale(
            settings.get("betas", BETAS),
            settings.get("normalize"),
            settings.get("pooling", "floor"),
            settings.get("per_channel", True),
            "mean",
            settings.get("spatial_dims"),
        )
        self.settings = settings
        self._add_states()

    def update(self, input: Tensor, target: Tensor) -> None:
        """Add a batch."""
        input, target = _unrounded(input, target)
        self._add(ms_ssim_loss(input, target, reduction="image", **self.settings))


_BASE = (
    "compute_on_cpu",
    "compute_with_cache",
    "dist_sync_fn",
    "dist_sync_on_step",
    "distributed_available_fn",
    "process_group",
    "sync_on_compute",
)


def _taken(settings: dict[str, Any]) -> dict[str, Any]:
    """Keywords of the base class, taken out of settings."""
    return {name: settings.pop(name) for name in _BASE if name in settings}
