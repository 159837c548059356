"""Value and gradient of every path against the textbook formula in float64."""

from __future__ import annotations

import pytest
import torch
from tables import (
    MAP_TOLERANCE,
    SHAPES,
    TOLERANCE,
    WINDOWS,
    oracle_map,
    pictures,
    reduce,
    relative_error,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import ssim_fused
from ssim_fused import _ops, _paths, reference

PATHS = {"fused": ssim_fused, "reference": reference}
REDUCTIONS = ["mean", "sum", "image", "none"]


def check(path, x, y, window, padding, reduction, tolerance=None, seed=0):
    """Value, and both gradients for a non-uniform upstream gradient, against the oracle."""
    size, sigma = window
    value_tol, grad_tol = tolerance or TOLERANCE[x.dtype]
    if reduction == "none":
        value_tol = MAP_TOLERANCE.get(x.dtype, value_tol)
    true_x, true_y = (t.detach().double().requires_grad_() for t in (x, y))
    true = reduce(1 - oracle_map(true_x, true_y, window, padding), reduction)
    weight = torch.rand(true.shape, generator=torch.Generator().manual_seed(seed)).double() + 0.5
    weight = weight.to(x.dtype).double()
    true_grads = torch.autograd.grad(true, (true_x, true_y), weight)

    settings = dict(window_size=size, sigma=sigma, padding=padding, reduction=reduction)
    loss = PATHS[path].ssim_loss(x, y, **settings)
    assert loss.shape == true.shape
    assert loss.dtype == x.dtype
    assert relative_error(loss.detach(), true.detach()) <= value_tol
    ssim = PATHS[path].ssim(x, y, **settings)
    true_ssim = reduce(oracle_map(true_x, true_y, window, padding), reduction)
    assert relative_error(ssim.detach(), true_ssim.detach()) <= 2 * value_tol

    # to either image alone, and to both
    for wanted in ([0], [1], [0, 1]):
        images = [(x, y)[i].detach().requires_grad_(i in wanted) for i in (0, 1)]
        loss = PATHS[path].ssim_loss(*images, **settings)
        grads = torch.autograd.grad(loss, [images[i] for i in wanted], weight.to(loss.dtype))
        for i, grad in zip(wanted, grads):
            assert grad.shape == x.shape
            assert grad.dtype == x.dtype
            assert relative_error(grad, true_grads[i]) <= grad_tol, f"gradient to image {i}"


def fits(shape, window, padding):
    return padding == "same" or min(shape[-2:]) >= window[0]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_shapes(path, reduction, padding, shape, dtype):
    if not fits(shape, (11, 1.5), padding):
        pytest.skip("the window does not fit: an error, see test_bad_input")
    check(path, *pictures(shape, dtype), (11, 1.5), padding, reduction)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("window", WINDOWS[1:], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_windows(path, padding, window, dtype):
    # a window of one pixel has no variance: what is left of the contrast's gradient is the rounding
    # error of two equal terms of size 1 / C2, about 1000 times the luminance's
    tolerance = (2e-6, 1e-4) if window[0] == 1 and dtype == torch.float32 else None
    for reduction in ("mean", "none"):
        check(path, *pictures((2, 2, 40, 53), dtype), window, padding, reduction, tolerance)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(path, reduction, dtype):
    x, y = pictures((2, 3, 50, 70), dtype)
    # the sum of 10,500 values is within float16's range
    check(path, x, y, (11, 1.5), "same", reduction)


def layouts(image):
    """The same picture in every layout that users have."""
    wide = torch.zeros(*image.shape[:-1], 2 * image.shape[-1], dtype=image.dtype)
    wide[..., ::2] = image
    yield "contiguous", image.contiguous()
    yield "channels_last", image.contiguous(memory_format=torch.channels_last)
    yield "every other column", wide[..., ::2]
    yield "transposed", image.mT.contiguous().mT
    yield "batch and channel swapped", image.transpose(0, 1).contiguous().transpose(0, 1)
    yield "inside a larger picture", torch.nn.functional.pad(image, (3, 5, 2, 1))[..., 2:-1, 3:-5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_layouts_give_bitwise_the_same(dtype):
    x, y = pictures((2, 3, 45, 70), dtype)
    results = {}
    for (name, a), (_, b) in zip(layouts(x), layouts(y)):
        for mixed, other in (("", b), (" against contiguous", y)):
            a_ = a.detach().requires_grad_()
            for reduction in ("mean", "none"):
                loss = ssim_fused.ssim_loss(a_, other, reduction=reduction)
                (grad,) = torch.autograd.grad(loss, a_, torch.ones_like(loss))
                results[name + mixed, reduction] = (loss.detach(), grad)
    for (name, reduction), (loss, grad) in results.items():
        expected_loss, expected_grad = results["contiguous", reduction]
        assert torch.equal(loss, expected_loss), name
        assert torch.equal(grad, expected_grad), name


def test_the_gradient_keeps_channels_last():
    x, y = (t.contiguous(memory_format=torch.channels_last) for t in pictures((2, 3, 32, 32)))
    x.requires_grad_()
    ssim_fused.ssim_loss(x, y).backward()
    assert x.grad.is_contiguous(memory_format=torch.channels_last)


def test_expanded_images_and_gradients():
    x, y = pictures((1, 1, 30, 40), torch.float64)
    many = x.expand(3, 2, 30, 40)
    loss = ssim_fused.ssim_loss(many, y.expand(3, 2, 30, 40), reduction="none")
    single = ssim_fused.ssim_loss(x, y, reduction="none")
    # the fallback's convolutions are not the same for every size of a batch, to the last digit
    digits = 0.0 if _paths.cpu_reason is None else 1e-12
    torch.testing.assert_close(loss, single.expand_as(loss), rtol=digits, atol=digits)
    # sum() sends an expanded gradient, all strides zero
    x.requires_grad_()
    ssim_fused.ssim_loss(x, y, reduction="none").sum().backward()
    (expected,) = torch.autograd.grad(ssim_fused.ssim_loss(x, y, reduction="sum"), x)
    torch.testing.assert_close(x.grad, expected, rtol=1e-12, atol=1e-15)


def test_both_arguments_one_tensor():
    x = pictures((1, 2, 30, 40), torch.float64)[0].requires_grad_()
    loss = ssim_fused.ssim_loss(x, x)
    assert loss.item() == 0.0
    loss.backward()
    assert torch.count_nonzero(x.grad) == 0


def test_one_image_without_a_batch():
    x, y = pictures((1, 3, 30, 40))
    for reduction in REDUCTIONS:
        one = ssim_fused.ssim_loss(x[0], y[0], reduction=reduction)
        batch = ssim_fused.ssim_loss(x, y, reduction=reduction)
        expected = batch[0] if reduction in ("image", "none") else batch
        assert one.shape == expected.shape
        assert torch.equal(one, expected)


@pytest.mark.parametrize("function", [ssim_fused.ssim_loss, ssim_fused.ms_ssim_loss])
def test_backward_twice_and_scaled(function):
    x, y = pictures((1, 1, 180, 190))
    x.requires_grad_()
    loss = function(x, y)
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    (second,) = torch.autograd.grad(loss * 4, x, retain_graph=True)
    (third,) = torch.autograd.grad(loss, x, retain_graph=True)
    (fourth,) = torch.autograd.grad(loss * 4, x)
    torch.testing.assert_close(second, 4 * first, rtol=1e-6, atol=0)
    assert torch.equal(third, first)
    assert torch.equal(fourth, second)


class Recorded(TorchDispatchMode):
    """Operators as a CUDA graph has them: the same again, in the same memory."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, operator, types, arguments=(), named=None):
        result = operator(*arguments, **(named or {}))
        self.calls.append((operator, arguments, named or {}, result))
        return result

    def replay(self):
        with torch.no_grad():
            for operator, arguments, named, result in self.calls:
                made = tree_leaves(operator(*arguments, **named))
                for old, new in zip(tree_leaves(result), made, strict=True):
                    if old is not new and old is not None:
                        old.copy_(new)


@pytest.mark.parametrize("function", [ssim_fused.ssim_loss, ssim_fused.ms_ssim_loss])
def test_a_backward_recorded_by_itself_is_replayed(function, monkeypatch):
    """As torch.cuda.make_graphed_callables has it, whatever the user retains."""
    x, y = pictures((1, 1, 180, 190))
    x.requires_grad_()
    (expected,) = torch.autograd.grad(function(x, y), x, torch.tensor(0.5))
    monkeypatch.setattr(_ops, "is_captured", lambda tensor: True)
    with Recorded() as forward:
        loss = function(x, y)
    with Recorded() as backward:
        (gradient,) = torch.autograd.grad(loss, x, torch.tensor(0.5))
    forward.replay()
    for _ in range(2):
        backward.replay()
        torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_gradients_accumulate(weight):
    x, y = pictures((1, 1, 30, 40))
    x.requires_grad_()
    (weight * ssim_fused.ssim_loss(x, y)).backward()
    once = x.grad.clone()
    (weight * ssim_fused.ssim_loss(x, y)).backward()
    torch.testing.assert_close(x.grad, 2 * once, rtol=1e-6, atol=0)
    # the same picture in two losses of one graph
    x.grad = None
    (weight * (ssim_fused.ssim_loss(x, y) + ssim_fused.ssim_loss(y, x))).backward()
    assert relative_error(x.grad, 2 * once) < 1e-6


@pytest.mark.parametrize("data_range", [1e-6, 1.0, 2.0, 255.0, 65535.0])
def test_data_range_only_scales(data_range):
    x, y = pictures((1, 2, 40, 50), torch.float64)
    x32 = (x * data_range).float().requires_grad_()
    y32 = (y * data_range).float()
    true = (1 - oracle_map(x32.detach().double(), y32.double(), data_range=data_range)).mean()
    loss = ssim_fused.ssim_loss(x32, y32, data_range=data_range)
    assert relative_error(loss.detach(), true) < 2e-6
    (grad,) = torch.autograd.grad(loss, x32)
    true_x = x32.detach().double().requires_grad_()
    true = (1 - oracle_map(true_x, y32.double(), data_range=data_range)).mean()
    assert relative_error(grad, torch.autograd.grad(true, true_x)[0]) < 2e-5


def test_nan_and_infinity_stay_in_their_windows():
    x, y = pictures((1, 1, 60, 60))
    for bad in (float("nan"), float("inf"), -float("inf")):
        broken = x.clone()
        broken[0, 0, 30, 30] = bad  # the centre: the pixel that would serve as pivot
        assert torch.isnan(ssim_fused.ssim_loss(broken, y))
        loss = ssim_fused.ssim_loss(broken, y, reduction="none")
        hit = torch.zeros(60, 60, dtype=torch.bool)
        hit[25:36, 25:36] = True
        assert torch.equal(torch.isnan(loss[0, 0]), hit)
        broken.requires_grad_()
        ssim_fused.ssim_loss(broken, y).backward()  # neither crashes nor hangs
        assert torch.isnan(broken.grad).any()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("constant", "undefined"), [("k1", [0.0]), ("k2", [0.0, 0.5])])
def test_flat_images_have_no_value_without_a_constant(path, constant, undefined):
    """As the documentation of k1 and k2 says."""
    for value in (0.0, 0.5):
        image = torch.full((1, 1, 16, 16), value)
        loss = PATHS[path].ssim_loss(image, image.clone(), **{constant: 0})
        assert loss.isnan() if value in undefined else loss == 0
    image = torch.rand(1, 1, 16, 16) + 0.1
    assert PATHS[path].ssim_loss(image, image.clone(), **{constant: 0}) == 0
