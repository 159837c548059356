"""The functions that users call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ._call import compute_ssim, finish, prepare
from ._checks import Sigma, Taps, Window, positive, resolve_range
from ._multiscale import BETAS, compute_multiscale
from ._ops import BACKEND, reduced_loss
from ._terms import compute_psnr, compute_terms, to_psnr


def ssim_loss(
    input: Tensor,
    target: Tensor,
    *,
    window_size: Taps = 11,
    sigma: Sigma = 1.5,
    data_range: float | None = None,
    k1: float = 0.01,
    k2: float = 0.03,
    padding: str = "same",
    reduction: str = "mean",
    window: Window = "gaussian",
    term: str = "ssim",
    nonnegative_ssim: bool = False,
    sample_covariance: bool = False,
    spatial_dims: int | None = None,
    mask: Tensor | None = None,
    mask_threshold: float = 0.5,
    weight: Tensor | None = None,
) -> Tensor:
    r"""1 - SSIM, accurate near convergence, never negative, exactly 0 for identical images.

    With windowed means :math:`\mu`, variances :math:`\sigma^2` and covariance
    :math:`\sigma_{xy}` of ``input`` x and ``target`` y,

    .. math::
        \mathrm{SSIM} = \frac{(2 \mu_x \mu_y + C_1)(2 \sigma_{xy} + C_2)}
                             {(\mu_x^2 + \mu_y^2 + C_1)(\sigma_x^2 + \sigma_y^2 + C_2)},
        \qquad C_i = (k_i L)^2 .

    The loss is computed as a sum of products that are not negative (``csrc/ssim_math.h``), not as a
    subtraction from 1. No small number is added to the denominator.

    Args:
        input: images, any of float16, bfloat16 (float32 arithmetic), float32, float64; for a value
            without gradient also uint8 and uint16.
        target: images of the same shape, dtype and device. Gradients flow to both.
        window_size: taps of the window along each axis, odd; one number, or one for each axis.
            11 is the fast one. On CUDA, plain PyTorch computes more than 33 taps (volumes: 15).
        sigma: standard deviation of the Gaussian, in pixels; one number, or one for each axis.
        data_range: L, the difference between the largest and the smallest possible pixel value:
            1 for images in [0, 1], 255 for [0, 255], 2 for [-1, 1] (where SSIM is not that of the
            same images in [0, 1]: for figures that compare with others', ``(x + 1) / 2``). Where it
            is not given: 1 for floating-point images, 255 for uint8, 65535 for uint16. Its
            reciprocal must be a number of the type that is computed in.
        k1, k2: the constants of the paper. Where k1 is 0 and a window black in both images, or k2
            is 0 and a window flat in both, it is 0 / 0, and the loss NaN, of identical images, too.
        padding: what lies outside the image: ``"same"`` (zeros), ``"reflect"``, ``"replicate"``,
            ``"circular"`` (as :func:`torch.nn.functional.pad` names them), or ``"valid"``: windows
            inside the image only, so the map is smaller by ``window_size - 1``.
        reduction: ``"mean"``, ``"sum"``, ``"image"`` (one mean per image), ``"channel"`` (one per
            image and channel) or ``"none"`` (the map).
        window: ``"gaussian"``, ``"uniform"`` (all pixels of ``window_size`` count alike), or your
            own: the taps of a symmetric 1-D window that sum to 1, none of them negative, or those
            of one for each axis, as numbers, a tensor or an array.
        term: ``"ssim"``, or one of its two factors alone: ``"luminance"`` (the one with the means)
            or ``"contrast_structure"`` (the one with variances and covariance).
        nonnegative_ssim: SSIM below 0 counts as 0, without a gradient.
        sample_covariance: variances are divided by the number of a window's pixels less one.
        spatial_dims: 1, 2 or 3 spatial axes; where it is not given, 3 for five axes and 2 for three
            or four.
        mask: which pixels are seen, bool or weights in [0, 1]: (N or 1, C or 1, H, W). Windows are
            averages of the seen pixels alone (normalised convolution), pixels outside the image
            being unseen, too; what the others hold, NaN included, changes neither value nor
            gradient.
        mask_threshold: a window counts where more than this share of it is seen, by more than
            rounding may add. The map is 0 (1 that of :func:`ssim`) where a window does not count.
        weight: how much each window counts in the mean, not negative: (N or 1, C or 1, OH, OW), the
            size of the map. For ``reduction="sum"``, a factor; an error for ``"none"``. No gradient
            flows to it.

    Shape:
        Images (N, C, H, W) or (C, H, W), volumes (N, C, D, H, W), or with ``spatial_dims``
        (C, D, H, W), signals (N, C, L), (C, L). Every channel is compared. Value: () for "mean" and
        "sum"; (N,), or () for one image, for "image"; (N, C) or (C,) for "channel"; the map for
        "none".

    Returns:
        The loss in the images' dtype (float32 for uint8 and uint16); under autocast, float32 for
        half-precision images.

    Raises:
        TypeError: for images that are not real tensors of one of these dtypes, or settings of the
            wrong type.
        ValueError: for shapes or devices that differ, a wrong rank, empty images, an even window or
            one that does not fit, a mask that leaves an image without a window, settings out of
            range, and a mask, weight or setting that requires a gradient.

    Example:
        >>> x = torch.rand(2, 3, 64, 64, requires_grad=True)
        >>> ssim_loss(x, torch.rand(2, 3, 64, 64)).backward()

    Source:
        Z. Wang, A. C. Bovik, H. R. Sheikh, E. P. Simoncelli, "Image quality assessment: from error
        visibility to structural similarity", IEEE Transactions on Image Processing 13 (4), 2004,
        equation 13. https://doi.org/10.1109/TIP.2003.819861
    """
    # fmt: off
    request, promise = prepare(
        input, target, window_size, sigma, data_range, k1, k2, padding, reduction, window, term,
        nonnegative_ssim, sample_covariance, spatial_dims, mask, mask_threshold, weight,
    )
    # fmt: on
    return finish(reduced_loss(request), promise)


def ssim(
    input: Tensor,
    target: Tensor,
    *,
    window_size: Taps = 11,
    sigma: Sigma = 1.5,
    data_range: float | None = None,
    k1: float = 0.01,
    k2: float = 0.03,
    padding: str = "same",
    reduction: str = "mean",
    window: Window = "gaussian",
    term: str = "ssim",
    nonnegative_ssim: bool = False,
    sample_covariance: bool = False,
    spatial_dims: int | None = None,
    mask: Tensor | None = None,
    mask_threshold: float = 0.5,
    weight: Tensor | None = None,
    return_cs: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Structural similarity, between -1 and 1: ``1 - ssim_loss``.

    Arguments, shapes, errors and source are those of :func:`ssim_loss`; ``reduction="sum"`` gives
    the sum of the map, with a mask that of the windows that count. To train, use
    :func:`ssim_loss`: it keeps digits that a subtraction loses.

    Args:
        return_cs: return ``(ssim, cs)``, where ``cs`` is the same for
            ``term="contrast_structure"``, as MS-SSIM needs it.

    Example:
        >>> ssim(x, y, data_range=255.0, padding="valid", reduction="image")
    """
    # fmt: off
    request, promise = prepare(
        input, target, window_size, sigma, data_range, k1, k2, padding, reduction, window, term,
        nonnegative_ssim, sample_covariance, spatial_dims, mask, mask_threshold, weight,
    )
    # fmt: on
    return compute_ssim(BACKEND, request, promise, return_cs)


def dssim(input: Tensor, target: Tensor, **settings: Any) -> Tensor:
    """Structural dissimilarity, (1 - SSIM) / 2, in [0, 1]; settings as in :func:`ssim_loss`."""
    return ssim_loss(input, target, **settings) / 2


def ms_ssim_loss(
    input: Tensor,
    target: Tensor,
    *,
    betas: Sequence[float] = BETAS,
    normalize: str | None = None,
    pooling: str = "floor",
    per_channel: bool = True,
    window_size: Taps = 11,
    sigma: Sigma = 1.5,
    data_range: float | None = None,
    k1: float = 0.01,
    k2: float = 0.03,
    padding: str = "valid",
    reduction: str = "mean",
    window: Window = "gaussian",
    spatial_dims: int | None = None,
) -> Tensor:
    r"""1 - MS-SSIM, without NaN, and with a slope everywhere.

    .. math::
        \mathrm{MS\text{-}SSIM} = \mathrm{SSIM}_M^{\beta_M} \prod_{i < M} cs_i^{\beta_i},

    where :math:`cs_i` is the mean contrast-structure term of the images halved i - 1 times.

    A factor that is not positive has no power. ``normalize`` says what becomes of it: None adds
    :math:`\beta_i |s_i|` to the loss for each factor :math:`s_i < 0` (and the product is 0), so the
    loss goes on rising to :math:`1 + \sum \beta_i`, and its gradient does not vanish where images
    are anti-correlated; ``"relu"`` takes 0 in its place, as pytorch-msssim does; ``"simple"`` takes
    (1 + s) / 2 of every factor, as torchmetrics does. Where all factors are positive, None and
    "relu" are the same.

    Args:
        input, target, window_size, sigma, data_range, k1, k2, padding, window: as in
            :func:`ssim_loss`.
        betas: exponents, from the finest scale to the coarsest; their number is that of scales.
        normalize: None, ``"relu"`` or ``"simple"``, see above.
        pooling: what becomes of the last pixel when an axis of odd length is halved: ``"floor"``
            (left out, as in torchmetrics), ``"pad"`` (the first one is halved with a zero, as in
            pytorch-msssim), or ``"edge"`` (averaged with itself, as in the paper's code).
        per_channel: take powers for each channel, then the mean (pytorch-msssim); else average the
            factors over the channels first (torchmetrics).
        reduction: ``"mean"``, ``"image"``, or ``"channel"`` where powers are taken per channel.
        spatial_dims: as in :func:`ssim_loss`, 2 or 3.

    Shape:
        Images (N, C, H, W) or (C, H, W), volumes (N, C, D, H, W). Value: (), (N,) or (N, C).

    Raises:
        As :func:`ssim_loss`, and ValueError for images that are too small for the number
        of scales, which names the smallest size that works: 176 for five scales and 11 taps.

    Example:
        >>> ms_ssim_loss(x, y, data_range=255.0).backward()

    Source:
        Z. Wang, E. P. Simoncelli, A. C. Bovik, "Multi-scale structural similarity for image quality
        assessment", Asilomar Conference on Signals, Systems and Computers, 2003.
        https://doi.org/10.1109/ACSSC.2003.1292216
    """
    return compute_multiscale(
        BACKEND,
        input,
        target,
        betas=betas,
        normalize=normalize,
        pooling=pooling,
        per_channel=per_channel,
        window_size=window_size,
        sigma=sigma,
        data_range=data_range,
        k1=k1,
        k2=k2,
        padding=padding,
        reduction=reduction,
        window=window,
        spatial_dims=spatial_dims,
    )


def ms_ssim(input: Tensor, target: Tensor, **settings: Any) -> Tensor:
    """Multi-scale SSIM: ``1 - ms_ssim_loss``, whose settings these are.

    With ``normalize=None`` it is negative where a factor is; at least ``-sum(betas)``.

    Example:
        >>> ms_ssim(x, y, data_range=255.0, reduction="image")
    """
    return 1 - ms_ssim_loss(input, target, **settings)


class _Terms(NamedTuple):
    ssim: Tensor
    mse: Tensor
    l1: Tensor


class ImageTerms(_Terms):
    """What an :func:`image_loss` is made of, without weights and without gradients.

    What ``_replace`` and ``torch.utils._pytree.tree_map`` make of them has lost the data range:
    give it to ``psnr()``.

    Attributes:
        ssim: the SSIM loss, 1 - SSIM.
        mse: mean squared error, in the images' units.
        l1: mean absolute error, in the images' units.
    """

    # beside the tuple, which stays one of three; image_loss sets them
    _data_range: float | None = None
    _has_mse: bool = True
    _exact_mse: Tensor | None = None  # not rounded to the images' dtype

    def psnr(self, data_range: float | None = None) -> Tensor:
        """Peak signal-to-noise ratio of all pixels together, in decibels; float32 at least.

        Terms that :func:`image_loss` made have it from the MSE before it is rounded to their dtype.

        Args:
            data_range: where it is not given, that of the loss.

        Raises:
            ValueError: MSE had no weight, so that it was not computed.
        """
        if not self._has_mse:
            raise ValueError(
                "psnr needs the MSE, whose weight was 0: give image_loss one, such as mse=1e-9"
            )
        if data_range is None:
            data_range = self._data_range
        if data_range is None:
            raise ValueError("data_range must be given for terms that image_loss did not make")
        mse = self.mse if self._exact_mse is None else self._exact_mse
        return to_psnr(mse, positive("data_range", resolve_range(data_range, mse)))


def image_loss(
    input: Tensor,
    target: Tensor,
    *,
    ssim: float = 1.0,
    mse: float = 0.0,
    l1: float = 0.0,
    return_terms: bool = False,
    window_size: Taps = 11,
    sigma: Sigma = 1.5,
    data_range: float | None = None,
    k1: float = 0.01,
    k2: float = 0.03,
    padding: str = "same",
    window: Window = "gaussian",
    spatial_dims: int | None = None,
    mask: Tensor | None = None,
    mask_threshold: float = 0.5,
) -> Tensor | tuple[Tensor, ImageTerms]:
    r"""``ssim`` (1 - SSIM) + ``mse`` mean((x - y)^2) + ``l1`` mean(|x - y|), in one pass.

    Squared and absolute differences are added up, and their gradients made, while the SSIM loss
    reads the images; with a mask, and of volumes, after it. A term of weight 0 is not computed;
    without SSIM, images may be smaller than the window.

    Args:
        input, target, window_size, sigma, data_range, k1, k2, padding, window, spatial_dims: as in
            :func:`ssim_loss`.
        ssim, mse, l1: weights of the terms. MSE and L1 are in the images' units: ``data_range``
            does not scale them.
        return_terms: return ``(loss, terms)``, where :class:`ImageTerms` holds each term's value;
            one that is not computed is 0. Its ``psnr()`` needs a weight of MSE, however small.
        mask, mask_threshold: as in :func:`ssim_loss`; MSE and L1 are means weighted with the mask.

    Shape:
        As in :func:`ssim_loss`; loss and terms: ().

    Raises:
        As :func:`ssim_loss`, and ValueError where all weights are 0.

    Example:
        >>> loss, terms = image_loss(x, y, ssim=0.2, l1=0.8, mse=1e-9, return_terms=True)
        >>> terms.psnr()
    """
    # fmt: off
    loss, terms, exact_mse, checked_range = compute_terms(
        BACKEND, input, target, (ssim, mse, l1), mask, mask_threshold,
        window_size=window_size, sigma=sigma, data_range=data_range, k1=k1, k2=k2,
        padding=padding, window=window, spatial_dims=spatial_dims,
    )
    # fmt: on
    if not return_terms:
        return loss
    named = ImageTerms(*terms)
    named._data_range = checked_range
    named._has_mse = bool(mse)
    named._exact_mse = exact_mse
    return loss, named


def psnr(
    input: Tensor, target: Tensor, *, data_range: float | None = None, reduction: str = "mean"
) -> Tensor:
    """Peak signal-to-noise ratio in decibels; infinite for identical images.

    Args:
        input, target, data_range: as in :func:`ssim_loss`, of any rank from (N, ...) on.
        reduction: ``"mean"`` (of all pixels together, pooled), or ``"image"`` (one per image).

    Shape:
        (N, ...). Value: () or (N,), float32 or float64.
    """
    return compute_psnr(input, target, data_range, reduction)
