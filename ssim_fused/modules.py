"""Drop-in loss modules: the SSIM loss, and the loss of a conditional VAE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ._autocast import promised_dtype
from ._checks import (
    MAP_SETTINGS,
    SETTINGS,
    Sigma,
    Taps,
    Window,
    check_early,
    check_image,
    check_names,
    finite,
    flag,
)
from ._multiscale import BETAS, check_multiscale
from ._request import accumulate_dtype
from .functional import image_loss, ms_ssim_loss, ssim, ssim_loss


def _image_channels(x: Tensor, y: Tensor, spatial_dims: int | None = None) -> Tensor:
    """y without the label channels that CVAE code appends behind a one-channel image."""
    if (
        spatial_dims not in (None, 2)  # axis -3 is not that of channels
        or not (isinstance(x, Tensor) and isinstance(y, Tensor))
        or x.is_nested
        or y.is_nested
        or x.dim() != y.dim()
        or x.dim() not in (3, 4)
    ):
        return y  # an error that ssim_loss explains
    return y.narrow(-3, 0, 1) if x.shape[-3] == 1 and y.shape[-3] > 1 else y


_NAMES = ("kernel_size", *(name for name in SETTINGS if name != "window_size"), "mask_threshold")


class _Settings(nn.Module):
    """A loss with the settings of a window, checked when it is made and shown by print().

    They are attributes, which may be set at any time.
    """

    _names: tuple[str, ...] = ()  # of those that have been set, beside the window's size

    def __init__(self, kernel_size: Taps, sigma: Sigma, **settings: Any) -> None:
        super().__init__()
        try:
            check_early(window_size=kernel_size, sigma=sigma, **settings)
        except (TypeError, ValueError) as error:
            error.args = (str(error).replace("window_size", "kernel_size"),)
            raise
        self.kernel_size = kernel_size
        self.sigma = sigma
        for name, value in settings.items():
            setattr(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in _NAMES and name not in (*self._names, "kernel_size", "sigma"):
            self._names = (*self._names, name)

    def settings(self) -> dict[str, Any]:
        """The settings, by the names that the functions have for them."""
        named = {name: getattr(self, name) for name in self._names}
        return {"window_size": self.kernel_size, "sigma": self.sigma, **named}

    def extra_repr(self) -> str:
        """The settings, as ``print(module)`` shows them."""
        shown = {"kernel_size": self.kernel_size, "sigma": self.sigma}
        shown |= {name: getattr(self, name) for name in self._names}
        return ", ".join(f"{name}={value!r}" for name, value in shown.items())


class SSIMLoss(_Settings):
    r"""1 - SSIM as a module: a drop-in for the usual five-``conv2d`` class.

    Where an image ``x`` has one channel and ``y`` more, ``y``'s first channel is compared (label
    channels appended behind the image). With more channels in both, every channel is compared; any
    other difference in shape is an error.

    Unlike the usual code, no ``eps`` is added to the denominator (there, 1e-12 makes black against
    black cost 1.1e-5), and the loss is not formed by subtraction: see :func:`ssim_fused.ssim_loss`.

    Args:
        kernel_size: taps of the window along each axis; odd.
        sigma: standard deviation of the Gaussian, in pixels.
        data_range, k1, k2, padding, reduction: as in :func:`ssim_fused.ssim_loss`.
        settings: its other settings: window, term, nonnegative_ssim, sample_covariance,
            spatial_dims, mask_threshold.

    Shape:
        x, y: (N, C, H, W) or (C, H, W), and what else ``spatial_dims`` allows. Loss: () for the
        default ``reduction="mean"``. ``as_loss=False``: the SSIM map, of the images' shape, or with
        ``padding="valid"`` smaller by ``kernel_size - 1``; a ``weight`` is an error then.

    Example:
        >>> criterion = SSIMLoss()
        >>> criterion(model(x), x).backward()
    """

    def __init__(
        self,
        kernel_size: Taps = 11,
        sigma: Sigma = 1.5,
        *,
        data_range: float | None = None,
        k1: float = 0.01,
        k2: float = 0.03,
        padding: str = "same",
        reduction: str = "mean",
        **settings: Any,
    ) -> None:
        check_names(self, settings, _NAMES)
        super().__init__(
            kernel_size,
            sigma,
            data_range=data_range,
            k1=k1,
            k2=k2,
            padding=padding,
            reduction=reduction,
            **settings,
        )

    def forward(
        self,
        x: Tensor,
        y: Tensor,
        as_loss: bool = True,
        *,
        mask: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        """The loss, or the SSIM map where ``as_loss`` is False."""
        settings = self.settings()
        y = _image_channels(x, y, settings.get("spatial_dims"))
        if flag("as_loss", as_loss):
            return ssim_loss(x, y, mask=mask, weight=weight, **settings)
        ssim_map = ssim(x, y, mask=mask, weight=weight, **settings | {"reduction": "none"})
        assert isinstance(ssim_map, Tensor)
        return ssim_map


class MSSSIMLoss(_Settings):
    """1 - MS-SSIM as a module; see :func:`ssim_fused.ms_ssim_loss`, whose settings it takes.

    Args:
        kernel_size: taps of the window along each axis; odd.
        sigma: standard deviation of the Gaussian, in pixels.
        data_range, k1, k2, padding, window, spatial_dims, betas, normalize, pooling, per_channel,
            reduction: as in :func:`ssim_fused.ms_ssim_loss`.

    Shape:
        x, y: (N, C, H, W) or (C, H, W), at least 176 x 176 for the default five scales. Loss: ().

    Example:
        >>> MSSSIMLoss(data_range=255.0)(model(x), x).backward()
    """

    def __init__(
        self,
        kernel_size: Taps = 11,
        sigma: Sigma = 1.5,
        *,
        data_range: float | None = None,
        k1: float = 0.01,
        k2: float = 0.03,
        padding: str = "valid",
        window: Window = "gaussian",
        spatial_dims: int | None = None,
        betas: Sequence[float] = BETAS,
        normalize: str | None = None,
        pooling: str = "floor",
        per_channel: bool = True,
        reduction: str = "mean",
    ) -> None:
        super().__init__(
            kernel_size,
            sigma,
            data_range=data_range,
            k1=k1,
            k2=k2,
            padding=padding,
            window=window,
            spatial_dims=spatial_dims,
            reduction=reduction,
        )
        self.betas = check_multiscale(
            betas, normalize, pooling, per_channel, reduction, spatial_dims
        )
        self.normalize = normalize
        self.pooling = pooling
        self.per_channel = per_channel

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss."""
        return ms_ssim_loss(
            x,
            y,
            betas=self.betas,
            normalize=self.normalize,
            pooling=self.pooling,
            per_channel=self.per_channel,
            **self.settings(),
        )

    def extra_repr(self) -> str:
        """The settings, as ``print(module)`` shows them."""
        return (
            f"{super().extra_repr()}, betas={self.betas}, normalize={self.normalize!r}, "
            f"pooling={self.pooling!r}, per_channel={self.per_channel}"
        )


