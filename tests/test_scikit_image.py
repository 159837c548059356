"""scikit-image's structural_similarity in each of its modes.

It takes its mean over windows inside the image: padding "valid" here.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tables import natural, pictures, relative_error

import ssim_fused
from ssim_fused import reference

metrics = pytest.importorskip("skimage.metrics")
both_paths = pytest.mark.parametrize("path", ["fused", "reference"])
PATHS = {"fused": ssim_fused, "reference": reference}

UNIFORM = {"window": "uniform", "window_size": 7, "sample_covariance": True}
GAUSSIAN = {"window_size": 11, "sigma": 1.5}

# theirs, ours
MODES = {
    "default": ({}, UNIFORM),
    "win_size 3": ({"win_size": 3}, {**UNIFORM, "window_size": 3}),
    "win_size 11": ({"win_size": 11}, {**UNIFORM, "window_size": 11}),
    "population": ({"use_sample_covariance": False}, {**UNIFORM, "sample_covariance": False}),
    "Gaussian, sample": ({"gaussian_weights": True}, {**GAUSSIAN, "sample_covariance": True}),
    "Wang 2004": ({"gaussian_weights": True, "use_sample_covariance": False}, GAUSSIAN),
    "sigma": (
        {"gaussian_weights": True, "use_sample_covariance": False, "sigma": 2.0},
        {"window_size": 15, "sigma": 2.0},
    ),
    "K1 and K2": ({"K1": 0.05, "K2": 0.1}, {**UNIFORM, "k1": 0.05, "k2": 0.1}),
}


def images(kind):
    """Their arrays, their axes, and our tensors."""
    if kind == "gray":
        x, y = natural(96, 1)
        return x[0, 0].numpy(), y[0, 0].numpy(), {}, x, y
    if kind == "colour":
        x, y = natural(96)
        last = [t[0].permute(1, 2, 0).numpy() for t in (x, y)]
        return *last, {"channel_axis": -1}, x, y
    if kind == "volume":
        x, y = pictures((1, 1, 17, 18, 19), torch.float64)
        return x[0, 0].numpy(), y[0, 0].numpy(), {}, x, y
    x, y = pictures((1, 1, 60), torch.float64)
    return x[0, 0].numpy(), y[0, 0].numpy(), {}, x, y


@both_paths
@pytest.mark.parametrize("kind", ["gray", "colour", "volume", "signal"])
@pytest.mark.parametrize("mode", MODES)
def test_modes(path, mode, kind):
    theirs, ours = MODES[mode]
    a, b, axes, x, y = images(kind)
    dims = x.dim() - 2
    for span in (1.0, 2.5):
        value, whole = metrics.structural_similarity(
            a, b, data_range=span, full=True, **axes, **theirs
        )
        settings = {"padding": "valid", "data_range": span, "spatial_dims": dims, **ours}
        found = PATHS[path].ssim(x, y, **settings)
        assert abs(found.item() - value) < 1e-9
        edge = settings["window_size"] // 2
        whole = np.moveaxis(whole, -1, 0) if axes else whole[None]
        inside = torch.from_numpy(whole[(..., *(slice(edge, -edge),) * dims)].copy())
        ssim_map = PATHS[path].ssim(x, y, reduction="none", **settings)
        torch.testing.assert_close(ssim_map[0], inside, rtol=0, atol=1e-9)


@both_paths
def test_whole_numbers(path):
    x, y = ((255 * image).round() for image in natural(96, 1))
    a, b = (image[0, 0].numpy().astype(np.uint8) for image in (x, y))
    value = metrics.structural_similarity(a, b)  # data_range from the type, float64 arithmetic
    found = PATHS[path].ssim(x.byte(), y.byte(), padding="valid", **UNIFORM)
    assert abs(found.item() - value) < 2e-6


@both_paths
def test_gradient(path):
    a, b, _, x, y = images("gray")
    y.requires_grad_()
    # theirs is that to the second image, and leaves the sample covariance's factor out
    for theirs, ours in (MODES["population"], MODES["Wang 2004"]):
        _, expected = metrics.structural_similarity(a, b, data_range=1.0, gradient=True, **theirs)
        (grad,) = torch.autograd.grad(PATHS[path].ssim(x, y, padding="valid", **ours), y)
        # it is of a mean over all windows, those beyond the edge reflected: equal inside
        size = ours["window_size"] - 1
        inside = (slice(size, -size),) * 2
        share = (96 - size) ** 2 / 96**2
        error = relative_error(share * grad[0, 0][inside], torch.from_numpy(expected)[inside])
        assert error < 1e-8
