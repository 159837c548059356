"""Bad input is explained before any kernel runs; no direct call of an operator reads outside."""

from __future__ import annotations

import inspect
import re
import warnings

import numpy as np
import pytest
import torch
from tables import pictures

import ssim_fused
from ssim_fused import _paths, reference
from ssim_fused._request import MEAN, PLANE, SUM

X = torch.rand(2, 3, 16, 20)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch: nested tensors are a prototype
    NESTED = torch.nested.nested_tensor([X[0], X[1, :, :9]])

# two images, settings, error, words that the message must hold
CASES = {
    "shapes": (X, X[..., :-1], {}, ValueError, ["(2, 3, 16, 20)", "(2, 3, 16, 19)"]),
    "broadcastable": (X, X[:1], {}, ValueError, ["(2, 3, 16, 20)", "(1, 3, 16, 20)"]),
    "dtypes": (X, X.double(), {}, TypeError, ["float32", "float64"]),
    "devices": (X, X.to("meta"), {}, ValueError, ["cpu", "meta"]),
    "integer": (X.int(), X.int(), {}, TypeError, ["int32"]),
    "signed bytes": (X.char(), X.char(), {}, TypeError, ["int8"]),
    "complex": (X.cfloat(), X.cfloat(), {}, TypeError, ["complex64"]),
    "bool": (X > 0.5, X > 0.5, {}, TypeError, ["bool"]),
    "sparse": (X.to_sparse(), X.to_sparse(), {}, TypeError, ["sparse"]),
    "nested": (NESTED, NESTED, {}, TypeError, ["input", "dense", "a nested tensor"]),
    "nested target": (X, NESTED, {}, TypeError, ["target", "a nested tensor"]),
    "not a tensor": (X.numpy(), X, {}, TypeError, ["ndarray"]),
    "None": (X, None, {}, TypeError, ["NoneType"]),
    "rank 2": (X[0, 0], X[0, 0], {}, ValueError, ["(16, 20)"]),
    "rank 6": (X[None, None], X[None, None], {}, ValueError, ["(1, 1, 2, 3, 16, 20)"]),
    "rank of signals": (X, X, {"spatial_dims": 1}, ValueError, ["(N, C, L)", "(2, 3, 16, 20)"]),
    "rank of volumes": (X[0], X[0], {"spatial_dims": 3}, ValueError, ["D", "(3, 16, 20)"]),
    "spatial_dims": (X, X, {"spatial_dims": 4}, ValueError, ["spatial_dims", "4"]),
    "bool spatial_dims": (X[0, 0], X[0, 0], {"spatial_dims": True}, TypeError, ["bool"]),
    "float spatial_dims": (X, X, {"spatial_dims": 2.0}, TypeError, ["spatial_dims", "float"]),
    "rank 0": (torch.tensor(1.0), torch.tensor(1.0), {}, ValueError, ["()"]),
    "empty batch": (X[:0], X[:0], {}, ValueError, ["(0, 3, 16, 20)"]),
    "empty rows": (X[:, :, :0], X[:, :, :0], {}, ValueError, ["(2, 3, 0, 20)"]),
    "even window": (X, X, {"window_size": 10}, ValueError, ["window_size", "10"]),
    "no window": (X, X, {"window_size": 0}, ValueError, ["window_size", "0"]),
    "negative window": (X, X, {"window_size": -3}, ValueError, ["-3"]),
    "float window": (X, X, {"window_size": 11.0}, TypeError, ["window_size", "float"]),
    "bool window": (X, X, {"window_size": True}, TypeError, ["bool"]),
    "window too large": (
        X,
        X,
        {"window_size": 17, "padding": "valid"},
        ValueError,
        ["17", "16 x 20"],
    ),
    "window for three axes": (
        X,
        X,
        {"window_size": (3, 5, 7)},
        ValueError,
        ["3 axes", "images of 2"],
    ),
    "windows and sigmas": (
        X,
        X,
        {"window_size": (3, 5), "sigma": (1.0, 1.0, 1.0)},
        ValueError,
        ["(3, 5)", "(1.0, 1.0, 1.0)"],
    ),
    "even axis": (X, X, {"window_size": (3, 4)}, ValueError, ["window_size", "4"]),
    "huge window": (X, X, {"window_size": 2**20 + 1}, ValueError, ["1048575", "1048577"]),
    "huge window of yours": (
        X,
        X,
        {"window": np.full(2**20 + 1, 1 / (2**20 + 1))},
        ValueError,
        ["window", "1048575", "1048577"],
    ),
    "no axes": (X, X, {"window_size": ()}, ValueError, ["window_size", "()"]),
    "window name": (X, X, {"window": "box"}, ValueError, ["'box'", "'uniform'"]),
    "window type": (X, X, {"window": 3.0}, TypeError, ["window", "float"]),
    "window sum": (X, X, {"window": [1.0, 2.0, 1.0]}, ValueError, ["sum to 1", "4"]),
    "window even": (X, X, {"window": [0.5, 0.5]}, ValueError, ["odd", "2"]),
    "window lopsided": (X, X, {"window": [0.5, 0.3, 0.2]}, ValueError, ["symmetric", "0.5"]),
    "window negative": (
        X,
        X,
        {"window": [-0.25, 1.5, -0.25]},
        ValueError,
        ["window must have taps of at least 0, got -0.25"],
    ),
    "window nan": (X, X, {"window": [float("nan")]}, ValueError, ["nan"]),
    "window text": (X, X, {"window": ["1"]}, TypeError, ["str"]),
    "reflect too far": (
        X,
        X,
        {"window_size": 33, "padding": "reflect"},
        ValueError,
        ["'reflect'", "17 x 17", "16 x 20"],
    ),
    "circle too far": (
        X,
        X,
        {"window_size": 35, "padding": "circular"},
        ValueError,
        ["'circular'", "17 x 17", "16 x 20"],
    ),
    "term": (X, X, {"term": "cs"}, ValueError, ["term", "'cs'", "'contrast_structure'"]),
    "term and clamp": (
        X,
        X,
        {"term": "luminance", "nonnegative_ssim": True},
        ValueError,
        ["nonnegative_ssim", "'luminance'"],
    ),
    "clamp": (X, X, {"nonnegative_ssim": 1}, TypeError, ["nonnegative_ssim", "int"]),
    "sample of one": (
        X,
        X,
        {"window_size": 1, "sample_covariance": True},
        ValueError,
        ["sample_covariance"],
    ),
    "mask type": (X, X, {"mask": "all"}, TypeError, ["mask", "str"]),
    "mask of whole numbers": (X, X, {"mask": X.long()}, TypeError, ["mask", "int64"]),
    "mask shape": (X, X, {"mask": X[:, :2] > 0}, ValueError, ["mask", "(2, 2, 16, 20)"]),
    "mask rank": (
        X,
        X,
        {"mask": X[0, 0] > 0},
        ValueError,
        ["(2 or 1, 3 or 1, 16, 20)", "(16, 20)"],
    ),
    "mask rank of one image": (
        X[0],
        X[0],
        {"mask": X[0, 0] > 0},
        ValueError,
        ["mask must be (1, 3 or 1, 16, 20)", "without the first axis", "got shape (16, 20)"],
    ),
    "nested mask": (X, X, {"mask": NESTED}, TypeError, ["mask", "a nested tensor"]),
    "sparse weight": (X, X, {"weight": X.to_sparse()}, TypeError, ["weight", "sparse"]),
    "mask of three axes": (X, X, {"mask": X[0] > 0}, ValueError, ["mask", str(tuple(X[0].shape))]),
    "mask range": (X, X, {"mask": X + 1}, ValueError, ["mask", "[0, 1]"]),
    "mask nan": (X, X, {"mask": X * float("nan")}, ValueError, ["mask", "[0, 1]"]),
    "mask device": (X, X, {"mask": X.to("meta")}, ValueError, ["mask", "meta"]),
    "mask gradient": (
        X,
        X,
        {"mask": torch.ones_like(X).requires_grad_()},
        ValueError,
        ["mask", "gradient"],
    ),
    "range gradient": (
        X,
        X,
        {"data_range": torch.tensor(1.0, requires_grad=True)},
        ValueError,
        ["data_range", "gradient"],
    ),
    "window gradient": (
        X,
        X,
        {"window": torch.full((5,), 0.2, requires_grad=True)},
        ValueError,
        ["window", "gradient"],
    ),
    "window tap gradient": (
        X,
        X,
        {"window": [0.25, torch.tensor(0.5, requires_grad=True), 0.25]},
        ValueError,
        ["window", "gradient"],
    ),
    "empty mask": (
        X,
        X,
        {"mask": torch.tensor([1.0, 0.0]).view(2, 1, 1, 1).expand(2, 1, 16, 20)},
        ValueError,
        ["mask", "images [1]", "0.5"],
    ),
    "mask threshold": (
        X,
        X,
        {"mask": X > 0, "mask_threshold": 1.0},
        ValueError,
        ["mask_threshold", "1.0"],
    ),
    "weight shape": (X, X, {"weight": X[..., 1:]}, ValueError, ["weight", "(2, 3, 16, 19)"]),
    "weight negative": (X, X, {"weight": X - 1}, ValueError, ["weight", "negative"]),
    "weight zero": (X, X, {"weight": X * 0}, ValueError, ["weight", "images [0, 1]"]),
    "weight of a map": (X, X, {"weight": X, "reduction": "none"}, ValueError, ["'none'"]),
    "sigma 0": (X, X, {"sigma": 0.0}, ValueError, ["sigma", "0.0"]),
    "sigma negative": (X, X, {"sigma": -1.5}, ValueError, ["-1.5"]),
    "sigma nan": (X, X, {"sigma": float("nan")}, ValueError, ["nan"]),
    "sigma text": (X, X, {"sigma": "1.5"}, TypeError, ["sigma", "str"]),
    "range 0": (X, X, {"data_range": 0}, ValueError, ["data_range", "0"]),
    "range infinite": (X, X, {"data_range": float("inf")}, ValueError, ["inf"]),
    "range too small": (X, X, {"data_range": 1e-39}, ValueError, ["float32", "1e-39"]),
    "range too large": (X, X, {"data_range": 1e38}, ValueError, ["reciprocal", "1e+38"]),
    "range of doubles": (
        X.double(),
        X.double(),
        {"data_range": 1e-309},
        ValueError,
        ["float64", "1e-309"],
    ),
    "range of one axis": (
        X,
        X,
        {"data_range": torch.tensor([255.0])},
        TypeError,
        ["data_range must be a number without axes, got (255.0,)"],
    ),
    "k1": (X, X, {"k1": -0.01}, ValueError, ["k1 must be finite and at least 0, got -0.01"]),
    "k2": (X, X, {"k2": float("nan")}, ValueError, ["k2"]),
    "padding": (X, X, {"padding": "full"}, ValueError, ["padding", "'full'", "'same'"]),
    "reduction": (X, X, {"reduction": "avg"}, ValueError, ["reduction", "'avg'", "'mean'"]),
}


