"""Every padding, window, dimension, term, weight and type against the oracle in float64."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from tables import TOLERANCE, check_loss, oracle_loss, pictures, relative_error

import ssim_fused
from ssim_fused import _paths, reference

PATHS = {"fused": ssim_fused, "reference": reference}
BORDERS = ["reflect", "replicate", "circular"]
PADDINGS = ["same", "valid", *BORDERS]
REDUCTIONS = ["mean", "sum", "image", "channel", "none"]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
OWN = [0.1, 0.2, 0.4, 0.2, 0.1]

both_paths = pytest.mark.parametrize("path", PATHS)


# ---- paddings ----


@both_paths
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_paddings_and_reductions(path, padding, reduction, dtype):
    x, y = pictures((2, 3, 19, 26), dtype)
    check_loss(PATHS[path], x, y, padding=padding, reduction=reduction)


# (N, C, H, W), window size: one pixel, smaller than the window, as small as a border allows, odd,
# several tiles (1024 columns) and bands
SMALL_AND_LARGE = [
    ("replicate", (1, 1, 1, 1), 11),
    ("replicate", (2, 1, 3, 2), 11),
    ("reflect", (1, 2, 6, 7), 11),
    ("reflect", (1, 1, 2, 2), 3),
    ("circular", (1, 2, 5, 6), 11),
    ("circular", (1, 1, 1, 1), 3),
    ("reflect", (1, 1, 9, 1041), 7),
    ("replicate", (1, 1, 531, 9), 7),
    ("circular", (3, 1, 33, 17), 11),
]


@both_paths
@pytest.mark.parametrize(("padding", "shape", "size"), SMALL_AND_LARGE, ids=str)
def test_borders_of_small_and_large_images(path, padding, shape, size):
    for dtype in (torch.float32, torch.float64):
        x, y = pictures(shape, dtype)
        check_loss(PATHS[path], x, y, padding=padding, window_size=size, reduction="image")


@both_paths
@pytest.mark.parametrize("padding", BORDERS)
def test_a_border_is_that_of_torch(path, padding):
    """The image extended by torch, without padding, is the same."""
    x, y = pictures((1, 2, 14, 15), torch.float64)
    wide = [torch.nn.functional.pad(t, (5, 5, 5, 5), mode=padding) for t in (x, y)]
    one = PATHS[path].ssim_loss(x, y, padding=padding, reduction="none")
    other = PATHS[path].ssim_loss(*wide, padding="valid", reduction="none")
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-14)


# ---- windows ----

WINDOWS = {
    "3": {"window_size": 3, "sigma": 0.8},
    "5": {"window_size": 5, "sigma": 1.0},
    "13": {"window_size": 13, "sigma": 2.0},
    "33": {"window_size": 33, "sigma": 5.0},
    "two sizes": {"window_size": (5, 11)},
    "two sizes, the other way": {"window_size": (13, 3)},
    "two sigmas": {"sigma": (0.7, 2.5)},
    "sizes and sigmas": {"window_size": [7, 9], "sigma": [1.0, 3.0]},
    "one tap across": {"window_size": (1, 7)},
    "one tap down": {"window_size": (7, 1)},
    "uniform": {"window": "uniform", "window_size": 7},
    "uniform, two sizes": {"window": "uniform", "window_size": (3, 9)},
    "own": {"window": OWN},
    "own, two": {"window": [[0.25, 0.5, 0.25], OWN]},
    "own, of one pixel": {"window": [[1.0], OWN]},
    "11 and 1.5 as a user writes them": {"window_size": (11, 11), "sigma": (1.5, 1.5)},
    # the CPU kernel divides eleven taps by their middle one
    "nothing in the middle": {"window": (*[0.1] * 5, 0.0, *[0.1] * 5)},
    "next to nothing in the middle": {"window": (*[0.1] * 5, 1e-15, *[0.1] * 5)},
}


@both_paths
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("name", WINDOWS)
def test_windows(path, name, padding):
    for dtype, shape in ((torch.float32, (1, 2, 35, 41)), (torch.float64, (2, 1, 34, 33))):
        x, y = pictures(shape, dtype)
        for reduction in ("mean", "none"):
            check_loss(PATHS[path], x, y, padding=padding, reduction=reduction, **WINDOWS[name])


@pytest.mark.parametrize("name", ["nothing in the middle", "next to nothing in the middle"])
def test_windows_without_a_middle_in_half_precision(name):
    # as with every window that the kernel has no code of its own for, pixels become float32 first
    x, y = pictures((1, 2, 35, 41), torch.bfloat16)
    loss = ssim_fused.ssim_loss(x, y, **WINDOWS[name])
    in_float32 = ssim_fused.ssim_loss(x.float(), y.float(), **WINDOWS[name])
    assert torch.equal(loss, in_float32.to(loss.dtype))


def test_a_window_may_be_a_tensor():
    x, y = pictures((1, 1, 20, 21))
    as_list = ssim_fused.ssim_loss(x, y, window=OWN)
    assert torch.equal(ssim_fused.ssim_loss(x, y, window=torch.tensor(OWN).double()), as_list)
    assert torch.equal(ssim_fused.ssim_loss(x, y, window=tuple(OWN)), as_list)


# ---- dimensions ----

# shape, settings
OTHER_DIMENSIONS = {
    "signals": ((2, 3, 50), {"spatial_dims": 1}),
    "one signal": ((3, 50), {"spatial_dims": 1}),
    "a short signal": ((1, 1, 3), {"spatial_dims": 1}),
    "own window of signals": ((2, 1, 40), {"spatial_dims": 1, "window": OWN}),
    "uniform window of signals": (
        (2, 1, 40),
        {"spatial_dims": 1, "window": "uniform", "window_size": 7, "sample_covariance": True},
    ),
    "an image": ((3, 14, 17), {}),
    "an image, said so": ((3, 14, 17), {"spatial_dims": 2}),
    "volumes": ((2, 1, 12, 13, 14), {}),
    "a volume": ((2, 11, 12, 15), {"spatial_dims": 3}),
    "volumes of channels": ((1, 3, 11, 12, 13), {"spatial_dims": 3}),
    "flat volumes": ((1, 2, 5, 16, 17), {"window_size": (5, 7, 9), "sigma": (0.7, 1.0, 2.0)}),
    "one slice": ((1, 2, 1, 16, 17), {"window_size": (1, 7, 9)}),
    "uniform volumes": ((1, 1, 8, 9, 10), {"window": "uniform", "window_size": 7}),
    "own windows of volumes": ((1, 1, 8, 9, 10), {"window": [OWN, [0.3, 0.4, 0.3], [1.0]]}),
    "one tap along the depth": ((2, 2, 6, 16, 17), {"window_size": (1, 7, 9)}),
    "one tap but along the depth": ((2, 2, 6, 16, 17), {"window_size": (5, 1, 1)}),
    "one slice, all taps": ((1, 2, 1, 16, 17), {"window_size": (5, 7, 9), "sigma": 2.0}),
    "no spread": ((1, 1, 8, 9, 40), {"window_size": (3, 3, 33), "sigma": (1.0, 1.0, 6.0)}),
}


@both_paths
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("name", OTHER_DIMENSIONS)
def test_other_dimensions(path, name, padding):
    shape, settings = OTHER_DIMENSIONS[name]
    axes = settings.get("spatial_dims", 3 if len(shape) == 5 else 2)
    full = shape if len(shape) == axes + 2 else (1, *shape)
    narrow = min(full[2:]) < 4 and settings.get("window_size", (11,))[0] > 1
    if padding not in ("same", "replicate") and narrow:
        pytest.skip("the window does not fit: an error, see test_bad_input")
    for dtype in (torch.float32, torch.float64):
        x, y = (image.view(shape) for image in pictures(full, dtype))
        for reduction in REDUCTIONS if padding == "same" else ("mean", "none"):
            check_loss(PATHS[path], x, y, padding=padding, reduction=reduction, **settings)


@both_paths
@pytest.mark.parametrize("dtype", DTYPES[2:], ids=str)
def test_other_dimensions_in_half_precision(path, dtype):
    for shape in ((2, 2, 40), (1, 2, 9, 10, 11)):
        x, y = pictures(shape, dtype)
        for reduction in ("mean", "channel", "none"):
            settings = {"reduction": reduction, "window_size": 7, "spatial_dims": len(shape) - 2}
            check_loss(PATHS[path], x, y, **settings)


@both_paths
def test_signals_are_images_of_one_row(path):
    x, y = pictures((2, 3, 50), torch.float64)
    one = PATHS[path].ssim_loss(x, y, spatial_dims=1, reduction="none")
    rows = [t.unsqueeze(2) for t in (x, y)]
    other = PATHS[path].ssim_loss(*rows, window_size=(1, 11), reduction="none")
    torch.testing.assert_close(one, other.squeeze(2), rtol=1e-12, atol=1e-15)


# ---- terms, weights ----

TERMS = {
    "luminance": {"term": "luminance"},
    "contrast_structure": {"term": "contrast_structure"},
    "nonnegative": {"nonnegative_ssim": True},
    "sample_covariance": {"sample_covariance": True},
    "sample_covariance of 3": {"sample_covariance": True, "window": "uniform", "window_size": 3},
    "k1 and k2": {"k1": 0.05, "k2": 0.2},
    "data_range": {"data_range": 2.5},
}


@both_paths
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", TERMS)
def test_terms(path, name, reduction):
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for shape in ((2, 2, 17, 20), (1, 1, 5, 9, 8)):
            # dark and bright, and noise that makes SSIM negative here and there
            x, y = pictures(shape, torch.float64, noise=0.5)
            x, y = x.to(dtype), (0.7 * y).to(dtype)
            check_loss(PATHS[path], x, y, reduction=reduction, **TERMS[name])


@both_paths
def test_nonnegative_ssim_has_no_slope_where_ssim_is_negative(path):
    x = pictures((1, 1, 30, 30))[0]
    y = (1 - x).requires_grad_()
    assert PATHS[path].ssim(x, y, reduction="none").min() < 0
    ssim_map = PATHS[path].ssim(x, y, reduction="none", nonnegative_ssim=True)
    assert ssim_map.min() == 0
    negative = PATHS[path].ssim(x, y, reduction="none").detach() < 0
    (grad,) = torch.autograd.grad(ssim_map, y, negative.float())
    assert grad.count_nonzero() == 0


@both_paths
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("padding", PADDINGS)
def test_return_cs(path, padding, reduction):
    x, y = pictures((2, 2, 17, 20), torch.float64)
    settings = {"padding": padding, "reduction": reduction}
    value, cs = PATHS[path].ssim(x, y, return_cs=True, **settings)
    windows = x[..., 5:-5, 5:-5] if padding == "valid" else x
    ones = windows.numel() if reduction == "sum" else 1.0
    for found, term in ((value, "ssim"), (cs, "contrast_structure")):
        expected = ones - oracle_loss(x, y, term=term, **settings)
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)
    assert torch.equal(cs, PATHS[path].ssim(x, y, term="contrast_structure", **settings))


def test_ssim_is_the_product_of_its_terms():
    x, y = pictures((1, 2, 30, 31), torch.float64)
    whole, *factors = (
        ssim_fused.ssim(x, y, term=term, reduction="none")
        for term in ("ssim", "luminance", "contrast_structure")
    )
    torch.testing.assert_close(factors[0] * factors[1], whole, rtol=1e-12, atol=1e-14)


def test_dssim():
    x, y = pictures((2, 1, 20, 20))
    for settings in ({}, {"padding": "reflect", "reduction": "image"}, {"data_range": 2.0}):
        half = ssim_fused.ssim_loss(x, y, **settings) / 2
        assert torch.equal(ssim_fused.dssim(x, y, **settings), half)


def some_weight(shape, dtype=torch.float64, seed=4):
    weight = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.where(weight < 0.2, 0.0, weight).to(dtype)


# beside images (2, 3, 19, 26)
WEIGHT_PLANES = [(2, 3), (1, 3), (2, 1), (1, 1)]


@both_paths
@pytest.mark.parametrize("reduction", REDUCTIONS[:-1])
@pytest.mark.parametrize("planes", WEIGHT_PLANES)
def test_weights(path, planes, reduction):
    for dtype in DTYPES:
        x, y = pictures((2, 3, 19, 26), dtype)
        for padding in ("same", "valid", "reflect"):
            size = (9, 16) if padding == "valid" else (19, 26)
            settings = {"padding": padding, "reduction": reduction}
            weight = some_weight((*planes, *size), dtype)
            check_loss(PATHS[path], x, y, weight=weight, **settings)


@both_paths
def test_weights_of_other_dimensions(path):
    for shape, settings in (
        ((2, 3, 30), {"spatial_dims": 1}),
        ((3, 30), {"spatial_dims": 1, "reduction": "channel"}),
        ((3, 15, 16), {}),
        ((1, 2, 6, 7, 8), {"window_size": 5}),
        ((2, 6, 7, 8), {"window_size": 5, "spatial_dims": 3, "reduction": "channel"}),
    ):
        axes = settings.get("spatial_dims", 3 if len(shape) == 5 else 2)
        full = shape if len(shape) == axes + 2 else (1, *shape)
        x, y = (image.view(shape) for image in pictures(full, torch.float64))
        weight = some_weight((1, *shape[1:]) if len(shape) == axes + 1 else shape)
        check_loss(PATHS[path], x, y, weight=weight, **settings)


@both_paths
def test_a_weight_of_ones_is_none(path):
    x, y = pictures((2, 3, 19, 26), torch.float64)
    for reduction in REDUCTIONS[:-1]:
        weighted = PATHS[path].ssim_loss(x, y, weight=torch.ones_like(x), reduction=reduction)
        plain = PATHS[path].ssim_loss(x, y, reduction=reduction)
        torch.testing.assert_close(weighted, plain, rtol=1e-12, atol=0)


# ---- types and layouts ----


@both_paths
@pytest.mark.parametrize(("dtype", "span"), [(torch.uint8, 255), (torch.uint16, 65535)], ids=str)
def test_whole_numbers(path, dtype, span):
    for shape in ((2, 3, 19, 26), (1, 1, 9, 10, 11)):
        x, y = ((image.clamp(0, 1) * span).round() for image in pictures(shape, torch.float64))
        a, b = x.to(dtype), y.to(dtype)
        for padding in PADDINGS:
            for reduction in REDUCTIONS:
                settings = {"padding": padding, "reduction": reduction, "window_size": 7}
                found = PATHS[path].ssim_loss(a, b, **settings)
                true = oracle_loss(x, y, data_range=span, **settings)
                assert found.dtype == torch.float32
                tolerance = 2e-5 if reduction == "none" else 2e-6
                assert relative_error(found, true) <= tolerance
        half_range = PATHS[path].ssim_loss(a, b, data_range=span / 2)
        assert relative_error(half_range, oracle_loss(x, y, data_range=span / 2)) <= 2e-6
        weight = some_weight(shape, torch.float32)
        weighted = PATHS[path].ssim_loss(a, b, weight=weight)
        assert relative_error(weighted, oracle_loss(x, y, data_range=span, weight=weight)) <= 2e-6


def layouts(image):
    """The same pixels as users hold them."""
    yield "contiguous", image
    last = torch.channels_last if image.dim() == 4 else torch.channels_last_3d
    yield "channels last", image.contiguous(memory_format=last)
    yield "transposed", image.mT.contiguous().mT
    yield "every other", torch.stack((image, 7 - image), -1)[..., 0]
    yield (
        "reversed axes",
        image.permute(*reversed(range(image.dim())))
        .contiguous()
        .permute(*reversed(range(image.dim()))),
    )


SETTINGS_OF_LAYOUTS = {
    "reflect": {"padding": "reflect"},
    "circular": {"padding": "circular"},
    "uniform": {"window": "uniform", "window_size": 7, "padding": "valid"},
    "two sizes": {"window_size": 5, "sigma": 1.0},
    "map": {"reduction": "none", "padding": "replicate"},
    "weight": {"weight": some_weight((1, 1, 15, 22))},
    "mask": {"mask": some_weight((1, 1, 15, 22)) > 0},
}


@pytest.mark.parametrize("name", SETTINGS_OF_LAYOUTS)
@pytest.mark.parametrize("shape", [(2, 3, 15, 22), (2, 3, 9, 15, 22)], ids=str)
def test_layouts_give_bitwise_the_same(name, shape):
    settings = dict(SETTINGS_OF_LAYOUTS[name])
    for beside in {"mask", "weight"} & set(settings) if len(shape) == 5 else ():
        settings[beside] = settings[beside][:, :, None].expand(-1, -1, 9, -1, -1)
    for dtype in (torch.float32, torch.bfloat16):
        x, y = pictures(shape, dtype)
        results = {}
        for (layout, a), (_, b) in zip(layouts(x), layouts(y)):
            a = a.detach().requires_grad_()
            loss = ssim_fused.ssim_loss(a, b, **settings)
            results[layout] = loss.detach(), torch.autograd.grad(loss.sum(), a)[0]
        expected = results["contiguous"]
        for layout, found in results.items():
            assert torch.equal(found[0], expected[0]), layout
            assert torch.equal(found[1], expected[1]), layout


def test_expanded_images():
    x, y = pictures((1, 1, 20, 21), torch.float64)
    volume_x, volume_y = (t[:, :, None].expand(2, 2, 6, 20, 21) for t in (x, y))
    for a, b, settings in (
        (x.expand(3, 2, 20, 21), y.expand(3, 2, 20, 21), {"padding": "reflect"}),
        (x.expand(3, 2, 20, 21), y.expand(3, 2, 20, 21), {"mask": x > 0.3}),
        (volume_x, volume_y, {"window_size": 5}),
        (volume_x, volume_y, {"window_size": 5, "padding": "circular"}),
    ):
        check_loss(ssim_fused, a, b, **settings)


# ---- derivatives ----

DERIVATIVES = {
    **{padding: {"padding": padding} for padding in BORDERS},
    "reflect, two sizes": {"padding": "reflect", "window_size": (3, 5)},
    "uniform": {"window": "uniform"},
    "own": {"window": OWN},
    "luminance": {"term": "luminance"},
    "contrast_structure": {"term": "contrast_structure"},
    "nonnegative": {"nonnegative_ssim": True},
    "sample_covariance": {"sample_covariance": True},
    "weight": {"weight": some_weight((1, 1, 5, 6))},
    "mask": {"mask": some_weight((1, 1, 5, 6)), "mask_threshold": 0.3},
    "mask, circular": {"mask": some_weight((1, 1, 5, 6)) > 0, "padding": "circular"},
}


def tiny(shape=(2, 1, 5, 6)):
    return [image.requires_grad_() for image in pictures(shape, torch.float64)]


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("name", DERIVATIVES)
def test_gradcheck(name, reduction):
    settings = {"window_size": 5, "reduction": reduction, **DERIVATIVES[name]}
    if "weight" in settings and reduction == "none":
        settings["reduction"] = "channel"

    def loss(x, y):
        return ssim_fused.ssim_loss(x, y, **settings)

    assert torch.autograd.gradcheck(loss, tiny())
    assert torch.autograd.gradgradcheck(loss, tiny(), fast_mode=True)


FUNCTIONS = {
    "signals": ((2, 2, 7), lambda x, y: ssim_fused.ssim_loss(x, y, spatial_dims=1, window_size=5)),
    "volumes": ((1, 1, 3, 4, 3), lambda x, y: ssim_fused.ssim_loss(x, y, window_size=3)),
    "volumes, map": (
        (1, 1, 3, 4, 3),
        lambda x, y: ssim_fused.ssim_loss(x, y, window_size=3, padding="reflect", reduction="none"),
    ),
    "both terms": ((1, 2, 5, 4), lambda x, y: ssim_fused.ssim(x, y, return_cs=True)),
    "image_loss": (
        (1, 2, 5, 4),
        lambda x, y: ssim_fused.image_loss(x, y, ssim=0.3, mse=0.5, l1=0.2),
    ),
    "image_loss, valid": (
        (1, 1, 5, 4),
        lambda x, y: ssim_fused.image_loss(x, y, l1=0.2, padding="valid", window_size=3),
    ),
    "ms_ssim": (
        (1, 2, 7, 6),
        lambda x, y: ssim_fused.ms_ssim_loss(x, y, betas=[0.4, 0.6], window_size=3),
    ),
    "ms_ssim, edge": (
        (1, 1, 5, 5),
        lambda x, y: ssim_fused.ms_ssim_loss(
            x, y, betas=[0.4, 0.6], window_size=3, padding="reflect", pooling="edge"
        ),
    ),
    "ms_ssim, pad": (
        (1, 1, 5, 5),
        lambda x, y: ssim_fused.ms_ssim_loss(
            x, y, betas=[0.4, 0.6], window_size=3, pooling="pad", normalize="simple"
        ),
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradcheck_of_functions(name):
    shape, function = FUNCTIONS[name]
    assert torch.autograd.gradcheck(function, tiny(shape))
    assert torch.autograd.gradgradcheck(function, tiny(shape), fast_mode=True)


# ---- the same bits for every thread count, nearly so for every instruction set ----

native = pytest.mark.skipif(
    _paths.cpu_reason is not None, reason=f"no native library: {_paths.cpu_reason}"
)


def _ssim(**settings):
    return lambda x, y: ssim_fused.ssim_loss(x, y, **settings)


# name -> shape, function
STEPS = {
    "reflect": ((2, 3, 200, 300), _ssim(padding="reflect")),
    "circular, map": ((1, 2, 150, 300), _ssim(padding="circular", reduction="none")),
    "window of 33": ((1, 1, 300, 700), _ssim(window_size=33, sigma=5.0)),
    "uniform": ((2, 3, 200, 300), _ssim(window="uniform", window_size=7, padding="valid")),
    "two sizes": ((2, 3, 200, 300), _ssim(window_size=(5, 13), reduction="channel")),
    "contrast": ((2, 3, 200, 300), _ssim(term="contrast_structure")),
    "luminance": ((2, 3, 200, 300), _ssim(term="luminance", reduction="sum")),
    "nonnegative": ((2, 3, 200, 300), _ssim(nonnegative_ssim=True, reduction="image")),
    "weight": ((2, 3, 200, 300), _ssim(weight=some_weight((1, 3, 200, 300)))),
    "mask": ((2, 3, 200, 300), _ssim(mask=some_weight((2, 1, 200, 300)) > 0)),
    "signals": ((3, 5, 5000), _ssim(spatial_dims=1)),
    "volumes": ((2, 2, 20, 50, 60), _ssim()),
    "volumes, mask": ((1, 2, 20, 50, 60), _ssim(mask=some_weight((1, 1, 20, 50, 60)) > 0)),
    "image_loss": ((2, 3, 200, 300), lambda x, y: ssim_fused.image_loss(x, y, mse=0.5, l1=2.0)),
    "mask of weights": ((2, 3, 200, 300), _ssim(mask=some_weight((2, 1, 200, 300)))),
    "image_loss, reflect": (
        (2, 3, 200, 300),
        lambda x, y: ssim_fused.image_loss(x, y, mse=0.5, l1=2.0, padding="reflect"),
    ),
    "image_loss, mask": (
        (2, 3, 200, 300),
        lambda x, y: ssim_fused.image_loss(x, y, l1=2.0, mask=some_weight((1, 1, 200, 300))),
    ),
    "image_loss without SSIM": (
        (2, 3, 200, 300),
        lambda x, y: ssim_fused.image_loss(x, y, ssim=0.0, mse=1.0, l1=2.0),
    ),
    "image_loss of volumes": (
        (2, 2, 20, 50, 60),
        lambda x, y: ssim_fused.image_loss(x, y, mse=1.0, l1=2.0),
    ),
    "psnr": ((2, 3, 200, 300), ssim_fused.psnr),
    "ms_ssim": ((2, 3, 201, 300), lambda x, y: ssim_fused.ms_ssim_loss(x, y, pooling="pad")),
}


def step(name):
    """Value and both gradients of a row of STEPS."""
    shape, function = STEPS[name]
    x, y = (image.requires_grad_() for image in pictures(shape, torch.float32))
    loss = function(x, y)
    return loss.detach(), *torch.autograd.grad(loss.sum(), (x, y))


@native
@pytest.mark.parametrize("name", STEPS)
def test_thread_counts_give_bitwise_the_same(name):
    before = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(step(name))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


SCRIPT = """
import sys, torch
sys.path.insert(0, {tests!r})
from test_breadth import STEPS, step
assert torch.ops.ssim_fused.cpu_isa() == {isa!r}
torch.save({{name: step(name) for name in STEPS}}, {file!r})
"""


@native
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_instruction_sets_agree(isa, tmp_path):
    file = str(tmp_path / "results.pt")
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            SCRIPT.format(tests=os.path.dirname(__file__), isa=isa, file=file),
        ],
        env={**os.environ, "SSIM_FUSED_CPU_ISA": isa},
        capture_output=True,
        text=True,
    )
    if f"SSIM_FUSED_CPU_ISA is '{isa}'" in run.stderr:
        pytest.skip(f"this processor or build has no {isa}")
    assert run.returncode == 0, run.stderr
    for name, results in torch.load(file).items():
        value, *grads = step(name)
        # as for the promise to float64: a map and gradients keep a pixel's rounding
        tolerance = 2e-5 if value.dim() > 2 else 1e-6
        assert relative_error(results[0], value) <= tolerance, name
        for found, grad in zip(results[1:], grads):
            assert relative_error(found, grad) <= TOLERANCE[torch.float32][1], name
