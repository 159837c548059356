"""Multi-scale SSIM against pytorch-msssim, torchmetrics, and the 2003 paper written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tables import TOLERANCE, natural, oracle_loss, pictures, relative_error, window_taps

import ssim_fused
from ssim_fused import reference

PATHS = {"fused": ssim_fused, "reference": reference}
BETAS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
POOLINGS = ["floor", "pad", "edge"]
PADDINGS = ["valid", "same", "reflect", "replicate", "circular"]

both_paths = pytest.mark.parametrize("path", PATHS)


def pool(image, pooling):
    """Half the size: means of 2 x 2 (x 2) pixels, one axis after the other."""
    for axis in range(2, image.dim()):
        if image.shape[axis] % 2:
            end = image.narrow(axis, image.shape[axis] - 1, 1)
            if pooling == "edge":
                image = torch.cat((image, end), axis)
            elif pooling == "pad":
                image = torch.cat((torch.zeros_like(end), image), axis)
            else:
                image = image.narrow(axis, 0, image.shape[axis] - 1)
        even, odd = image.unflatten(axis, (-1, 2)).unbind(axis + 1)
        image = (even + odd) / 2
    return image


def oracle_factors(x, y, scales, pooling="floor", **settings):
    """[scales, N, C]: contrast-structure of each scale, SSIM of the coarsest."""
    settings = {"padding": "valid", **settings}
    factors = []
    for scale in range(scales):
        term = "ssim" if scale == scales - 1 else "contrast_structure"
        factors.append(1 - oracle_loss(x, y, term=term, reduction="channel", **settings))
        if scale < scales - 1:
            x, y = pool(x, pooling), pool(y, pooling)
    return torch.stack(factors)


def oracle_ms_ssim(
    x, y, *, betas=BETAS, normalize=None, per_channel=True, reduction="mean", **settings
):
    """The product of factors that are positive, or made so."""
    factors = oracle_factors(x, y, len(betas), **settings)
    if not per_channel:
        factors = factors.mean(2, keepdim=True)
    if normalize == "simple":
        factors = (factors + 1) / 2
    elif normalize == "relu":
        factors = factors.clamp(min=0)
    else:
        assert factors.min() > 0
    exponents = torch.tensor(betas, dtype=torch.float64).view(-1, 1, 1)
    value = (factors**exponents).prod(0)
    if reduction == "channel":
        return value
    return value.mean() if reduction == "mean" else value.mean(1)


def check(path, x, y, tolerance=None, **settings):
    """Value and both gradients against the oracle."""
    value_tol, grad_tol = tolerance or TOLERANCE[x.dtype]
    true_x, true_y = (t.detach().double().requires_grad_() for t in (x, y))
    true = 1 - oracle_ms_ssim(true_x, true_y, **settings)
    upstream = torch.rand(true.shape, generator=torch.Generator().manual_seed(0)) + 0.5
    upstream = upstream.to(x.dtype)
    true_grads = torch.autograd.grad(true, (true_x, true_y), upstream.double())
    for wanted in ([0], [1], [0, 1]):
        images = [image.detach().requires_grad_(i in wanted) for i, image in enumerate((x, y))]
        loss = PATHS[path].ms_ssim_loss(*images, **settings)
        assert loss.shape == true.shape
        assert loss.dtype == x.dtype
        assert relative_error(loss.detach(), true.detach()) <= value_tol
        grads = torch.autograd.grad(loss, [images[i] for i in wanted], upstream)
        for i, grad in zip(wanted, grads):
            assert grad.dtype == x.dtype
            assert relative_error(grad, true_grads[i]) <= grad_tol


# ---- against the paper ----


@both_paths
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("size", [(176, 176), (181, 190), (203, 177)], ids=str)
def test_five_scales(path, pooling, size):
    check(path, *pictures((1, 2, *size)), pooling=pooling)
    check(path, *pictures((1, 1, *size), torch.float64), pooling=pooling)


SMALL = {"betas": (0.2, 0.3, 0.5), "window_size": 5}


@both_paths
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_paddings_and_poolings(path, pooling, padding):
    for dtype in DTYPES[:2]:
        for size in ((20, 24), (21, 27), (23, 22)):
            x, y = pictures((2, 3, *size), dtype)
            check(path, x, y, pooling=pooling, padding=padding, **SMALL)


SETTINGS = {
    "image": {"reduction": "image"},
    "channel": {"reduction": "channel"},
    "simple": {"normalize": "simple"},
    "relu": {"normalize": "relu"},
    "channels together": {"per_channel": False},
    "channels together, image": {"per_channel": False, "reduction": "image"},
    "channels together, simple": {"per_channel": False, "normalize": "simple"},
    "one scale": {"betas": (1.0,)},
    "two scales": {"betas": [0.3, 0.3]},
    "a scale of no weight": {"betas": (0.5, 0.0, 0.5)},
    "uniform": {"window": "uniform", "window_size": 3},
    "two sizes": {"window_size": (3, 5), "sigma": (0.7, 1.5)},
    "data_range": {"data_range": 3.0, "k1": 0.02, "k2": 0.05},
}


@both_paths
@pytest.mark.parametrize("name", SETTINGS)
def test_settings(path, name):
    for dtype in DTYPES:
        x, y = pictures((2, 3, 25, 30), dtype)
        check(path, x, y, **{**SMALL, **SETTINGS[name]})


@both_paths
@pytest.mark.parametrize("pooling", POOLINGS)
def test_volumes(path, pooling):
    settings = {"betas": (0.4, 0.6), "window_size": 3, "pooling": pooling}
    for dtype in DTYPES[:2]:
        x, y = pictures((1, 2, 7, 9, 12), dtype)
        check(path, x, y, **settings)
        check(path, x, y, padding="same", **settings)
        one = PATHS[path].ms_ssim_loss(x[0], y[0], spatial_dims=3, **settings)
        assert torch.equal(one, PATHS[path].ms_ssim_loss(x, y, **settings))


@both_paths
def test_one_image_and_whole_numbers(path):
    x, y = pictures((1, 3, 25, 30))
    for reduction in ("mean", "image", "channel"):
        batch = PATHS[path].ms_ssim_loss(x, y, reduction=reduction, **SMALL)
        one = PATHS[path].ms_ssim_loss(x[0], y[0], reduction=reduction, **SMALL)
        assert torch.equal(one, batch if reduction == "mean" else batch[0])
    for dtype, span in ((torch.uint8, 255), (torch.uint16, 65535)):
        a, b = ((t.clamp(0, 1) * span).round() for t in (x.double(), y.double()))
        found = PATHS[path].ms_ssim_loss(a.to(dtype), b.to(dtype), **SMALL)
        assert found.dtype == torch.float32
        assert relative_error(found, 1 - oracle_ms_ssim(a, b, data_range=span, **SMALL)) < 2e-6


def test_similarity_and_module():
    x, y = pictures((2, 3, 25, 30))
    loss = ssim_fused.ms_ssim_loss(x, y, pooling="pad", **SMALL)
    assert torch.equal(ssim_fused.ms_ssim(x, y, pooling="pad", **SMALL), 1 - loss)
    module = ssim_fused.MSSSIMLoss(5, betas=SMALL["betas"], pooling="pad")
    assert torch.equal(module(x, y), loss)


@pytest.mark.parametrize("betas", [torch.tensor([0.25, 0.75]), np.array([0.25, 0.75])], ids=type)
def test_betas_of_a_tensor_or_an_array(betas):
    x, y = pictures((2, 3, 25, 30))
    expected = ssim_fused.ms_ssim_loss(x, y, betas=(0.25, 0.75))
    assert torch.equal(ssim_fused.ms_ssim_loss(x, y, betas=betas), expected)
    module = ssim_fused.MSSSIMLoss(betas=betas)
    assert torch.equal(module(x, y), expected)
    assert module.betas == (0.25, 0.75)
    if isinstance(betas, torch.Tensor):
        with pytest.raises(ValueError, match="betas must not require a gradient"):
            ssim_fused.ms_ssim_loss(x, y, betas=betas.clone().requires_grad_())


@both_paths
def test_layouts_give_bitwise_the_same(path):
    x, y = pictures((2, 3, 25, 30))
    expected = PATHS[path].ms_ssim_loss(x, y, **SMALL)
    last = [t.contiguous(memory_format=torch.channels_last) for t in (x, y)]
    found = PATHS[path].ms_ssim_loss(*last, **SMALL)
    if path == "fused":
        assert torch.equal(found, expected)
    torch.testing.assert_close(found, expected)


# ---- against others ----


@both_paths
@pytest.mark.parametrize("span", [1.0, 255.0])
@pytest.mark.parametrize("size", [176, 201, 256])
def test_equals_pytorch_msssim(path, span, size):
    peer = pytest.importorskip("pytorch_msssim")
    x, y = (span * image for image in natural(size))
    ours = {"normalize": "relu", "pooling": "pad", "data_range": span}
    # its own window is rounded to float32, whose taps sum to 1 + 2e-8: a difference of 2e-6
    window = window_taps(1)[0].expand(3, 1, 1, 11)
    for dtype, tolerance, grad_tol in (
        (torch.float64, 1e-12, 1e-10),
        (torch.float32, 2e-5, 1e-3),  # what its float32 keeps
    ):
        a, b = x.to(dtype).requires_grad_(), y.to(dtype)
        theirs = peer.ms_ssim(a, b, data_range=span, win=window)
        found = 1 - PATHS[path].ms_ssim_loss(a, b, **ours)
        assert abs(found - theirs) <= tolerance
        (their_grad,), (grad,) = (torch.autograd.grad(value, a) for value in (theirs, found))
        assert relative_error(grad, their_grad) <= grad_tol
    each = peer.ms_ssim(x, y, data_range=span, win=window, size_average=False)
    found = 1 - PATHS[path].ms_ssim_loss(x, y, reduction="image", **ours)
    torch.testing.assert_close(found, each, rtol=0, atol=1e-12)
    as_it_is = peer.ms_ssim(x, y, data_range=span)
    assert abs(found.mean() - as_it_is) < 5e-6


@pytest.mark.parametrize("normalize", ["relu", "simple"])
def test_torchmetrics(normalize):
    """Its factors are ours, but for the coarsest SSIM, which alone it takes with a border."""
    peer = pytest.importorskip("torchmetrics.functional.image")
    for size in (176, 201):
        x, y = natural(size)
        theirs = peer.multiscale_structural_similarity_index_measure(
            x, y, data_range=1.0, normalize=normalize
        )
        factors = []
        for scale in range(5):
            last = scale == 4
            term, padding = ("ssim", "reflect") if last else ("contrast_structure", "valid")
            factors.append(ssim_fused.ssim(x, y, term=term, padding=padding))
            x, y = pool(x, "floor"), pool(y, "floor")
        factors = torch.stack(factors)
        factors = (factors + 1) / 2 if normalize == "simple" else factors
        # it has float32 exponents
        expected = (factors ** torch.tensor(BETAS)).prod()
        torch.testing.assert_close(expected, theirs, rtol=0, atol=1e-10)


# ---- no NaN, and a slope ----


def extremes(dtype):
    """Pairs of images for which a power of a factor has no finite slope, or no value."""
    x = pictures((1, 1, 40, 44), torch.float64)[0]
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)).double()
    pairs = {
        "identical": (x, x),
        "constant": (torch.full_like(x, 0.5), torch.full_like(x, 0.5)),
        "black": (torch.zeros_like(x), torch.zeros_like(x)),
        "constant and a picture": (torch.full_like(x, 0.5), x),
        "black and white": (torch.zeros_like(x), torch.ones_like(x)),
        "anti-correlated": (x, 1 - x),
        "anti-correlated grain": (noise, 1 - noise),
        "nearly the same": (x, x + 1e-6 * noise),
        "not related": (noise, noise.flip(-1)),
        # a factor of about 0: C2 against twice a covariance of -C2 / 2
        "no contrast left": (0.5 + 0.0424 * (noise - 0.5), 0.5 - 0.25 * (noise - 0.5)),
    }
    return {name: [image.to(dtype) for image in pair] for name, pair in pairs.items()}


@both_paths
@pytest.mark.parametrize("normalize", [None, "relu", "simple"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_never_nan(path, normalize, dtype):
    for name, (x, y) in extremes(dtype).items():
        for per_channel in (True, False):
            a, b = x.clone().requires_grad_(), y.clone().requires_grad_()
            settings = {**SMALL, "normalize": normalize, "per_channel": per_channel}
            loss = PATHS[path].ms_ssim_loss(a, b, **settings)
            grads = torch.autograd.grad(loss, (a, b))
            assert loss.isfinite(), name
            assert all(grad.isfinite().all() for grad in grads), name
            assert 0 <= loss.item() <= 1 + sum(SMALL["betas"]), name
            if name in ("identical", "constant", "black"):
                assert loss.item() == 0, name
                assert all(grad.count_nonzero() == 0 for grad in grads), name


@both_paths
def test_a_negative_factor_adds_to_the_loss(path):
    x, y = extremes(torch.float64)["anti-correlated grain"]
    factors = oracle_factors(x, y, 3, window_size=5)[:, 0, 0]
    assert factors.min() < 0
    expected = 1 - sum(beta * min(factor, 0) for beta, factor in zip(SMALL["betas"], factors))
    loss = PATHS[path].ms_ssim_loss(x, y, **SMALL)
    torch.testing.assert_close(loss, expected)
    assert PATHS[path].ms_ssim_loss(x, y, normalize="relu", **SMALL).item() == 1


@both_paths
def test_a_negative_factor_of_no_weight_has_no_say(path):
    """s^0 is 1: scales that a user leaves out do not make the product 0."""
    x, y = pictures((1, 1, 32, 32), torch.float64, noise=0.0)
    # checks that are inverted on the finest scale, and gone on the next
    checks = 0.2 * ((torch.arange(32)[:, None] + torch.arange(32)) % 2 - 0.5).double()
    x, y = x + checks, y - checks
    assert oracle_factors(x, y, 2, window_size=5)[0].min() < 0
    for normalize in (None, "relu"):
        settings = {"betas": (0.0, 1.0), "window_size": 5, "normalize": normalize}
        found = PATHS[path].ms_ssim_loss(x, y, **settings)
        expected = 1 - oracle_factors(x, y, 2, window_size=5)[1].mean()
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_a_fit_climbs_out_of_anti_correlation():
    target = natural(176, 1, torch.float32)[0]
    noise = torch.randn(target.shape, generator=torch.Generator().manual_seed(2))
    start = 1 - target + 0.02 * noise
    image = start.clone().requires_grad_()
    (stuck,) = torch.autograd.grad(ssim_fused.ms_ssim_loss(image, target, normalize="relu"), image)
    assert stuck.count_nonzero() == 0
    assert ssim_fused.ssim(start, target) < 0
    optimizer = torch.optim.Adam([image], 0.02)
    for _ in range(400):
        optimizer.zero_grad()
        ssim_fused.ms_ssim_loss(image, target).backward()
        optimizer.step()
    assert ssim_fused.ms_ssim(image, target) > 0.95
    assert ssim_fused.ssim(image, target) > 0.9


# ---- errors ----


@both_paths
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("window_size", [11, (5, 7)], ids=str)
def test_the_smallest_size_that_works(path, window_size, padding, pooling):
    settings = {"window_size": window_size, "padding": padding, "pooling": pooling}
    smallest, words = [1, 1], "1 x 1"  # where every size works
    try:
        PATHS[path].ms_ssim_loss(*pictures((1, 1, 1, 1)), **settings)
    except ValueError as error:
        words = str(error).split("at least ")[1].split(",")[0]
        smallest = [int(length) for length in words.split(" x ")]
    taps = (11, 11) if window_size == 11 else window_size
    # of the coarsest scale: a whole window, or what torch's own padding can extend
    coarsest = {
        "valid": taps,
        "reflect": [t // 2 + 1 for t in taps],
        "circular": [t // 2 for t in taps],
    }.get(padding, (1, 1))
    assert smallest == [16 * c if pooling == "floor" else 16 * (c - 1) + 1 for c in coarsest]
    loss = PATHS[path].ms_ssim_loss(*pictures((1, 1, *smallest)), **settings)
    assert loss.isfinite()
    for axis in (0, 1):
        size = list(smallest)
        size[axis] -= 1
        if size[axis] == 0:
            continue
        with pytest.raises(ValueError, match=f"{words}, got {size[0]} x {size[1]}"):
            PATHS[path].ms_ssim_loss(*pictures((1, 1, *size)), **settings)


def test_the_smallest_volume():
    settings = {"betas": (0.5, 0.5), "window_size": (3, 5, 7)}
    with pytest.raises(ValueError, match=r"2 scales .* 6 x 10 x 14, got 6 x 10 x 13"):
        ssim_fused.ms_ssim_loss(*pictures((1, 1, 6, 10, 13)), **settings)
    assert ssim_fused.ms_ssim_loss(*pictures((1, 1, 6, 10, 14)), **settings).isfinite()


BAD = {
    "betas": ({"betas": ()}, TypeError, "betas"),
    "betas without axes": ({"betas": torch.tensor(1.0)}, TypeError, "betas .*, got 1.0"),
    "a beta": ({"betas": (0.5, -0.1)}, ValueError, r"betas\[1\]"),
    "no betas": ({"betas": (0.0, 0.0)}, ValueError, "not all be 0"),
    "normalize": ({"normalize": "clip"}, ValueError, "normalize.*'relu'"),
    "pooling": ({"pooling": "max"}, ValueError, "pooling.*'edge'"),
    "reduction": ({"reduction": "none"}, ValueError, "reduction.*'none'"),
    "channel": ({"reduction": "channel", "per_channel": False}, ValueError, "reduction"),
    "per_channel": ({"per_channel": 1}, TypeError, "per_channel"),
    "spatial_dims": ({"spatial_dims": 1}, ValueError, "spatial_dims"),
    "window": ({"window_size": 4}, ValueError, "window_size"),
    "window for three axes": ({"window_size": (3, 3, 3)}, ValueError, "3 axes"),
}


@both_paths
@pytest.mark.parametrize("name", BAD)
def test_bad_settings(path, name):
    settings, error, message = BAD[name]
    with pytest.raises(error, match=message):
        PATHS[path].ms_ssim_loss(*pictures((1, 1, 200, 200)), **settings)


@both_paths
def test_bad_images(path):
    x, y = pictures((1, 1, 200, 200))
    with pytest.raises(ValueError, match=r"\(1, 1, 200, 200\) and \(1, 1, 200, 199\)"):
        PATHS[path].ms_ssim_loss(x, y[..., 1:])
    with pytest.raises(TypeError, match="NoneType"):
        PATHS[path].ms_ssim_loss(x, None)


@both_paths
@pytest.mark.parametrize("length", [20, 200])
def test_a_wrong_rank_is_told_before_the_size(path, length):
    loss, ssim_loss = PATHS[path].ms_ssim_loss, PATHS[path].ssim_loss
    for rank, spatial_dims in ((2, None), (6, None), (5, 2), (3, 3)):
        image = torch.rand(*(1,) * (rank - 2), length, length)
        with pytest.raises(ValueError, match="images must be") as expected:
            ssim_loss(image, image, spatial_dims=spatial_dims)
        with pytest.raises(ValueError, match="images must be") as told:
            loss(image, image, spatial_dims=spatial_dims)
        assert str(told.value) == str(expected.value)


def test_the_default_needs_176():
    with pytest.raises(ValueError, match="at least 176 x 176, got 175 x 200"):
        ssim_fused.MSSSIMLoss()(*pictures((1, 1, 175, 200)))
    assert ssim_fused.MSSSIMLoss()(*pictures((1, 1, 176, 176))).isfinite()
