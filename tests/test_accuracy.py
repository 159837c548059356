"""Accuracy of the float32 loss and gradient against float64, where the usual code loses digits."""

from __future__ import annotations

import math

import pytest
import torch
from tables import oracle_map, pictures, relative_error

import ssim_fused
from ssim_fused import reference
from ssim_fused._windows import gaussian_window, single_window

PATHS = {"fused": ssim_fused, "reference": reference}
SHAPE = (1, 3, 256, 320)


def noisy(picture, sigma, seed=1):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(picture.shape, generator=generator, dtype=torch.float64)
    return picture, picture + sigma * noise


def natural():
    return pictures(SHAPE, torch.float64)[0]


def grain(low, high):
    generator = torch.Generator().manual_seed(2)
    return low + (high - low) * torch.rand(SHAPE, generator=generator, dtype=torch.float64)


def highlight():
    x, y = noisy(natural(), 0.05)
    x = x.clone()
    x[..., SHAPE[2] // 2, SHAPE[3] // 2] = 1000
    return x, y, 1.0


def disc():
    """White in the centre of black."""
    y, x = torch.meshgrid(*map(torch.arange, SHAPE[2:]), indexing="ij")
    is_white = (y - SHAPE[2] // 2) ** 2 + (x - SHAPE[3] // 2) ** 2 < 100
    return noisy(is_white.double().expand(SHAPE), 1e-3)


def depth_with_a_mark_for_unknown():
    x, y = noisy(1 + 5 * natural(), 0.05)
    x = x.clone()
    for depth in (x, y):
        depth[..., 100:150, 130:190] = 1e4
    return x, y, 6.0


# name -> two pictures, data range
FAMILIES = {
    "natural, noise 0.05": lambda: (*noisy(natural(), 0.05), 1.0),
    "noise 1e-3": lambda: (*noisy(natural(), 1e-3), 1.0),
    "noise 1e-4": lambda: (*noisy(natural(), 1e-4), 1.0),
    "bright, flat": lambda: (*noisy(grain(0.98, 0.99), 1e-3), 1.0),
    "flat, noise 1e-4": lambda: (*noisy(grain(0.60, 0.61), 1e-4), 1.0),
    "0..255, noise 1e-4": lambda: (*noisy(255 * natural(), 255e-4), 255.0),
    "offset 1000": lambda: (*noisy(1000 + natural(), 0.05), 1.0),
    "a highlight in the centre": highlight,
    "a white disc on black": lambda: (*disc(), 1.0),
    "depth, unknown in the centre": depth_with_a_mark_for_unknown,
    "anti-correlated": lambda: (natural(), 1 - natural(), 1.0),
}


@pytest.fixture(
    scope="module",
    params=[(family, padding) for family in FAMILIES for padding in ("same", "valid")],
    ids="-".join,
)
def known(request):
    """Pictures in float32, how to compare them, and the true loss and gradient."""
    family, padding = request.param
    x, y, data_range = FAMILIES[family]()
    x, y = x.float().requires_grad_(), y.float()
    settings = dict(padding=padding, data_range=data_range)
    true_x = x.detach().double().requires_grad_()
    true = reference.ssim_loss(true_x, y.double(), **settings)
    (true_grad,) = torch.autograd.grad(true, true_x)
    # the oracle itself, by the textbook in float64, to the digits that its subtraction leaves
    textbook = 1 - oracle_map(true_x.detach(), y.double(), (11, 1.5), padding, data_range).mean()
    assert abs(true.item() - textbook.item()) < 1e-8
    return x, y, settings, true.detach(), true_grad


@pytest.mark.parametrize("path", PATHS)
def test_families(path, known):
    x, y, settings, true, true_grad = known
    loss = PATHS[path].ssim_loss(x, y, **settings)
    (grad,) = torch.autograd.grad(loss, x)
    assert relative_error(loss.detach(), true) < 2e-6
    assert relative_error(grad, true_grad) < 2e-5


@pytest.mark.parametrize("path", PATHS)
def test_flat_areas_far_from_the_pivot(path):
    """As docs/accuracy.md says of them."""
    x = torch.zeros(1, 1, 128, 160)
    x[..., 90:] = 1  # two of the three pixels are black
    y = x * (1 - torch.randint(2, x.shape, generator=torch.Generator().manual_seed(0)) / 255)
    x.requires_grad_()
    true_x = x.detach().double().requires_grad_()
    true = reference.ssim_loss(true_x, y.double())
    loss = PATHS[path].ssim_loss(x, y)
    assert relative_error(loss.detach(), true.detach()) < 7e-4
    grads = [torch.autograd.grad(*pair)[0] for pair in ((loss, x), (true, true_x))]
    assert relative_error(*grads) < 3e-4
    usual = 1 - oracle_map(x.detach(), y).mean()
    assert relative_error(usual, true.detach()) > 1e-2


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("offset", [0.0, 0.5, 1.0, 255.0, 1000.0])
def test_identical_is_zero_and_the_map_never_above_one(path, offset):
    x = (pictures((1, 2, 64, 80))[0] + offset).float()
    assert PATHS[path].ssim_loss(x, x.clone()).item() == 0.0
    for other in (torch.nextafter(x, x + 1), x + 1e-4, x * 0.999, 1 - x):
        loss = PATHS[path].ssim_loss(x, other, reduction="none")
        assert loss.min() >= 0
        assert PATHS[path].ssim(x, other, reduction="none").max() <= 1


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("value", [0.0, 1e-20, 0.5, 1.0])
def test_constant_pictures(path, value):
    x = torch.full((1, 1, 20, 20), value)
    assert PATHS[path].ssim_loss(x, x.clone()).item() == 0.0


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("scale", "k"), [(1.0, 1.5e-5), (1e8, 0.01)], ids=["small k", "far out"])
def test_gradients_where_products_of_denominators_leave_float32s_range(path, scale, k):
    x = scale * pictures((1, 1, 48, 64))[0]
    x[..., :32] = 0
    y = x.clone()
    y[..., 40:] += 0.1 * scale
    grads = []
    for module, image in ((PATHS[path], x), (reference, x.double())):
        image.requires_grad_()
        loss = module.ssim_loss(image, y.to(image.dtype), k1=k, k2=k)
        grads.append(torch.autograd.grad(loss, image)[0])
    assert relative_error(*grads) < 2e-5


def test_the_usual_form_would_fail():
    """The check can fail: the textbook form in float32 misses the bound that ours keeps."""
    x, y, _ = FAMILIES["noise 1e-4"]()
    x, y = x.float(), y.float()
    true = reference.ssim_loss(x.double(), y.double())
    assert relative_error(1 - oracle_map(x, y).mean(), true) > 1e-4


@pytest.mark.parametrize("window", ["gaussian", "uniform"])
@pytest.mark.parametrize(("size", "sigma"), [(3, 0.8), (7, 1.0), (7, 1.5), (11, 0.6), (33, 5.0)])
@pytest.mark.parametrize("module", [ssim_fused, reference])
def test_windows_sum_to_one_in_float32(module, size, sigma, window):
    """A sum of 1 + e makes variances wrong by e times the squared mean: dark and bright."""
    generator = torch.Generator().manual_seed(3)
    x, y = (0.05 + 0.02 * torch.rand(2, 1, 1, 96, 192, generator=generator)).unbind()
    for image in (x, y):
        image[..., 96:] += 0.9
    settings = dict(window=window, window_size=size, sigma=sigma, padding="valid")
    true = module.ssim(x.double(), y.double(), **settings).item()
    assert module.ssim(x, y, **settings).item() == pytest.approx(true, abs=2e-6)


@pytest.mark.parametrize(("size", "sigma"), [(3, 0.5), (5, 1.0), (9, 1.0), (11, 1.5), (33, 6.0)])
def test_taps_in_float32_sum_to_one(size, sigma):
    taps = single_window(gaussian_window(size, sigma))
    assert torch.tensor(taps).tolist() == list(taps)
    assert taps == taps[::-1]
    assert abs(math.fsum(taps) - 1) <= 1e-10
    torch.testing.assert_close(taps, gaussian_window(size, sigma), rtol=0, atol=6e-8)


@pytest.mark.parametrize("half", [(0.3, 0.2, 0.0), (1.1e-5, 0.3, 0.4)])
def test_what_rounding_takes_is_not_put_into_tiny_taps(half):
    window = half[:-1] + half[::-1]
    window = tuple(tap / math.fsum(window) for tap in window)
    taps = single_window(window)
    assert taps == taps[::-1]
    assert abs(math.fsum(taps) - 1) <= 3e-8
    torch.testing.assert_close(taps, window, rtol=1e-6, atol=0)


@pytest.mark.parametrize("path", PATHS)
def test_a_window_with_a_hole_does_not_see_what_lies_there(path):
    x, y = pictures((1, 1, 9, 9), torch.float64)
    y[..., 4, :] = 1000
    grads = []
    for dtype in (torch.float32, torch.float64):
        image = x.to(dtype).requires_grad_()
        ssim_map = PATHS[path].ssim(
            image, y.to(dtype), window=[0.3, 0.2, 0.0, 0.2, 0.3], reduction="none"
        )
        grads.append(torch.autograd.grad(ssim_map[..., 4, 4], image)[0])
    assert relative_error(*grads) < 1e-5


@pytest.mark.parametrize("window_size", [(1, 3), 3, 11])
def test_a_masked_mean_of_few_pixels(window_size):
    """As docs/accuracy.md promises it."""
    settings = {"window_size": window_size, "mask_threshold": 0.9}
    for seed in range(40):
        x, y = pictures((1, 1, 24, 28), seed=seed, noise=(0.1, 0.01, 0.001)[seed % 3])
        mask = (
            torch.rand(1, 1, 24, 28, generator=torch.Generator().manual_seed(seed)) > 0.1
        ).float()
        true = reference.ssim_loss(*(t.double() for t in (x, y)), mask=mask.double(), **settings)
        found = ssim_fused.ssim_loss(x, y, mask=mask, **settings)
        assert relative_error(found, true) < 3e-5
