"""The tables that drive the tests: shapes, tolerances, pictures. And the oracle."""

from __future__ import annotations

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

# (N, C, H, W): one pixel, smaller than the window, one block, one past it, odd, several tiles (256
# columns) and bands (512 rows), wide and tall
SHAPES = [
    (1, 1, 1, 1),
    (1, 2, 3, 5),
    (2, 1, 11, 11),
    (2, 3, 16, 16),
    (1, 1, 17, 33),
    (3, 1, 28, 28),
    (1, 2, 64, 61),
    (1, 1, 23, 513),
    (1, 1, 530, 21),
]
WINDOWS = [(11, 1.5), (1, 1.0), (3, 0.8), (7, 1.5), (33, 5.0)]

# dtype -> relative tolerance of value and gradient (norms), against float64 on the same pixels.
# float32 is what the library promises; half precision rounds the results it stores: 2^-11 and 2^-8.
TOLERANCE = {
    torch.float64: (1e-12, 1e-10),
    torch.float32: (2e-6, 2e-5),
    torch.float16: (2**-11, 2**-10),
    torch.bfloat16: (2**-8, 2**-7),
}

# A float32 map keeps the rounding of each pixel's window sums, about u^2 * 6e-8 against C2 = 9e-4,
# which averages out in a loss. Where it is stored in half precision it is rounded like the rest.
MAP_TOLERANCE = {torch.float32: 2e-5}

C1, C2 = 0.01**2, 0.03**2