@pytest.mark.parametrize(
    "function", [ssim_fused.ssim, ssim_fused.ssim_loss, reference.ssim, reference.ssim_loss]
)
@pytest.mark.parametrize("name", CASES)
def test_errors_name_what_was_received(function, name):
    x, y, settings, error, words = CASES[name]
    with pytest.raises(error) as caught:
        function(x, y, **settings)
    for word in words:
        assert word in str(caught.value)


def test_ranges_of_any_size():
    """Far beyond those of pictures, as far as float32 goes, and float64."""
    x, y = X.double(), X.flip(-1).double()
    true = ssim_fused.ssim_loss(x, y).item()
    for dtype, ranges in ((torch.float32, (3e-38, 8e37)), (torch.float64, (1e-307, 4e307))):
        for data_range in ranges:
            pair = [(image * data_range).to(dtype) for image in (x, y)]
            for function in (ssim_fused.ssim_loss, reference.ssim_loss):
                found = function(*pair, data_range=data_range)
                assert found.item() == pytest.approx(true, rel=1e-5)


@pytest.mark.parametrize("data_range", [1e-20, 1e20, 1e-160, 1e160])
def test_the_square_of_a_range_of_psnr(data_range):
    if 1e-100 < data_range < 1e100:
        ssim_fused.psnr(X.double(), X.flip(-1).double(), data_range=data_range)
    _, terms = ssim_fused.image_loss(X, X, mse=1, return_terms=True)
    for psnr in (lambda **named: ssim_fused.psnr(X, X, **named), terms.psnr):
        message = f"data_range has no square in torch.float32, got {data_range}"
        with pytest.raises(ValueError, match=re.escape(message)):
            psnr(data_range=data_range)