class PhotometricLoss(_Settings):
    r"""The loss of radiance fields: (1 - lambda) L1 + lambda D-SSIM, in one pass.

    D-SSIM is 1 - SSIM here, as in the code of 3-D Gaussian splatting and what follows it, not half
    of that.

    Args:
        lambda_dssim: lambda, in [0, 1].
        kernel_size: taps of the window along each axis; odd.
        sigma: standard deviation of the Gaussian, in pixels.
        data_range, k1, k2, padding: as in :func:`ssim_fused.ssim_loss`.
        settings: window, spatial_dims, mask_threshold, as there.

    Shape:
        x, y: (N, C, H, W) or (C, H, W); mask: (N or 1, C or 1, H, W). Loss: ().

    Example:
        >>> criterion = PhotometricLoss()
        >>> criterion(render, photo, mask=seen).backward()

    Source:
        B. Kerbl, G. Kopanas, T. Leimkuehler, G. Drettakis, "3D Gaussian Splatting for Real-Time
        Radiance Field Rendering", ACM Transactions on Graphics 42 (4), 2023, equation 7.
        https://doi.org/10.1145/3592433
    """

    def __init__(
        self,
        lambda_dssim: float = 0.2,
        kernel_size: Taps = 11,
        sigma: Sigma = 1.5,
        *,
        data_range: float | None = None,
        k1: float = 0.01,
        k2: float = 0.03,
        padding: str = "same",
        **settings: Any,
    ) -> None:
        names = (name for name in _NAMES if name not in ("reduction", *MAP_SETTINGS))
        check_names(self, settings, ("lambda_dssim", *names))
        super().__init__(
            kernel_size, sigma, data_range=data_range, k1=k1, k2=k2, padding=padding, **settings
        )
        if not 0 <= finite("lambda_dssim", lambda_dssim) <= 1:
            raise ValueError(f"lambda_dssim must be in [0, 1], got {lambda_dssim}")
        self.lambda_dssim = lambda_dssim

    def forward(self, x: Tensor, y: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """The loss."""
        dssim = finite("lambda_dssim", self.lambda_dssim)
        loss = image_loss(x, y, ssim=dssim, l1=1 - dssim, mask=mask, **self.settings())
        assert isinstance(loss, Tensor)
        return loss

    def extra_repr(self) -> str:
        """The settings, as ``print(module)`` shows them."""
        return f"lambda_dssim={self.lambda_dssim}, {super().extra_repr()}"


def _kl_divergence(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mu, exp(logvar)) || N(0, 1)), summed over the last axis, mean over the rest.

    In float32 at least: half precision loses the slope near the prior, and overflows far from it.
    """
    mu, logvar = (value.to(accumulate_dtype(value)) for value in (mu, logvar))
    # expm1(t) - t is exp(t) - 1 - t without the cancellation of the leading 1
    return 0.5 * (mu.square() + (torch.expm1(logvar) - logvar)).sum(dim=-1).mean()


def _check_latent(mu: Tensor, logvar: Tensor) -> None:
    for name, value in (("mu", mu), ("logvar", logvar)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
        if not value.is_floating_point():
            raise TypeError(f"{name} must be a floating-point tensor, got {value.dtype}")
        if value.dim() == 0 or value.numel() == 0:
            raise ValueError(
                f"{name} must be (..., latent) and not empty, got {tuple(value.shape)}"
            )
    if mu.shape != logvar.shape:
        raise ValueError(
            "mu and logvar must have the same shape, "
            f"got {tuple(mu.shape)} and {tuple(logvar.shape)}"
        )
    if mu.device != logvar.device:
        raise ValueError(
            f"mu and logvar must be on one device, got {mu.device} and {logvar.device}"
        )


class CVAELoss(_Settings):
    r"""The loss of a (conditional) VAE: MSE + alpha * (1 - SSIM) + beta * KL divergence.

    .. math::
        \mathrm{KL} = -\tfrac{1}{2} \sum (1 + \log\sigma^2 - \mu^2 - \sigma^2),

    summed over the last axis and averaged over the rest. A term of weight 0 is not computed;
    without SSIM, images may be smaller than the window.
    Also importable as ``MSE_SSIM_KL_Loss``.

    Args:
        alpha: weight of the SSIM loss.
        beta: weight of the KL divergence. The default of 1, kept from the usual code, usually
            empties the latent: MSE and SSIM are means over pixels, the KL divergence is a sum over
            the latent. Start at 1e-3 to 1e-2, and watch the KL term.
        return_terms: return ``(loss, mse, ssim, kl)``, the last three detached (``ssim`` is the
            SSIM loss; a term that is not computed is 0).
        kernel_size, sigma, data_range, k1, k2, padding: as in :class:`SSIMLoss`.

    Shape:
        recon_x, raw_x: (N, C, H, W) or (C, H, W); where ``recon_x`` has one channel and ``raw_x``
        more, ``raw_x``'s first channel is compared. mu, logvar: (..., latent), of one shape; a
        latent of maps is flattened by the caller, ``mu.flatten(1)``. Loss: (), of the dtype that
        those of the images and of mu and logvar come to; the KL divergence is computed in float32
        at least.

    Example:
        >>> criterion = CVAELoss(alpha=0.5, beta=6e-3)
        >>> criterion(recon_x, raw_x, mu, logvar).backward()

    Source:
        D. P. Kingma, M. Welling, "Auto-Encoding Variational Bayes", 2013, appendix B.
        https://arxiv.org/abs/1312.6114
    """

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 1.0,
        *,
        return_terms: bool = False,
        kernel_size: Taps = 11,
        sigma: Sigma = 1.5,
        data_range: float | None = None,
        k1: float = 0.01,
        k2: float = 0.03,
        padding: str = "same",
    ) -> None:
        super().__init__(kernel_size, sigma, data_range=data_range, k1=k1, k2=k2, padding=padding)
        self.alpha = finite("alpha", alpha)
        self.beta = finite("beta", beta)
        self.return_terms = return_terms

    def forward(
        self, recon_x: Tensor, raw_x: Tensor, mu: Tensor, logvar: Tensor
    ) -> Tensor | tuple[Tensor, Tensor, Tensor, Tensor]:
        """The loss, or ``(loss, mse, ssim, kl)`` with ``return_terms``."""
        check_image("recon_x", recon_x)
        check_image("raw_x", raw_x)
        raw_x = _image_channels(recon_x, raw_x)
        if recon_x.shape != raw_x.shape:
            raise ValueError(
                "recon_x and raw_x must have the same shape, "
                f"got {tuple(recon_x.shape)} and {tuple(raw_x.shape)}"
            )
        alpha = finite("alpha", self.alpha)
        loss, terms = image_loss(
            recon_x, raw_x, ssim=alpha, mse=1.0, return_terms=True, **self.settings()
        )
        kl = torch.zeros_like(terms.mse)
        if self.beta != 0:
            _check_latent(mu, logvar)
            kl = _kl_divergence(mu, logvar)
            dtype = torch.promote_types(promised_dtype(mu), promised_dtype(logvar))
            loss = (loss + self.beta * kl).to(torch.promote_types(loss.dtype, dtype))
            kl = kl.to(dtype)
        if self.return_terms:
            return loss, terms.mse, terms.ssim, kl.detach()
        return loss

    def extra_repr(self) -> str:
        """Weights and settings, as ``print(module)`` shows them."""
        return (
            f"alpha={self.alpha}, beta={self.beta}, return_terms={self.return_terms}, "
            f"{super().extra_repr()}"
        )


MSE_SSIM_KL_Loss = CVAELoss
