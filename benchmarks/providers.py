"""The libraries that are compared: how each is called, and what it computes.

Every provider is called as a loss: two images (N, C, H, W) in [0, 1] to 1 - mean SSIM. Libraries
differ in what happens at the border; `padding` and `window_size` say what a provider does, and the
engine checks it against float64 with exactly that.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from .originals import missing_package

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Provider:
    """One way to compute the loss."""

    name: str
    make: Callable[[], Loss]  # imports the library; called once
    package: str | None = None  # on PyPI
    version: str | None = None  # the one that is compared
    padding: str = "same"  # "same" (zeros), "valid" or "reflect": what the float64 truth must use
    differs: str = ""  # in words, for the tables
    gradient: bool = True
    tolerance: float = 1e-4  # of the float32 value, relative; the usual form loses digits
    module: str | None = None  # of a build that is not on PyPI, for CUDA alone

    def missing(self, device: str = "cpu") -> str | None:
        """Why this provider cannot run here, or None."""
        if self.module is not None:
            if not device.startswith("cuda"):
                return "runs on CUDA only"
            found = importlib.util.find_spec(self.module)
            return None if found else f"{self.module} is not installed"
        if self.package is None:
            return None
        return missing_package(self.package, self.version)


def _channels_apart(loss: Loss) -> Loss:
    """For code that takes one channel: every channel is an image."""
    return lambda x, y: loss(x.flatten(0, 1).unsqueeze(1), y.flatten(0, 1).unsqueeze(1))


def _channels_last(loss: Loss) -> Loss:
    def call(x: Tensor, y: Tensor) -> Tensor:
        memory_format = torch.channels_last
        return loss(
            x.contiguous(memory_format=memory_format), y.contiguous(memory_format=memory_format)
        )

    return call


def _ssim_fused() -> Loss:
    from ssim_fused import ssim_loss

    return ssim_loss


def _reference() -> Loss:
    from ssim_fused import reference

    return reference.ssim_loss


def _reference_compiled() -> Loss:
    return torch.compile(_reference(), dynamic=False)


def _article() -> Loss:
    from .article import SSIMLoss

    return _channels_apart(SSIMLoss())


def _article_compiled() -> Loss:
    from .article import SSIMLoss

    return _channels_apart(torch.compile(SSIMLoss(), dynamic=False))


def _separable(compiled: bool = False, channels_last: bool = False) -> Loss:
    from .separable import SeparableSSIMLoss

    loss: Loss = SeparableSSIMLoss()
    loss = torch.compile(loss, dynamic=False) if compiled else loss
    return _channels_last(loss) if channels_last else loss


def _fused_ssim() -> Loss:
    from fused_ssim import fused_ssim

    return lambda x, y: 1 - fused_ssim(x, y)


def _fussim() -> Loss:
    from fussim import fused_ssim

    return lambda x, y: 1 - fused_ssim(x, y)


def _pytorch_msssim() -> Loss:
    from pytorch_msssim import ssim

    return lambda x, y: 1 - ssim(x, y, data_range=1.0)


def _torchmetrics() -> Loss:
    from torchmetrics.functional.image import structural_similarity_index_measure as ssim

    return lambda x, y: 1 - ssim(x, y, data_range=1.0)


def _piq() -> Loss:
    from piq import ssim

    return lambda x, y: 1 - ssim(x, y, data_range=1.0, downsample=False)


def _kornia() -> Loss:
    from kornia.metrics import ssim

    return lambda x, y: 1 - ssim(x, y, 11).mean()


def _monai() -> Loss:
    from monai.losses import SSIMLoss

    return SSIMLoss(spatial_dims=2)


def _frame_analytics() -> Loss:
    from frame_analytics import ssim

    return lambda x, y: 1 - ssim(x, y, data_range=1.0)


def _scikit_image() -> Loss:
    from skimage.metrics import structural_similarity

    def call(x: Tensor, y: Tensor) -> Tensor:
        ssim = partial(
            structural_similarity,
            channel_axis=0,
            data_range=1.0,
            gaussian_weights=True,
            use_sample_covariance=False,
        )
        values = [ssim(a, b) for a, b in zip(x.numpy(), y.numpy())]
        return 1 - torch.tensor(values).mean()

    return call


def _opencv() -> Loss:
    import cv2

    def blur(image):
        return cv2.GaussianBlur(image, (11, 11), 1.5, borderType=cv2.BORDER_CONSTANT)

    def plane(x, y) -> float:
        mu_x, mu_y = blur(x), blur(y)
        var_x, var_y = blur(x * x) - mu_x * mu_x, blur(y * y) - mu_y * mu_y
        cov = blur(x * y) - mu_x * mu_y
        above = (2 * mu_x * mu_y + 1e-4) * (2 * cov + 9e-4)
        below = (mu_x * mu_x + mu_y * mu_y + 1e-4) * (var_x + var_y + 9e-4)
        return (above / below).mean()

    def call(x: Tensor, y: Tensor) -> Tensor:
        planes = zip(x.flatten(0, 1).numpy(), y.flatten(0, 1).numpy())
        return 1 - torch.tensor([plane(a, b) for a, b in planes]).mean()

    return call


PROVIDERS = [
    Provider("ssim_fused", _ssim_fused, tolerance=2e-6),
    Provider("ssim_fused.reference", _reference, tolerance=2e-6, differs="plain PyTorch"),
    Provider(
        "ssim_fused.reference, compiled",
        _reference_compiled,
        tolerance=2e-6,
        differs="plain PyTorch under torch.compile",
    ),
    Provider("usual code", _article, differs="five 11x11 conv2d; 1e-12 in the denominator"),
    Provider("usual code, compiled", _article_compiled, differs="the same under torch.compile"),
    Provider("separable", _separable, differs="two one-dimensional conv2d"),
    Provider(
        "separable, channels last",
        partial(_separable, channels_last=True),
        differs="the same, converted to channels-last in each call",
    ),
    Provider(
        "separable, compiled",
        partial(_separable, compiled=True),
        differs="the same under torch.compile",
    ),
    Provider(
        "separable, compiled, channels last",
        partial(_separable, compiled=True, channels_last=True),
        differs="both",
    ),
    Provider(
        "pytorch-msssim",
        _pytorch_msssim,
        "pytorch-msssim",
        "1.0.0",
        padding="valid",
        differs="windows inside the image only",
    ),
    Provider(
        "torchmetrics",
        _torchmetrics,
        "torchmetrics",
        "1.9.0",
        padding="reflect",
        differs="reflects at the border",
    ),
    Provider("piq", _piq, "piq", "0.8.0", padding="valid", differs="windows inside the image only"),
    Provider(
        "kornia",
        _kornia,
        "kornia",
        "0.9.0",
        padding="reflect",
        differs="reflects at the border; clamps the loss map",
    ),
    Provider("MONAI", _monai, "monai", "1.6.1", padding="valid", differs="windows inside only"),
    Provider("frame-analytics", _frame_analytics, "frame-analytics", "0.7.0", padding="valid"),
    Provider(
        "scikit-image",
        _scikit_image,
        "scikit-image",
        "0.26.0",
        padding="valid",
        differs="windows inside the image only",
        gradient=False,
    ),
    # optimized-fused-ssim is a fork that installs under the same name
    Provider("fused-ssim", _fused_ssim, module="fused_ssim"),
    Provider("fussim", _fussim, module="fussim"),
    Provider("OpenCV", _opencv, "opencv-python-headless", "5.0.0.93", gradient=False),
]
BY_NAME = {provider.name: provider for provider in PROVIDERS}
# the fastest of their kind, for workloads beyond the standard ones
FAST = ["ssim_fused", "ssim_fused.reference", "pytorch-msssim", "frame-analytics", "OpenCV"]
FAST += ["separable, compiled, channels last"]
QUICK = ["ssim_fused", "ssim_fused.reference", "usual code", "pytorch-msssim"]