@pytest.mark.parametrize("sigma", [1e-160, 5e-324])
def test_the_smallest_sigma_is_a_window_of_one_pixel(sigma):
    expected = ssim_fused.ssim_loss(X, X.flip(-1), window_size=1)
    found = ssim_fused.ssim_loss(X, X.flip(-1), sigma=sigma)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_modules_check_at_construction():
    for module in (
        ssim_fused.SSIMLoss,
        ssim_fused.MSSSIMLoss,
        ssim_fused.PhotometricLoss,
        ssim_fused.CVAELoss,
    ):
        with pytest.raises(ValueError, match=r"^kernel_size must be odd"):
            module(kernel_size=4)
    with pytest.raises(ValueError, match=r"^kernel_size and sigma differ"):
        ssim_fused.SSIMLoss((3, 5), (1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="sigma"):
        ssim_fused.CVAELoss(sigma=-1)
    with pytest.raises(TypeError, match="alpha"):
        ssim_fused.CVAELoss(alpha="1")
    with pytest.raises(ValueError, match="beta"):
        ssim_fused.CVAELoss(beta=float("inf"))


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: ssim_fused.SSIMLoss(window_size=7), TypeError, "SSIMLoss.*'window_size'"),
        (lambda: ssim_fused.SSIMLoss(data_rnage=1), TypeError, "'data_rnage'.* data_range"),
        (lambda: ssim_fused.SSIMLoss(mask=X > 0), TypeError, "SSIMLoss has no argument 'mask'"),
        (lambda: ssim_fused.SSIMLoss(mask_threshold="a"), TypeError, "mask_threshold.* str"),
        (lambda: ssim_fused.SSIMLoss(mask_threshold=1), ValueError, r"\[0, 1\), got 1"),
        (lambda: ssim_fused.PhotometricLoss(reduction="image"), TypeError, "Phot.*'reduction'"),
        (lambda: ssim_fused.PhotometricLoss(term="ssim"), TypeError, "'term'"),
        (lambda: ssim_fused.MSSSIMLoss(term="ssim"), TypeError, "MSSSIMLoss.*'term'"),
        (lambda: ssim_fused.SSIMLoss()(X, X, X > 0), TypeError, "as_loss must be a bool.*Tensor"),
    ],
)
def test_what_a_module_does_not_take_is_named(make, error, words):
    with pytest.raises(error, match=words):
        make()


