"""image_loss and the modules made of it against their terms one by one, in float64."""

from __future__ import annotations

import copy
import functools
import math
import pickle

import pytest
import torch
from tables import SHAPES, TOLERANCE, oracle_loss, pictures, relative_error
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import ssim_fused
from ssim_fused import _paths

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
PADDINGS = ["same", "valid", "reflect", "replicate", "circular"]
NAMES = ("ssim", "mse", "l1")
WEIGHTS = [
    (1.0, 0.0, 0.0),
    (0.2, 0.0, 0.8),
    (1.0, 1.0, 0.0),
    (0.5, 20.0, 3.0),
    (0.0, 1.0, 0.5),
    (0.0, 0.0, 2.0),
    (1.0, -0.5, 0.25),
    (-1.0, 0.0, 3.0),
]


@pytest.fixture(params=["fused", "reference"])
def path(request, monkeypatch):
    """Both paths; image_loss has no name of its own in the reference."""
    if request.param == "reference":
        monkeypatch.setattr(_paths, "cpu_reason", "this test asks for the reference")
    elif _paths.cpu_reason is not None:
        pytest.skip(f"no native library: {_paths.cpu_reason}")


def true_terms(x, y, **settings):
    difference = x - y
    return oracle_loss(x, y, **settings), difference.square().mean(), difference.abs().mean()