def pictures(shape, dtype=torch.float32, seed=0, noise=0.1) -> tuple[Tensor, Tensor]:
    """A smooth random picture, signal or volume with grain in [0, 1], and a noisy copy."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*size):
        return torch.rand(size, generator=generator, dtype=torch.float64)

    n, c, *size = shape
    coarse = rand(n, c, *(math.ceil(length / 12) + 1 for length in size))
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(size)]
    smooth = F.interpolate(coarse, size=size, mode=mode, align_corners=True)
    picture = (0.9 * smooth + 0.1 * rand(*shape)).clamp(0, 1)
    copy = picture + noise * (2 * rand(*shape) - 1)
    return picture.to(dtype), copy.to(dtype)


def oracle_map(x: Tensor, y: Tensor, window=(11, 1.5), padding="same", data_range=1.0) -> Tensor:
    """The SSIM map by the textbook: a 2-D window, five convolutions of x, y, x^2, y^2, xy.

    Written apart from the library's reference, which uses another form; meant for float64.
    """
    size, sigma = window
    axis = torch.arange(size, dtype=x.dtype, device=x.device) - (size - 1) / 2
    taps = torch.exp(-(axis**2) / (2 * sigma**2))
    kernel = torch.outer(taps, taps)
    kernel = (kernel / kernel.sum()).view(1, 1, size, size)

    def blur(image: Tensor) -> Tensor:
        flat = image.reshape(-1, 1, *image.shape[-2:])
        out = F.conv2d(flat, kernel, padding=size // 2 if padding == "same" else 0)
        return out.view(*image.shape[:-2], *out.shape[-2:])

    mu_x, mu_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mu_x**2, blur(y * y) - mu_y**2
    cov = blur(x * y) - mu_x * mu_y
    c1, c2 = C1 * data_range**2, C2 * data_range**2
    return ((2 * mu_x * mu_y + c1) * (2 * cov + c2)) / (
        (mu_x**2 + mu_y**2 + c1) * (var_x + var_y + c2)
    )


def window_taps(axes: int, window_size=11, sigma=1.5, window="gaussian") -> list[Tensor]:
    """The 1-D taps of each axis, in float64, from the settings as users give them."""

    def each(value):
        return list(value) if isinstance(value, (tuple, list)) else [value] * axes

    if not isinstance(window, str):
        windows = list(window) if isinstance(window[0], (tuple, list)) else [window] * axes
        return [torch.tensor(taps, dtype=torch.float64) for taps in windows]
    sizes = each(window_size)
    if window == "uniform":
        return [torch.full((size,), 1 / size, dtype=torch.float64) for size in sizes]
    windows = []
    for size, width in zip(sizes, each(sigma)):
        axis = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
        taps = torch.exp(-(axis**2) / (2 * width**2))
        windows.append(taps / taps.sum())
    return windows


def _outside(i: int, length: int, padding: str) -> int | None:
    """Which pixel stands at i, or None for zero."""
    if 0 <= i < length:
        return i
    if padding == "reflect":
        return -i if i < 0 else 2 * (length - 1) - i
    if padding == "replicate":
        return 0 if i < 0 else length - 1
    return i % length if padding == "circular" else None


@functools.lru_cache(maxsize=256)
def _window_matrix(taps: tuple[float, ...], length: int, padding: str) -> Tensor:
    """What each window (row) takes of each pixel (column) along one axis."""
    reach = 0 if padding == "valid" else len(taps) // 2
    rows = length - len(taps) + 1 + 2 * reach
    matrix = torch.zeros(rows, length, dtype=torch.float64)
    for row in range(rows):
        for k, tap in enumerate(taps):
            pixel = _outside(row + k - reach, length, padding)
            if pixel is not None:
                matrix[row, pixel] += tap
    return matrix


def window_means(image: Tensor, taps: list[Tensor], padding: str) -> Tensor:
    """Sums over each window, as products with one matrix for each axis."""
    for axis, window in enumerate(taps, start=image.dim() - len(taps)):
        matrix = _window_matrix(tuple(window.tolist()), image.shape[axis], padding)
        image = torch.tensordot(image, matrix, ([axis], [1])).movedim(-1, axis)
    return image


def oracle_loss(
    x: Tensor,
    y: Tensor,
    *,
    window_size=11,
    sigma=1.5,
    window="gaussian",
    padding="same",
    reduction="mean",
    data_range=1.0,
    k1=0.01,
    k2=0.03,
    term="ssim",
    nonnegative_ssim=False,
    sample_covariance=False,
    spatial_dims=None,
    mask=None,
    mask_threshold=0.5,
    weight=None,
) -> Tensor:
    """1 - SSIM with every setting by the textbook, a window a dense matrix. Meant for float64.

    With a mask, each window's weights are those of its seen pixels, divided by their sum.
    """
    axes = spatial_dims or (3 if x.dim() == 5 else 2)
    alone = x.dim() == axes + 1
    if alone:
        x, y, mask, weight = (t if t is None else t[None] for t in (x, y, mask, weight))
    taps = window_taps(axes, window_size, sigma, window)
    counts, seen = torch.ones((), dtype=torch.float64), None
    if mask is not None:
        mask = mask.double()
        x, y = (torch.where(mask > 0, image, 0.0) for image in (x, y))
        seen = window_means(mask, taps, padding)
        counts = (seen > mask_threshold).double()
        seen = torch.where(counts > 0, seen, 1.0)

    outside = 1 - window_means(torch.ones_like(x), taps, padding) if mask is None else 0.0

    def mean(image, beyond):
        """Means over each window, where ``beyond`` stands outside the image."""
        if seen is None:
            return window_means(image, taps, padding) + outside * beyond
        return window_means(image * mask, taps, padding) / seen

    # moments about a pixel value near the mean, so that variances keep their digits
    p, q = x.detach().mean(), y.detach().mean()
    x, y = x - p, y - q
    mu_x, mu_y = mean(x, -p), mean(y, -q)
    var_x, var_y = mean(x * x, p * p) - mu_x**2, mean(y * y, q * q) - mu_y**2
    cov = mean(x * y, p * q) - mu_x * mu_y
    mu_x, mu_y = mu_x + p, mu_y + q
    if sample_covariance:
        pixels = math.prod(map(len, taps))
        var_x, var_y, cov = (m * pixels / (pixels - 1) for m in (var_x, var_y, cov))
    c1, c2 = (k1 * data_range) ** 2, (k2 * data_range) ** 2
    luminance = (2 * mu_x * mu_y + c1) / (mu_x**2 + mu_y**2 + c1)
    contrast = (2 * cov + c2) / (var_x + var_y + c2)
    value = {"luminance": luminance, "contrast_structure": contrast}.get(term, luminance * contrast)
    loss = 1 - (value.clamp(min=0) if nonnegative_ssim else value)
    loss = torch.where(counts > 0, loss, 0.0)
    if weight is not None:
        counts = counts * weight.double()
    counts = counts.expand(loss.shape)
    across = tuple(range({"image": 1, "channel": 2}.get(reduction, 0), loss.dim()))
    if reduction == "none":
        return loss[0] if alone else loss
    value = (loss * counts).sum(across)
    if reduction != "sum":
        value = value / counts.sum(across)
    return value[0] if alone and reduction in ("image", "channel") else value


def check_loss(module, x: Tensor, y: Tensor, tolerance=None, **settings) -> None:
    """ssim_loss and ssim of a path, and gradients to either image and both, against the oracle.

    Upstream gradients are not uniform. tolerance: of value and gradient, else by dtype.
    """
    value_tol, grad_tol = tolerance or TOLERANCE[x.dtype]
    if settings.get("reduction") == "none":
        value_tol = max(value_tol, MAP_TOLERANCE.get(x.dtype, 0.0))
    true_x, true_y = (t.detach().double().requires_grad_() for t in (x, y))
    true = oracle_loss(true_x, true_y, **settings)
    upstream = torch.rand(true.shape, generator=torch.Generator().manual_seed(0)) + 0.5
    upstream = upstream.to(x.dtype)
    true_grads = torch.autograd.grad(true, (true_x, true_y), upstream.double())
    for wanted in ([0], [1], [0, 1]):
        images = [image.detach().requires_grad_(i in wanted) for i, image in enumerate((x, y))]
        loss = module.ssim_loss(*images, **settings)
        assert loss.shape == true.shape
        assert loss.dtype == x.dtype
        error = relative_error(loss.detach(), true.detach())
        assert error <= value_tol, f"value for {settings}"
        grads = torch.autograd.grad(loss, [images[i] for i in wanted], upstream)
        for i, grad in zip(wanted, grads):
            assert grad.shape == x.shape
            assert grad.dtype == x.dtype
            error = relative_error(grad, true_grads[i])
            assert error <= grad_tol, f"gradient to image {i} of {wanted} for {settings}"


def natural(size=256, channels=3, dtype=torch.float64) -> tuple[Tensor, Tensor]:
    """A photograph in [0, 1] and what a codec might make of it: blurred, with noise, darker."""
    datasets = pytest.importorskip("sklearn.datasets")
    photo = torch.from_numpy(datasets.load_sample_image("china.jpg").copy()).double() / 255
    photo = photo[60 : 60 + size, 150 : 150 + size, :channels].permute(2, 0, 1)[None].contiguous()
    noise = torch.randn(photo.shape, generator=torch.Generator().manual_seed(5)).double()
    copy = 0.9 * F.avg_pool2d(F.pad(photo, (1, 1, 1, 1), mode="reflect"), 3, 1) + 0.03 * noise
    return photo.to(dtype), copy.clamp(0, 1).to(dtype)


def reduce(ssim_map: Tensor, reduction: str) -> Tensor:
    """mean, sum, image or none of a map."""
    if reduction == "image":
        return ssim_map.mean(dim=(1, 2, 3))
    return {"mean": ssim_map.mean, "sum": ssim_map.sum, "none": lambda: ssim_map}[reduction]()


def relative_error(found: Tensor, true: Tensor) -> float:
    """Norm of the difference over the norm of the truth."""
    scale = true.double().norm().item()
    return (found.double() - true.double()).norm().item() / max(scale, 1e-300)
