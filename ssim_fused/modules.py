"""Drop-in loss modules: the SSIM loss, and the loss of a conditional VAE."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._checks import check_settings
from .functional import ssim, ssim_loss


def _image_channels(x: Tensor, y: Tensor) -> Tensor:
    """y without the label channels that CVAE code appends behind a one-channel image."""
    if (
        not (isinstance(x, Tensor) and isinstance(y, Tensor))
        or x.dim() != y.dim()
        or x.dim() not in (3, 4)
    ):
        return y  # an error that ssim_loss explains
    return y.narrow(-3, 0, 1) if x.shape[-3] == 1 and y.shape[-3] > 1 else y


class SSIMLoss(nn.Module):
    r"""1 - SSIM as a module: a drop-in for the usual five-``conv2d`` class.

    Where ``x`` has one channel and ``y`` more, ``y``'s first channel is compared (label channels
    appended behind the image). With more channels in both, every channel is compared; any other
    difference in shape is an error.

    Unlike the usual code, no ``eps`` is added to the denominator (there, 1e-12 makes black against
    black cost 1.1e-5), and the loss is not formed by subtraction: see :func:`ssim_fused.ssim_loss`.

    Args:
        kernel_size: taps of the Gaussian window along each axis; odd.
        sigma: its standard deviation, in pixels.
        data_range, k1, k2, padding, reduction: as in :func:`ssim_fused.ssim_loss`.

    Shape:
        x, y: (N, C, H, W) or (C, H, W). Loss: () for the default ``reduction="mean"``.
        ``as_loss=False``: the SSIM map, (N, C, H, W) or (C, H, W).

    Example:
        >>> criterion = SSIMLoss()
        >>> criterion(model(x), x).backward()
    """

    def __init__(
        self,
        kernel_size: int = 11,
        sigma: float = 1.5,
        *,
        data_range: float = 1.0,
        k1: float = 0.01,
        k2: float = 0.03,
        padding: str = "same",
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        check_settings(kernel_size, sigma, data_range, k1, k2, padding, reduction)
        self.kernel_size = kernel_size
        self.sigma = sigma
        self.data_range = data_range
        self.k1 = k1
        self.k2 = k2
        self.padding = padding
        self.reduction = reduction

    def forward(self, x: Tensor, y: Tensor, as_loss: bool = True) -> Tensor:
        """The loss, or the SSIM map where ``as_loss`` is False."""
        function, reduction = (ssim_loss, self.reduction) if as_loss else (ssim, "none")
        return function(
            x,
            _image_channels(x, y),
            window_size=self.kernel_size,
            sigma=self.sigma,
            data_range=self.data_range,
            k1=self.k1,
            k2=self.k2,
            padding=self.padding,
            reduction=reduction,
        )

    def extra_repr(self) -> str:
        """The settings, as ``print(module)`` shows them."""
        return (
            f"kernel_size={self.kernel_size}, sigma={self.sigma}, data_range={self.data_range}, "
            f"k1={self.k1}, k2={self.k2}, padding={self.padding!r}, reduction={self.reduction!r}"
        )


def _kl_divergence(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mu, exp(logvar)) || N(0, 1)), summed over the last axis, mean over the rest."""
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


def _check_weight(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")
    return value


class CVAELoss(nn.Module):
    r"""The loss of a (conditional) VAE: MSE + alpha * (1 - SSIM) + beta * KL divergence.

    .. math::
        \mathrm{KL} = -\tfrac{1}{2} \sum (1 + \log\sigma^2 - \mu^2 - \sigma^2),

    summed over the last axis and averaged over the rest. A term of weight 0 is not computed.
    Also importable as ``MSE_SSIM_KL_Loss``.

    Args:
        alpha: weight of the SSIM loss.
        beta: weight of the KL divergence.
        return_terms: return ``(loss, mse, ssim, kl)``, the last three detached (``ssim`` is the
            SSIM loss; a term that is not computed is 0).
        kernel_size, sigma, data_range, k1, k2, padding: as in :class:`SSIMLoss`.

    Shape:
        recon_x, raw_x: (N, C, H, W) or (C, H, W); where ``recon_x`` has one channel and ``raw_x``
        more, ``raw_x``'s first channel is compared. mu, logvar: (..., latent), of one shape.

    Example:
        >>> criterion = CVAELoss(alpha=1.0, beta=1e-3)
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
        kernel_size: int = 11,
        sigma: float = 1.5,
        data_range: float = 1.0,
        k1: float = 0.01,
        k2: float = 0.03,
        padding: str = "same",
    ) -> None:
        super().__init__()
        self.alpha = _check_weight("alpha", alpha)
        self.beta = _check_weight("beta", beta)
        self.return_terms = return_terms
        self.ssim = SSIMLoss(
            kernel_size, sigma, data_range=data_range, k1=k1, k2=k2, padding=padding
        )

    def forward(
        self, recon_x: Tensor, raw_x: Tensor, mu: Tensor, logvar: Tensor
    ) -> Tensor | tuple[Tensor, Tensor, Tensor, Tensor]:
        """The loss, or ``(loss, mse, ssim, kl)`` with ``return_terms``."""
        raw_x = _image_channels(recon_x, raw_x)
        if not (isinstance(recon_x, Tensor) and isinstance(raw_x, Tensor)):
            kinds = f"{type(recon_x).__name__} and {type(raw_x).__name__}"
            raise TypeError(f"recon_x and raw_x must be torch.Tensors, got {kinds}")
        if recon_x.shape != raw_x.shape:
            raise ValueError(
                "recon_x and raw_x must have the same shape, "
                f"got {tuple(recon_x.shape)} and {tuple(raw_x.shape)}"
            )
        loss = mse = F.mse_loss(recon_x, raw_x)
        ssim_term = kl = torch.zeros_like(mse)
        if self.alpha != 0:
            ssim_term = self.ssim(recon_x, raw_x)
            loss = loss + self.alpha * ssim_term
        if self.beta != 0:
            _check_latent(mu, logvar)
            kl = _kl_divergence(mu, logvar)
            loss = loss + self.beta * kl
        if self.return_terms:
            return loss, mse.detach(), ssim_term.detach(), kl.detach()
        return loss

    def extra_repr(self) -> str:
        """The weights, as ``print(module)`` shows them."""
        return f"alpha={self.alpha}, beta={self.beta}, return_terms={self.return_terms}"


MSE_SSIM_KL_Loss = CVAELoss
