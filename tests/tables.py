"""The tables that drive the tests: shapes, tolerances, pictures. And the oracle."""

from __future__ import annotations

import math

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
    """A smooth random picture with grain in [0, 1], and a noisy copy."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*size):
        return torch.rand(size, generator=generator, dtype=torch.float64)

    n, c, h, w = shape
    coarse = rand(n, c, math.ceil(h / 12) + 1, math.ceil(w / 12) + 1)
    smooth = F.interpolate(coarse, size=(h, w), mode="bilinear", align_corners=True)
    picture = (0.9 * smooth + 0.1 * rand(n, c, h, w)).clamp(0, 1)
    copy = picture + noise * (2 * rand(n, c, h, w) - 1)
    return picture.to(dtype), copy.to(dtype)


def oracle_map(x: Tensor, y: Tensor, window=(11, 1.5), padding="same", data_range=1.0) -> Tensor:
    """The SSIM map by the textbook: a 2-D window, five convolutions of x, y, x^2, y^2, xy.

    Written apart from the library's reference, which uses another form; meant for float64.
    """
    size, sigma = window
    axis = torch.arange(size, dtype=x.dtype) - (size - 1) / 2
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


def reduce(ssim_map: Tensor, reduction: str) -> Tensor:
    """mean, sum, image or none of a map."""
    if reduction == "image":
        return ssim_map.mean(dim=(1, 2, 3))
    return {"mean": ssim_map.mean, "sum": ssim_map.sum, "none": lambda: ssim_map}[reduction]()


def relative_error(found: Tensor, true: Tensor) -> float:
    """Norm of the difference over the norm of the truth."""
    scale = true.double().norm().item()
    return (found.double() - true.double()).norm().item() / max(scale, 1e-300)