@pytest.mark.parametrize(
    ("make", "name", "images"),
    [(ssim_fused.CVAELoss, "alpha", 4), (ssim_fused.PhotometricLoss, "lambda_dssim", 2)],
)
def test_a_weight_that_is_set_later_has_its_name(make, name, images):
    module = make()
    setattr(module, name, torch.tensor(0.2))
    with pytest.raises(TypeError, match=f"^{name} must be a number, got Tensor"):
        module(*[X] * images)


@pytest.mark.parametrize(
    ("scalars", "plain"),
    [
        ({"data_range": np.float32(1)}, {"data_range": 1.0}),
        ({"data_range": np.int64(2)}, {"data_range": 2.0}),
        ({"window_size": np.int64(7)}, {"window_size": 7}),
        ({"window_size": (np.int32(7), 5)}, {"window_size": (7, 5)}),
        ({"k1": np.float64(0.02)}, {"k1": 0.02}),
        ({"window": np.array([0.25, 0.5, 0.25])}, {"window": [0.25, 0.5, 0.25]}),
        ({"window": [np.float32(0.25), 0.5, 0.25]}, {"window": [0.25, 0.5, 0.25]}),
    ],
    ids=str,
)
def test_scalars_and_arrays_of_numpy(scalars, plain):
    expected = ssim_fused.ssim_loss(X, X.flip(-1), **plain)
    assert torch.equal(ssim_fused.ssim_loss(X, X.flip(-1), **scalars), expected)
    names = {"window_size": "kernel_size"}
    module = ssim_fused.SSIMLoss(**{names.get(name, name): scalars[name] for name in scalars})
    assert torch.equal(module(X, X.flip(-1)), expected)


