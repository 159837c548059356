"""The functions that users call."""

from __future__ import annotations

from torch import Tensor

from ._call import apply, to_similarity
from ._checks import check_settings
from ._ops import reduced_loss


def ssim_loss(
    input: Tensor,
    target: Tensor,
    *,
    window_size: int = 11,
    sigma: float = 1.5,
    data_range: float = 1.0,
    k1: float = 0.01,
    k2: float = 0.03,
    padding: str = "same",
    reduction: str = "mean",
) -> Tensor:
    r"""1 - SSIM, accurate near convergence, never negative, exactly 0 for identical images.

    With Gaussian-windowed means :math:`\mu`, variances :math:`\sigma^2` and covariance
    :math:`\sigma_{xy}` of ``input`` x and ``target`` y,

    .. math::
        \mathrm{SSIM} = \frac{(2 \mu_x \mu_y + C_1)(2 \sigma_{xy} + C_2)}
                             {(\mu_x^2 + \mu_y^2 + C_1)(\sigma_x^2 + \sigma_y^2 + C_2)},
        \qquad C_i = (k_i L)^2 .

    The loss is computed as a sum of products that are not negative (``csrc/ssim_math.h``), not as a
    subtraction from 1. No small number is added to the denominator.

    Args:
        input: images, any of float16, bfloat16 (float32 arithmetic), float32, float64.
        target: images of the same shape, dtype and device. Gradients flow to both.
        window_size: taps of the window along each axis; odd. 11 is the fast one.
        sigma: standard deviation of the Gaussian, in pixels.
        data_range: L, the difference between the largest and the smallest possible pixel value:
            1 for images in [0, 1], 255 for [0, 255], 2 for [-1, 1].
        k1, k2: the constants of the paper.
        padding: ``"same"`` (zeros around the image; the map has the image's size) or ``"valid"``
            (windows inside the image only; the map is smaller by ``window_size - 1``).
        reduction: ``"mean"``, ``"sum"``, ``"image"`` (one mean per image) or ``"none"`` (the map).

    Shape:
        (N, C, H, W), or (C, H, W) for one image; every channel is compared. Value: () for "mean"
        and "sum"; (N,), or () for one image, for "image"; the map for "none".

    Returns:
        The loss in the images' dtype; under autocast, float32 for half-precision images.

    Raises:
        TypeError: for images that are not real floating-point tensors of one dtype, or settings of
            the wrong type.
        ValueError: for shapes or devices that differ, a wrong rank, empty images, an even window or
            one that does not fit, and settings out of range.

    Example:
        >>> x = torch.rand(2, 3, 64, 64, requires_grad=True)
        >>> ssim_loss(x, torch.rand(2, 3, 64, 64)).backward()

    Source:
        Z. Wang, A. C. Bovik, H. R. Sheikh, E. P. Simoncelli, "Image quality assessment: from error
        visibility to structural similarity", IEEE Transactions on Image Processing 13 (4), 2004,
        equation 13. https://doi.org/10.1109/TIP.2003.819861
    """
    settings = check_settings(window_size, sigma, data_range, k1, k2, padding, reduction)
    return apply(reduced_loss, input, target, settings)


def ssim(
    input: Tensor,
    target: Tensor,
    *,
    window_size: int = 11,
    sigma: float = 1.5,
    data_range: float = 1.0,
    k1: float = 0.01,
    k2: float = 0.03,
    padding: str = "same",
    reduction: str = "mean",
) -> Tensor:
    """Structural similarity, between -1 and 1: ``1 - ssim_loss``.

    Arguments, shapes, errors and source are those of :func:`ssim_loss`; ``reduction="sum"`` gives
    the sum of the map. To train, use :func:`ssim_loss`: it keeps digits that a subtraction loses.

    Example:
        >>> ssim(x, y, data_range=255.0, padding="valid", reduction="image")
    """
    settings = check_settings(window_size, sigma, data_range, k1, k2, padding, reduction)
    return to_similarity(apply(reduced_loss, input, target, settings), input, settings)
