"""Small calls that together reach every kind of CUDA kernel: for a GPU, and its sanitizers."""

from __future__ import annotations

import torch

SMALL, LARGE, VOLUME = (2, 2, 20, 23), (1, 1, 300, 1000), (1, 2, 14, 15, 20)


def _random(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


# function, shape and settings
CALLS = {
    "tile": ("ssim_loss", SMALL, {}),
    "tile, map": ("ssim_loss", SMALL, {"reduction": "none"}),
    "streaming": ("ssim_loss", LARGE, {}),
    "streaming, map": ("ssim_loss", LARGE, {"reduction": "none"}),
    "any": ("ssim_loss", SMALL, {"window_size": 7}),
    "any, map": ("ssim_loss", SMALL, {"window_size": 7, "reduction": "none"}),
    "reduce": ("ssim_loss", SMALL, {"reduction": "image"}),
    "another map": ("ssim_loss", SMALL, {"nonnegative_ssim": True}),
    "weight": ("ssim_loss", SMALL, {"weight": 0.5 + _random(2, 1, 20, 23)}),
    "mask": ("ssim_loss", SMALL, {"mask": (_random(2, 1, 20, 23) > 0.2).double()}),
    "terms": ("image_loss", SMALL, {"mse": 0.5, "l1": 0.5}),
    "streaming, terms": ("image_loss", LARGE, {"mse": 0.5, "l1": 0.5}),
    "scales": ("ms_ssim_loss", (1, 2, 180, 190), {}),
    "volume": ("ssim_loss", VOLUME, {"spatial_dims": 3}),
    "volume, map": ("ssim_loss", VOLUME, {"spatial_dims": 3, "reduction": "none"}),
    "volume, any": ("ssim_loss", VOLUME, {"spatial_dims": 3, "window_size": 5}),
    "volume, mask": (
        "ssim_loss",
        VOLUME,
        {"spatial_dims": 3, "mask": (_random(1, 1, 14, 15, 20) > 0.2).double()},
    ),
}