@pytest.mark.parametrize("data_range", [torch.tensor(2.0), np.array(2.0), np.float32(2)], ids=type)
def test_a_data_range_of_psnr_is_what_the_losses_take(data_range):
    y = X.flip(-1)
    expected = ssim_fused.psnr(X, y, data_range=2.0)
    assert torch.equal(ssim_fused.psnr(X, y, data_range=data_range), expected)
    _, terms = ssim_fused.image_loss(X, y, mse=1, return_terms=True)
    assert torch.equal(terms.psnr(data_range), terms.psnr(2.0))
    for psnr in (lambda **named: ssim_fused.psnr(X, y, **named), terms.psnr):
        with pytest.raises(TypeError, match=r"data_range must be .* without axes, got \(2.0,\)"):
            psnr(data_range=torch.tensor([2.0]))
        with pytest.raises(ValueError, match="data_range must not require a gradient"):
            psnr(data_range=torch.tensor(2.0, requires_grad=True))


@pytest.mark.parametrize("name", ["window_size", "data_range", "sigma", "k1"])
def test_a_bool_of_numpy_is_no_number(name):
    with pytest.raises(TypeError, match=f"{name}.* bool"):
        ssim_fused.ssim_loss(X, X, **{name: np.bool_(True)})


def test_a_module_takes_every_setting_of_its_function():
    beside = [
        "input",
        "target",
        "mask",
        "weight",
        "window_size",
        "return_terms",
        "ssim",
        "mse",
        "l1",
    ]
    for module, function in (
        (ssim_fused.SSIMLoss, ssim_fused.ssim_loss),
        (ssim_fused.PhotometricLoss, ssim_fused.image_loss),
    ):
        settings = inspect.signature(function).parameters.values()
        module(**{s.name: s.default for s in settings if s.name not in beside})


def test_modules_refuse_other_channel_counts():
    with pytest.raises(ValueError, match=r"\(2, 3, 16, 20\) and \(2, 4, 16, 20\)"):
        ssim_fused.SSIMLoss()(X, torch.rand(2, 4, 16, 20))
    with pytest.raises(ValueError, match=r"\(2, 3, 16, 20\) and \(2, 1, 16, 20\)"):
        ssim_fused.CVAELoss()(X, X[:, :1], torch.zeros(2, 4), torch.zeros(2, 4))


@pytest.mark.parametrize("module", [ssim_fused.SSIMLoss, ssim_fused.PhotometricLoss])
def test_modules_name_nested_images(module):
    for pair in ((NESTED, NESTED), (NESTED, X), (X[:, :1], NESTED)):
        with pytest.raises(TypeError, match=r"(input|target) must be .*, got a nested tensor"):
            module()(*pair)


def test_images_of_a_vae_have_its_names():
    loss, latent = ssim_fused.CVAELoss(), torch.zeros(2, 4)
    for pair, words in (
        ((NESTED, X), "recon_x must be .*, got a nested tensor"),
        ((X, NESTED), "raw_x must be .*, got a nested tensor"),
        ((X, None), r"raw_x must be a torch\.Tensor, got NoneType"),
        ((X.int(), X.int()), "recon_x must be float16.*, got torch.int32"),
    ):
        with pytest.raises(TypeError, match=words):
            loss(*pair, latent, latent)


def test_latent_errors():
    loss = ssim_fused.CVAELoss()
    with pytest.raises(ValueError, match=r"\(2, 4\) and \(2, 5\)"):
        loss(X, X, torch.zeros(2, 4), torch.zeros(2, 5))
    with pytest.raises(TypeError, match=r"mu must be a torch\.Tensor"):
        loss(X, X, None, torch.zeros(2, 4))
    with pytest.raises(TypeError, match="int64"):
        loss(X, X, torch.zeros(2, 4, dtype=torch.int64), torch.zeros(2, 4))


# ---- direct calls of the operators ----