def check(x, y, weights, **settings):
    """Loss, terms, and gradients to either image and both, for an upstream gradient of 3."""
    value_tol, grad_tol = TOLERANCE[x.dtype]
    true_x, true_y = (t.detach().double().requires_grad_() for t in (x, y))
    terms = true_terms(true_x, true_y, **settings)
    true = sum(weight * term for weight, term in zip(weights, terms))
    true_grads = torch.autograd.grad(3 * true, (true_x, true_y))
    # weights of both signs: what cancels is not counted
    size = sum(abs(weight * term.item()) for weight, term in zip(weights, terms))
    expected = [
        term.detach() if weight else true.new_zeros(()) for weight, term in zip(weights, terms)
    ]
    named = dict(zip(NAMES, weights))
    for wanted in ([], [0], [1], [0, 1]):
        images = [image.detach().requires_grad_(i in wanted) for i, image in enumerate((x, y))]
        loss, found = ssim_fused.image_loss(*images, return_terms=True, **named, **settings)
        assert loss.shape == ()
        assert loss.dtype == x.dtype
        assert abs(loss.item() - true.item()) <= 2 * value_tol * size
        assert torch.equal(loss, ssim_fused.image_loss(*images, **named, **settings))
        for name, term in zip(NAMES, expected):
            value = getattr(found, name)
            assert not value.requires_grad
            assert relative_error(value, term) <= 2 * value_tol, name
        grads = torch.autograd.grad(3 * loss, [images[i] for i in wanted]) if wanted else ()
        for i, grad in zip(wanted, grads):
            assert grad.dtype == x.dtype
            assert relative_error(grad, true_grads[i]) <= 2 * grad_tol


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weights(dtype, weights, padding):
    x, y = pictures((2, 3, 19, 26), dtype)
    check(x, y, weights, padding=padding)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("settings", [{}, {"padding": "valid"}, {"padding": "reflect"},
                                      {"window_size": 7}, {"mask": True}], ids=str)  # fmt: skip
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16], ids=str)
def test_values_of_whole_numbers(dtype, channels, settings):
    """As those of the same numbers in float64, which the tests above check."""
    span = {torch.uint8: 255, torch.uint16: 65535}[dtype]
    exact = [
        (image.clamp(0, 1) * span).round()
        for image in pictures((2, channels, 23, 70), torch.float64)
    ]
    if "mask" in settings:
        generator = torch.Generator().manual_seed(0)
        settings = {"mask": torch.rand(2, 1, 23, 70, generator=generator) > 0.2}
    weights = {"ssim": 0.5, "mse": 1 / span, "l1": 0.25, "return_terms": True, **settings}
    true, true_terms = ssim_fused.image_loss(*exact, data_range=span, **weights)
    for layout in (torch.contiguous_format, torch.channels_last):
        x, y = (image.to(dtype).contiguous(memory_format=layout) for image in exact)
        loss, terms = ssim_fused.image_loss(x, y, **weights)
        assert {loss.dtype, *(term.dtype for term in terms)} == {torch.float32}
        assert relative_error(loss, true) <= 2e-6
        for term, wanted in zip(terms, true_terms):
            assert relative_error(term, wanted) <= 2e-6


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("padding", ["same", "replicate"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape, padding):
    for dtype in DTYPES[:2]:
        check(*pictures(shape, dtype), (0.5, 20.0, 3.0), padding=padding)


SETTINGS = {
    "window": ((1, 2, 15, 40), {"window_size": (5, 33), "sigma": (1.0, 6.0)}),
    "uniform": ((1, 2, 15, 16), {"window": "uniform", "window_size": 7, "padding": "valid"}),
    "data_range": ((1, 2, 15, 16), {"data_range": 4.0}),
    "constants": ((1, 2, 15, 16), {"k1": 0.1, "k2": 0.2}),
    "signals": ((2, 2, 40), {"spatial_dims": 1}),
    "a signal": ((2, 40), {"spatial_dims": 1}),
    "an image": ((3, 15, 16), {}),
    "volumes": ((2, 1, 6, 7, 8), {"window_size": 5}),
    "a volume": ((2, 6, 7, 8), {"window_size": 5, "spatial_dims": 3}),
    "a volume, valid": ((2, 6, 7, 8), {"window_size": 5, "spatial_dims": 3, "padding": "valid"}),
}


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_settings(name, dtype):
    shape, settings = SETTINGS[name]
    axes = settings.get("spatial_dims", 3 if len(shape) == 5 else 2)
    full = shape if len(shape) == axes + 2 else (1, *shape)
    x, y = (image.view(shape) for image in pictures(full, dtype))
    check(x, y, (0.2, 1.0, 0.8), **settings)
    check(x, y, (0.7, 0.0, 0.0), **settings)


class Calls(TorchDispatchMode):
    """The operators that are called inside."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **kwargs or {})


@pytest.mark.skipif(_paths.cpu_reason is not None, reason="no native library")
@pytest.mark.parametrize("weights", [{"mse": 0.5}, {"l1": 0.5}, {"mse": 0.5, "l1": 0.5}], ids=str)
def test_one_pass_makes_all_terms_and_gradients(weights):
    x, y = pictures((2, 3, 20, 21))
    x.requires_grad_()
    with Calls() as calls:
        loss, _ = ssim_fused.image_loss(x, y, return_terms=True, **weights)
        loss.backward()
    ours = [name for name in calls.names if name.startswith("ssim_fused")]
    assert ours == ["ssim_fused.loss_and_gradients.default"]
    assert not {"aten.sub.Tensor", "aten.abs.default", "aten.square.default"} & {*calls.names}


def test_gradients_add_up():
    x, y = pictures((2, 3, 30, 31), torch.float64)
    x.requires_grad_()

    def grad(**weights):
        return torch.autograd.grad(ssim_fused.image_loss(x, y, **weights), x)[0]

    parts = [grad(ssim=0.2), grad(ssim=0.0, mse=0.7), grad(ssim=0.0, l1=1.5)]
    whole = grad(ssim=0.2, mse=0.7, l1=1.5)
    torch.testing.assert_close(whole, sum(parts), rtol=1e-10, atol=1e-16)


def test_channels_last_and_one_tensor_twice():
    x, y = pictures((2, 3, 30, 31))
    last = [t.contiguous(memory_format=torch.channels_last) for t in (x, y)]
    weights = dict(mse=0.5, l1=2.0)
    assert torch.equal(
        ssim_fused.image_loss(*last, **weights), ssim_fused.image_loss(x, y, **weights)
    )
    x.requires_grad_()
    loss = ssim_fused.image_loss(x, x, **weights)
    loss.backward()
    assert loss.item() == 0
    assert x.grad.count_nonzero() == 0


def test_no_slope_of_l1_where_images_agree():
    x, y = pictures((1, 1, 20, 20), torch.float64)
    y[..., :10] = x[..., :10]
    x.requires_grad_()
    (grad,) = torch.autograd.grad(ssim_fused.image_loss(x, y, ssim=1e-12, l1=1.0), x)
    torch.testing.assert_close(grad, (x - y).sign() / x.numel(), rtol=0, atol=1e-11)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_loss_is_no_view(dtype):
    x, y = pictures((2, 1, 19, 26), dtype)
    mu = logvar = torch.zeros(2, 3, dtype=dtype)
    for image in (x, x.clone().requires_grad_()):
        for loss in (
            ssim_fused.image_loss(image, y, l1=1),
            ssim_fused.image_loss(image, y, mse=1, padding="reflect"),
            ssim_fused.image_loss(image, y),
            ssim_fused.PhotometricLoss()(image, y),
            ssim_fused.CVAELoss(beta=0)(image, y, mu, logvar),
        ):
            assert loss.requires_grad == image.requires_grad
            assert not loss._is_view()
            loss.detach_()


@pytest.mark.usefixtures("path")
def test_double_backward():
    x, y = (image.requires_grad_() for image in pictures((1, 2, 12, 13), torch.float64))

    def penalty(function):
        (grad,) = torch.autograd.grad(function(x, y), x, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), (x, y))

    def separate(x, y):
        return 0.3 * (terms := true_terms(x, y))[0] + 0.5 * terms[1] + 0.2 * terms[2]

    def fused(x, y):
        return ssim_fused.image_loss(x, y, ssim=0.3, mse=0.5, l1=0.2)

    for found, expected in zip(penalty(fused), penalty(separate)):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-16)


def test_autocast_gives_float32():
    x, y = pictures((2, 3, 30, 31))
    for padding in ("same", "reflect"):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = x.bfloat16().requires_grad_()
            settings = dict(mse=0.5, l1=2.0, padding=padding, return_terms=True)
            loss, terms = ssim_fused.image_loss(half, y, **settings)
        assert {loss.dtype, *(term.dtype for term in terms)} == {torch.float32}
        true = true_terms(half.detach().double(), y.double(), padding=padding)
        assert relative_error(loss.detach(), true[0] + 0.5 * true[1] + 2 * true[2]) < 4e-6
        loss.backward()
        assert half.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_autocast_casts_no_float64(dtype):
    x, y = pictures((1, 1, 20, 20), torch.float64)
    mean_error = functools.partial(ssim_fused.image_loss, ssim=0, mse=1)
    for function in (ssim_fused.ssim_loss, ssim_fused.image_loss, mean_error, ssim_fused.psnr):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            if dtype == torch.float64:
                assert function(x, y).dtype == dtype
                continue
            for pair in ((x, y.to(dtype)), (x.to(dtype), y)):
                with pytest.raises(TypeError, match=r"one dtype, got .*float64"):
                    function(*pair)


def test_bad_weights():
    x, y = pictures((1, 1, 20, 20))
    with pytest.raises(ValueError, match="at least one"):
        ssim_fused.image_loss(x, y, ssim=0.0)
    with pytest.raises(ValueError, match="mse"):
        ssim_fused.image_loss(x, y, mse=math.nan)
    with pytest.raises(TypeError, match="l1"):
        ssim_fused.image_loss(x, y, l1="1")
    for weights in ({}, {"mse": 1.0}, {"ssim": 0.0, "l1": 1.0}):
        with pytest.raises(ValueError, match=r"\(1, 1, 20, 20\) and \(1, 1, 20, 19\)"):
            ssim_fused.image_loss(x, y[..., 1:], **weights)
        with pytest.raises(TypeError, match="NoneType"):
            ssim_fused.image_loss(x, None, **weights)
    with pytest.raises(ValueError, match="lambda_dssim"):
        ssim_fused.PhotometricLoss(1.5)
    with pytest.raises(TypeError, match="lambda_dssim"):
        ssim_fused.PhotometricLoss("half")


@pytest.mark.parametrize("padding", PADDINGS)
def test_without_ssim_images_may_be_smaller_than_the_window(padding):
    x, y = pictures((2, 1, 4, 5))
    mask = torch.ones(1, 1, 4, 5)
    mse = torch.nn.functional.mse_loss(x, y)
    mu = logvar = torch.zeros(2, 3)
    for found in (
        ssim_fused.image_loss(x, y, ssim=0, mse=1, padding=padding),
        ssim_fused.image_loss(x, y, ssim=0, mse=1, padding=padding, mask=mask),
        ssim_fused.MSE_SSIM_KL_Loss(alpha=0, padding=padding)(x, y, mu, logvar),
    ):
        torch.testing.assert_close(found, mse)
    if padding not in ("same", "replicate"):
        for beside in (None, mask):
            with pytest.raises(ValueError, match=f"'{padding}' needs images of at least .* 4 x 5"):
                ssim_fused.image_loss(x, y, mse=1, padding=padding, mask=beside)
    with pytest.raises(ValueError, match="images must be"):
        ssim_fused.image_loss(x[0, 0], y[0, 0], ssim=0, mse=1, padding=padding)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("padding", ["same", "reflect"])
@pytest.mark.parametrize(
    ("shape", "settings"),
    [((3, 15, 16), {}), ((3, 20), {"spatial_dims": 1}), ((2, 7, 8, 9), {"spatial_dims": 3})],
    ids=str,
)
def test_masks_of_one_image_may_have_a_batch_axis(shape, settings, padding):
    x, y = (image.view(shape) for image in pictures((1, 1, math.prod(shape), 1), torch.float64))
    mask = torch.rand((1, *shape[1:]), generator=torch.Generator().manual_seed(0)).double() > 0.2
    settings = settings | {"padding": padding, "window_size": 5}
    for weights in ({"ssim": 0.2, "l1": 0.8}, {"ssim": 0.0, "mse": 1.0}, {}):
        whole = x[None], y[None]
        true = ssim_fused.image_loss(*whole, mask=mask[None], **weights, **settings)
        for beside in (mask, mask[None], mask.expand(shape), mask.expand(shape)[None]):
            found = ssim_fused.image_loss(x, y, mask=beside, **weights, **settings)
            torch.testing.assert_close(found, true, rtol=1e-12, atol=0)
        with pytest.raises(ValueError, match="mask must be"):
            ssim_fused.image_loss(x, y, mask=mask[None, None], **weights, **settings)


# ---- modules ----


@pytest.mark.parametrize("weight", [0.0, 0.2, 1.0])
def test_photometric_loss(weight):
    for shape in ((2, 3, 30, 31), (3, 30, 31)):
        x, y = (image.view(shape) for image in pictures((1, *shape)[-4:], torch.float64))
        dssim, _, l1 = true_terms(x, y)
        loss = ssim_fused.PhotometricLoss(weight)(x, y)
        torch.testing.assert_close(loss, (1 - weight) * l1 + weight * dssim, rtol=1e-12, atol=0)


@pytest.mark.parametrize("alpha", [0.0, 0.7])
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_cvae_loss_is_its_terms(alpha, dtype):
    x, y = pictures((3, 1, 28, 28), dtype)
    mu, logvar = (
        torch.randn(3, 8, generator=torch.Generator().manual_seed(i)).to(dtype) for i in (0, 1)
    )
    criterion = ssim_fused.CVAELoss(alpha, 0.1, return_terms=True, padding="reflect")
    loss, mse, ssim, kl = criterion(x, y, mu, logvar)
    true_ssim, true_mse, _ = true_terms(x.double(), y.double(), padding="reflect")
    m, v = mu.double(), logvar.double()
    true_kl = -0.5 * (1 + v - m**2 - v.exp()).sum(-1).mean()
    tolerance = 4 * TOLERANCE[dtype][0]
    assert relative_error(mse, true_mse) < tolerance
    assert relative_error(ssim, true_ssim if alpha else torch.zeros(())) < tolerance
    assert relative_error(kl, true_kl) < tolerance
    assert relative_error(loss, true_mse + alpha * true_ssim + 0.1 * true_kl) < tolerance


class Autoencoder(nn.Module):
    """Small enough for 1000 steps on a CPU."""

    def __init__(self):
        super().__init__()
        self.encode = nn.Linear(256, 16)
        self.decode = nn.Linear(8, 256)

    def forward(self, x):
        mu, logvar = self.encode(x.flatten(1)).chunk(2, dim=1)
        return torch.sigmoid(self.decode(mu)).view_as(x), mu, logvar


def photometric(recon, x, mu, logvar):
    return ssim_fused.PhotometricLoss()(recon, x)


def masked(recon, x, mu, logvar):
    mask = torch.ones(1, 1, 16, 16)
    mask[..., 4:7, 5:] = 0
    return ssim_fused.PhotometricLoss()(recon, x, mask=mask)


LOSSES = {
    "PhotometricLoss": photometric,
    "PhotometricLoss, mask": masked,
    "CVAELoss": ssim_fused.CVAELoss(beta=1e-3),
}


@pytest.mark.parametrize("name", LOSSES)
def test_1000_steps_of_float16(name):
    """GradScaler finds nothing to skip once its scale has settled, and the loss falls."""
    torch.manual_seed(0)
    model = Autoencoder()
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14, growth_interval=10**6)
    data = pictures((32, 1, 16, 16))[0].half()
    losses = []
    for _ in range(1000):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            recon, mu, logvar = model(data)
            loss = LOSSES[name](recon, data, mu, logvar)
        assert recon.dtype == torch.float16
        assert loss.dtype == torch.float32
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.detach())
    losses = torch.stack(losses)
    assert losses.isfinite().all()
    assert scaler.get_scale() >= 2.0**10
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("padding", ["same", "reflect"])
def test_float16_gradients_do_not_underflow(padding):
    """A gradient of 1e-7 is below float16's smallest normal number; scaled, it keeps its digits."""
    x, y = pictures((4, 3, 96, 96), torch.float16, noise=0.01)
    scale = 2.0**14
    true_x = x.double().requires_grad_()
    true = true_terms(true_x, y.double(), padding=padding)
    (true[0] + true[1] + true[2]).mul(scale).backward()
    with torch.autocast("cpu", dtype=torch.float16):
        half = x.clone().requires_grad_()
        loss = ssim_fused.image_loss(half, y, mse=1.0, l1=1.0, padding=padding)
        (loss * scale).backward()
    assert relative_error(half.grad, true_x.grad) < 2**-9


# ---- PSNR ----


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_psnr(dtype):
    for shape in ((2, 3, 30, 31), (3, 2, 50), (2, 1, 5, 6, 7)):
        x, y = pictures(shape, dtype)
        for data_range in (None, 2.0):
            span = data_range or 1.0
            squares = (x.double() - y.double()).square()
            pooled = 10 * torch.log10(span**2 / squares.mean())
            each = 10 * torch.log10(span**2 / squares.flatten(1).mean(1))
            found = ssim_fused.psnr(x, y, data_range=data_range)
            images = ssim_fused.psnr(x, y, data_range=data_range, reduction="image")
            assert found.shape == ()
            assert images.shape == shape[:1]
            assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            assert relative_error(found, pooled) < 1e-5
            assert relative_error(images, each) < 1e-5
    assert ssim_fused.psnr(x, x).item() == math.inf


@pytest.mark.parametrize("shape", [(2, 3, 300, 500), (3, 400_000), (1, 2, 9, 300, 200), (3, 1, 1)])
def test_psnr_in_slices(shape):
    """More than the cache holds goes in slices, with the value and gradient of the whole."""
    x, y = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    true_x = x.double().requires_grad_()
    true = 10 * torch.log10(1 / (true_x - y.double()).square().flatten(1).mean(1))
    x.requires_grad_()
    found = ssim_fused.psnr(x, y, reduction="image")
    assert relative_error(found.detach(), true.detach()) < 1e-6
    (gradient,) = torch.autograd.grad(found.sum(), x)
    (expected,) = torch.autograd.grad(true.sum(), true_x)
    assert relative_error(gradient, expected) < 1e-5
    pairs = [(x, y), (x.mT, y.mT), (x.mT.contiguous().mT, y)]
    values = [ssim_fused.psnr(*pair).item() for pair in pairs]
    assert values == pytest.approx([values[0]] * 3, rel=1e-6)


def test_psnr_of_large_pictures_takes_no_memory_of_their_size():
    x, y = (torch.randint(0, 256, (1, 3, 1080, 1920), dtype=torch.uint8) for _ in range(2))
    with torch.profiler.profile(profile_memory=True) as profile:
        ssim_fused.psnr(x, y)
    assert max(event.cpu_memory_usage for event in profile.events()) < x.nbytes / 2


@pytest.mark.parametrize("scale", [1e-17, 1e-3, 1e3, 1e17])
def test_psnr_of_ranges_of_any_size(scale):
    x, y = pictures((2, 3, 30, 31), torch.float64)
    y = x + (y - x) / 100
    true = ssim_fused.psnr(x, y).item()
    small_x, small_y = ((image * scale).float() for image in (x, y))
    found = ssim_fused.psnr(small_x, small_y, data_range=scale)
    assert found.item() == pytest.approx(true, abs=1e-2)  # the mean square may be subnormal
    assert ssim_fused.psnr(small_x, small_x, data_range=scale).item() == math.inf


@pytest.mark.parametrize("scale", [1e-12, 1.0, 255.0])
def test_gradient_of_psnr(scale):
    x, y = (image * scale for image in pictures((2, 3, 30, 31), torch.float64))
    true_x = x.clone().requires_grad_()
    true = 10 * torch.log10(scale**2 / (true_x - y).square().mean())
    (expected,) = torch.autograd.grad(true, true_x)
    small = x.float().requires_grad_()
    (found,) = torch.autograd.grad(ssim_fused.psnr(small, y.float(), data_range=scale), small)
    assert relative_error(found, expected) < 1e-5


def test_psnr_of_whole_numbers():
    for dtype, span in ((torch.uint8, 255), (torch.uint16, 65535)):
        x, y = ((t.clamp(0, 1) * span).round() for t in pictures((2, 1, 30, 31), torch.float64))
        true = 10 * torch.log10(span**2 / (x - y).square().mean())
        found = ssim_fused.psnr(x.to(dtype), y.to(dtype))
        assert relative_error(found, true) < 1e-5


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_psnr_falls_out_of_the_terms(dtype):
    # the last one's MSE is 0 in float16, and its decibels have a digit more before the point
    for noise, tolerance in ((0.1, 1e-5), (0.03, 1e-5), (3e-4, 3e-5)):
        x, y = pictures((2, 3, 30, 31), torch.float64, noise=noise)
        x, y = x.to(dtype), y.to(dtype)
        true = 10 * torch.log10(1 / (x.double() - y.double()).square().mean())
        for settings in ({}, {"padding": "reflect"}, {"mask": torch.ones(1, 1, 30, 31)}):
            _, terms = ssim_fused.image_loss(x, y, mse=1.0, return_terms=True, **settings)
            assert terms.mse.dtype == dtype
            decibels = terms.psnr()
            assert decibels.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            assert abs(decibels.item() - true.item()) < tolerance
            of_bytes = terms.psnr(255.0).item() - 20 * math.log10(255)
            assert abs(of_bytes - true.item()) < tolerance
    with pytest.raises(ValueError, match="data_range"):
        terms.psnr(0.0)


@pytest.mark.parametrize("padding", ["same", "reflect"])
def test_psnr_of_the_terms_has_the_data_range_of_the_loss(padding):
    x, y = pictures((2, 3, 30, 31), torch.float64)
    bytes_x, bytes_y = ((t.clamp(0, 1) * 255).round().byte() for t in (x, y))
    images = [(x, y, {}), (bytes_x, bytes_y, {}), (2 * x, 2 * y, {"data_range": 2})]
    images.append((2 * x, 2 * y, {"data_range": torch.tensor(2.0)}))
    for a, b, settings in images:
        most = 255 if a.dtype == torch.uint8 else 1
        weights = dict(mse=1e-9, padding=padding, return_terms=True)
        _, terms = ssim_fused.image_loss(a, b, **weights, **settings)
        true = ssim_fused.psnr(a, b, data_range=float(settings.get("data_range", most)))
        assert abs(terms.psnr().item() - true.item()) < 1e-4
        for clone in (copy.deepcopy(terms), pickle.loads(pickle.dumps(terms))):
            assert type(clone) is type(terms)
            assert torch.equal(clone.psnr(), terms.psnr())
        assert len(terms) == 3


def test_no_psnr_without_an_mse():
    x, y = pictures((2, 3, 30, 31))
    _, terms = ssim_fused.image_loss(x, y, l1=1.0, return_terms=True)
    with pytest.raises(ValueError, match="mse=1e-9"):
        terms.psnr()
    with pytest.raises(ValueError, match="data_range must be given"):
        ssim_fused.ImageTerms(*terms).psnr()


def test_terms_of_a_compiled_loss():
    x, y = pictures((2, 3, 30, 31))

    def inside(x, y):
        _, terms = ssim_fused.image_loss(x, y, mse=1.0, data_range=2.0, return_terms=True)
        return terms, terms.psnr()

    expected, decibels = inside(x, y)
    found, traced = torch.compile(inside, backend="eager", fullgraph=True)(x, y)
    assert torch.equal(traced, decibels)
    assert type(found) is type(expected)
    assert torch.equal(found.psnr(), decibels)

    def without(x, y):
        return ssim_fused.image_loss(x, y, return_terms=True)[1]

    with pytest.raises(ValueError, match="mse=1e-9"):
        torch.compile(without, backend="eager", fullgraph=True)(x, y).psnr()