native = pytest.mark.skipif(
    _paths.cpu_reason is not None, reason=f"no native library: {_paths.cpu_reason}"
)
WINDOW = (0.25, 0.5, 0.25)
HOSTILE = {
    "shapes": (X, X[..., :5], WINDOW, 1.0),
    "rank": (X[0], X[0], WINDOW, 1.0),
    "dtypes": (X, X.double(), WINDOW, 1.0),
    "integer": (X.int(), X.int(), WINDOW, 1.0),
    "empty": (X[:0], X[:0], WINDOW, 1.0),
    "even window": (X, X, WINDOW[:2], 1.0),
    "no window": (X, X, (), 1.0),
    "lopsided window": (X, X, (0.5, 0.3, 0.2), 1.0),
    "range": (X, X, WINDOW, 0.0),
    "range nan": (X, X, WINDOW, float("nan")),
}


def settings(window, data_range=1.0):
    return (window, (len(window),), data_range, 0.01, 0.03, False, 0)


@native
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_operator_calls_raise(name):
    x, y, window, data_range = HOSTILE[name]
    arguments = settings(window, data_range)
    ones = torch.ones(2, 3, 16, 20)
    with pytest.raises(RuntimeError, match="ssim_fused"):
        torch.ops.ssim_fused.loss(x, y, None, None, None, *arguments, MEAN, ())
    with pytest.raises(RuntimeError, match="ssim_fused"):
        torch.ops.ssim_fused.loss_and_gradients(
            x, y, None, None, None, *arguments, MEAN, (), True, True
        )
    with pytest.raises(RuntimeError, match="ssim_fused"):
        torch.ops.ssim_fused.loss_map(x, y, None, None, *arguments)
    with pytest.raises(RuntimeError, match="ssim_fused"):
        torch.ops.ssim_fused.loss_backward(ones, x, y, None, None, *arguments, True, True)
    with pytest.raises(RuntimeError, match="ssim_fused"):
        torch.ops.ssim_fused.loss_and_pool(x, y, (0, 0), *arguments, True, True)


def hostile_loss(
    weight=None,
    mask=None,
    coverage=None,
    window=WINDOW,
    taps=(3,),
    valid=False,
    kind=0,
    reduction=MEAN,
    term_weights=(),
    grads=(False, False),
    image=X,
):
    beside = (weight, mask, coverage)
    rest = (window, taps, 1.0, 0.01, 0.03, valid, kind, reduction, term_weights)
    if any(grads):
        return torch.ops.ssim_fused.loss_and_gradients(image, image, *beside, *rest, *grads)
    return torch.ops.ssim_fused.loss(image, image, *beside, *rest)


ONES = torch.ones(2, 3, 16, 20)
HOSTILE_BESIDE = {
    "reduction": ({"reduction": 3}, "reduction"),
    "planes with a gradient": ({"reduction": PLANE, "grads": (True, False)}, "loss_backward"),
    "window too large": ({"window": (1 / 21,) * 21, "taps": (21,), "valid": True}, "larger"),
    "taps of another window": ({"taps": (5,)}, "length"),
    "taps beyond the window": ({"taps": (3, 3)}, "length"),
    "taps below 1": ({"taps": (-3,)}, "odd"),
    "taps of three axes": ({"window": WINDOW * 3, "taps": (3, 3, 3)}, "each axis"),
    "kind": ({"kind": -1}, "kind"),
    "mask alone": ({"mask": ONES}, "coverage"),
    "mask of another size": ({"mask": ONES[..., :9], "coverage": ONES}, "mask"),
    "coverage of another size": ({"mask": ONES, "coverage": ONES[:1]}, "coverage"),
    "mask of another type": ({"mask": ONES.double(), "coverage": ONES}, "mask"),
    "weight of another size": ({"weight": ONES[0]}, "window_weight"),
    "weight of another type": ({"weight": ONES.half()}, "window_weight"),
    "two terms": ({"term_weights": (1.0, 1.0)}, "term_weights"),
    "terms of a sum": ({"term_weights": (1.0, 1.0, 0.0), "reduction": SUM}, "other terms"),
    "terms under a mask": (
        {"term_weights": (1.0, 1.0, 0.0), "mask": ONES, "coverage": ONES},
        "other terms",
    ),
    "gradient of whole numbers": ({"image": X.byte(), "grads": (True, True)}, "whole numbers"),
    "half-precision volume": (
        {"image": X.half()[:, :, None].expand(2, 3, 4, 16, 20)},
        "float32 or float64",
    ),
}


@native
@pytest.mark.parametrize("name", HOSTILE_BESIDE)
def test_hostile_arguments_beside_the_images(name):
    arguments, message = HOSTILE_BESIDE[name]
    hostile_loss()  # the others are right
    with pytest.raises(RuntimeError, match=message):
        hostile_loss(**arguments)


@native
def test_hostile_gradients_of_maps():
    arguments = settings(WINDOW)
    for grad_map in (ONES[..., :19], ONES[..., 0], ONES.double()):
        with pytest.raises(RuntimeError, match="grad_map"):
            torch.ops.ssim_fused.loss_backward(grad_map, X, X, None, None, *arguments, True, False)


HALF, FACTOR = torch.ones(2, 3, 8, 10), torch.ones(2, 3)
HOSTILE_POOLED = {
    "grad of another rank": ((ONES[0], FACTOR, HALF, (0, 0)), "grad must"),
    "grad of a half type": ((ONES.half(), FACTOR, HALF, (0, 0)), "grad must"),
    "factor of another size": ((ONES, FACTOR[0], HALF, (0, 0)), "factor"),
    "factor of another type": ((ONES, FACTOR.double(), HALF, (0, 0)), "factor"),
    "half of another size": ((ONES, FACTOR, HALF[..., :9], (0, 0)), "grad_pooled"),
    "half of another type": ((ONES, FACTOR, HALF.double(), (0, 0)), "grad_pooled"),
    "half of another offset": ((ONES[..., :19], FACTOR, HALF[..., :9], (0, 1)), "grad_pooled"),
    "no pixels": ((ONES[..., :0], FACTOR, None, (0, 0)), "no pixels"),
    "no offset": ((ONES, FACTOR, HALF, ()), "pool_offset"),
    "offset of two": ((ONES, FACTOR, HALF, (0, 2)), "pool_offset"),
}


@native
@pytest.mark.parametrize("name", HOSTILE_POOLED)
def test_hostile_gradients_of_pooled_images(name):
    arguments, message = HOSTILE_POOLED[name]
    for operator in (torch.ops.ssim_fused.unpool, torch.ops.ssim_fused.unpool_):
        operator(ONES.clone(), FACTOR, HALF, (0, 0))  # the others are right
        with pytest.raises(RuntimeError, match=message):
            operator(*arguments)


@native
@pytest.mark.parametrize(
    "shared", [ONES[:1].expand(ONES.shape), torch.ones(99).as_strided(ONES.shape, (20, 20, 1, 1))]
)
def test_gradient_that_shares_pixels_is_not_written_to(shared):
    torch.ops.ssim_fused.unpool(shared, FACTOR, HALF, (0, 0))
    with pytest.raises(RuntimeError, match="share memory"):
        torch.ops.ssim_fused.unpool_(shared, FACTOR, HALF, (0, 0))


@native
def test_hostile_pooling():
    arguments = settings(WINDOW)
    pool = torch.ops.ssim_fused.loss_and_pool
    with pytest.raises(RuntimeError, match="pool_offset"):
        pool(X, X, (0, -1), *arguments, False, False)
    with pytest.raises(RuntimeError, match="only images"):
        pool(X[:, :, None], X[:, :, None], (0, 0), *arguments, False, False)
    with pytest.raises(RuntimeError, match="whole numbers"):
        pool(X.byte(), X.byte(), (0, 0), *settings((1 / 11,) * 11), True, False)


@native
def test_a_window_with_nan_does_not_crash():
    value = hostile_loss(window=(float("nan"),) * 3, grads=(True, True))[0]
    assert torch.isnan(value)


def test_an_overshoot_of_the_range_is_no_error():
    x, y = pictures((1, 1, 20, 20))
    assert torch.isfinite(ssim_fused.ssim_loss(x * 1.5 - 0.2, y))
