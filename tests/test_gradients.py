"""gradcheck, second derivatives, opcheck, torch.compile."""

from __future__ import annotations

import pytest
import torch
from tables import pictures, relative_error
from torch import func
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

import ssim_fused
from ssim_fused import _paths, reference
from ssim_fused._request import KINDS, MEAN, PLANE, SUM, accumulate_dtype
from ssim_fused._windows import gaussian_window

native = pytest.mark.skipif(
    _paths.cpu_reason is not None, reason=f"no native library: {_paths.cpu_reason}"
)
REDUCTIONS = ["mean", "sum", "image", "channel", "none"]
WINDOW = gaussian_window(11, 1.5)


def small(needs=(True, True)):
    x, y = pictures((2, 1, 5, 6), torch.float64)
    return x.requires_grad_(needs[0]), y.requires_grad_(needs[1])


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("needs", [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_gradcheck(reduction, needs, padding):
    def loss(x, y):
        return ssim_fused.ssim_loss(x, y, window_size=5, padding=padding, reduction=reduction)

    assert torch.autograd.gradcheck(loss, small(needs))


@pytest.mark.parametrize(
    ("reduction", "needs"),
    [
        *((reduction, (True, True)) for reduction in REDUCTIONS),
        *(
            (reduction, needs)
            for reduction in ("mean", "none")
            for needs in [(True, False), (False, True)]
        ),
    ],
)
def test_gradgradcheck(reduction, needs):
    def loss(x, y):
        return ssim_fused.ssim_loss(x, y, window_size=3, reduction=reduction)

    assert torch.autograd.gradgradcheck(loss, small(needs))


def test_double_backward_of_one_tensor_in_both_places():
    x = small()[0]

    def penalty(function):
        loss = function.ssim_loss(x, x.square(), window_size=3)
        (grad,) = torch.autograd.grad(loss, x, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), x)[0]

    torch.testing.assert_close(penalty(ssim_fused), penalty(reference), rtol=1e-9, atol=1e-12)


def test_third_derivative():
    x, y = small((True, False))

    def third(function):
        value = function.ssim_loss(x, y, window_size=3)
        for _ in range(3):
            (value,) = torch.autograd.grad(value.square().sum(), x, create_graph=True)
        return value

    torch.testing.assert_close(third(ssim_fused), third(reference), rtol=1e-8, atol=1e-12)


# each goes through a gradient of torch.func, and depends on w, which lies outside of that
NESTED = {
    "value of a finished transform": lambda loss, x, w: torch.autograd.grad(
        func.grad_and_value(lambda a: loss(a, w * 1))(x)[1], w
    )[0],
    "the other place": lambda loss, x, w: torch.autograd.grad(
        func.grad_and_value(lambda a: loss(w * 1, a))(x)[1], w
    )[0],
    "second order": lambda loss, x, w: torch.autograd.grad(
        func.grad(lambda a: loss(a, w * 1))(x).square().sum(), w
    )[0],
    "value inside another transform": lambda loss, x, w: func.grad(
        lambda u: func.grad_and_value(lambda a: loss(a, u * 1))(x)[1]
    )(w.detach()),
    "second order inside another transform": lambda loss, x, w: func.grad(
        lambda u: func.grad(lambda a: loss(a, u * 1))(x).square().sum()
    )(w.detach()),
    "pulled back later": lambda loss, x, w: func.vjp(lambda a: loss(a, w), x)[1](
        torch.ones((), dtype=x.dtype)
    )[0],
    "jacrev": lambda loss, x, w: func.jacrev(lambda a: loss(a, w))(x),
    "jacrev of jacrev": lambda loss, x, w: func.jacrev(
        lambda u: func.jacrev(lambda a: loss(a, u))(x).square().sum()
    )(w.detach()),
}
NESTED_LOSSES = {
    "mean": lambda module: module.ssim_loss,
    "map": lambda module: lambda x, y: module.ssim_loss(x, y, reduction="none").mean(),
    "reflect": lambda module: lambda x, y: module.ssim_loss(x, y, padding="reflect"),
    "ms-ssim": lambda module: lambda x, y: module.ms_ssim_loss(
        x, y, window_size=3, betas=(0.5, 0.5)
    ),
}


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("loss", NESTED_LOSSES.values(), ids=NESTED_LOSSES)
@pytest.mark.parametrize("compute", NESTED.values(), ids=NESTED)
def test_transforms_inside_others(compute, loss):
    x, w = pictures((1, 1, 14, 15), torch.float64)
    made, true = (
        compute(loss(module), x, w.clone().requires_grad_()) for module in (ssim_fused, reference)
    )
    assert true.norm() > 0
    torch.testing.assert_close(made, true, rtol=1e-9, atol=1e-12)


def settings_arguments(valid=False, kind="ssim"):
    return (WINDOW, (len(WINDOW),), 1.0, 0.01, 0.03, valid, KINDS.index(kind))


@native
@pytest.mark.parametrize(
    ("dtype", "valid"),
    [(torch.float32, False), (torch.float64, True), (torch.bfloat16, False)],
    ids=str,
)
def test_opcheck(dtype, valid):
    x, y = pictures((2, 3, 20, 24), dtype)
    last = [t.contiguous(memory_format=torch.channels_last) for t in (x, y)]
    ops, settings = torch.ops.ssim_fused, settings_arguments(valid)
    for a, b in ((x, y), last):
        for reduction, term_weights, grads in (
            (MEAN, (), (True, False)),
            (MEAN, (1.0, 0.5, 0.2), (True, True)),
            (SUM, (), (True, True)),
            (PLANE, (), (False, False)),
        ):
            arguments = (a, b, None, None, None, *settings, reduction, term_weights)
            torch.library.opcheck(ops.loss.default, arguments)
            if any(grads):
                torch.library.opcheck(ops.loss_and_gradients.default, (*arguments, *grads))
        torch.library.opcheck(ops.loss_map.default, (a, b, None, None, *settings))
        grad_map = ops.loss_map(a, b, None, None, *settings).to(accumulate_dtype(a))
        for grads in ((True, False), (False, True), (True, True)):
            arguments = (grad_map, a, b, None, None, *settings, *grads)
            torch.library.opcheck(ops.loss_backward.default, arguments)
            torch.library.opcheck(ops.loss_and_pool.default, (a, b, (0, 0), *settings, *grads))


@native
@pytest.mark.parametrize("size", [(20, 24), (12, 14, 13)])
def test_opcheck_of_masks_weights_and_volumes(size):
    x, y = pictures((2, 3, *size[-2:]))
    if len(size) == 3:
        x, y = (image[:, :, None].expand(2, 3, *size).contiguous() for image in (x, y))
    mask = (torch.rand(2, 1, *size, generator=torch.Generator().manual_seed(0)) > 0.2).float()
    beside = (torch.rand_like(x), mask.expand_as(x), torch.rand_like(x))
    ops, settings = torch.ops.ssim_fused, settings_arguments()
    for kind in ("contrast_structure", "luminance", "nonnegative"):
        settings = settings_arguments(kind=kind)
        arguments = (x, y, *beside, *settings, SUM, ())
        torch.library.opcheck(ops.loss.default, arguments)
        torch.library.opcheck(ops.loss_and_gradients.default, (*arguments, True, True))
    torch.library.opcheck(ops.loss_map.default, (x, y, *beside[1:], *settings))
    arguments = (beside[0], x, y, *beside[1:], *settings, True, True)
    torch.library.opcheck(ops.loss_backward.default, arguments)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_compile_without_a_graph_break(reduction):
    torch._dynamo.reset()

    def step(x, y):
        return ssim_fused.ssim_loss(x * 1.0, y, reduction=reduction).square().sum()

    compiled = torch.compile(step, fullgraph=True)
    for shape in ((2, 1, 20, 24), (1, 2, 33, 17)):
        x, y = pictures(shape)
        x.requires_grad_()
        expected, found = step(x, y), compiled(x, y)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
        (expected_grad,) = torch.autograd.grad(expected, x)
        (found_grad,) = torch.autograd.grad(found, x)
        torch.testing.assert_close(found_grad, expected_grad, rtol=1e-4, atol=1e-7)


def test_compile_the_modules():
    torch._dynamo.reset()
    criterion = ssim_fused.CVAELoss(return_terms=True)
    compiled = torch.compile(criterion, fullgraph=True)
    x, y = pictures((2, 1, 28, 28))
    mu, logvar = torch.randn(2, 8), torch.randn(2, 8)
    for found, expected in zip(compiled(x, y, mu, logvar), criterion(x, y, mu, logvar)):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.torch.jit.trace")
@pytest.mark.parametrize(
    "trace",
    [torch.jit.trace, lambda function, images: make_fx(function)(*images)],
    ids=["torch.jit.trace", "make_fx"],
)
def test_a_trace_holds_for_other_images(trace):
    """MS-SSIM of near images has a shorter way, which inverted ones cannot go."""

    def loss(x, y):
        return ssim_fused.ms_ssim_loss(x, y, window_size=3)

    x, y = pictures((1, 1, 48, 52))
    assert loss(x, y) < 0.5
    assert loss(x, 1 - x) > 1
    torch.testing.assert_close(trace(loss, (x, y))(x, 1 - x), loss(x, 1 - x))


@pytest.mark.parametrize("loss", [ssim_fused.ssim_loss, ssim_fused.ms_ssim_loss])
def test_a_gradient_can_be_traced(loss):
    def gradient(x, y):
        return torch.autograd.grad(loss(x, y, window_size=3), x)[0]

    x, y = pictures((1, 1, 48, 52))
    x.requires_grad_()
    traced = make_fx(gradient)(x, y)
    torch.testing.assert_close(traced(x, 1 - y), gradient(x, 1 - y))


def test_saved_tensors_that_hooks_keep_are_not_written_to():
    x, y = pictures((1, 1, 48, 52))
    x.requires_grad_()
    packed = []

    def pack(tensor):
        packed.append((tensor, tensor.clone()))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = ssim_fused.ssim_loss(x, y) + ssim_fused.ms_ssim_loss(x, y, window_size=3)
    (3 * loss).backward()
    assert packed
    assert all(torch.equal(tensor, copy) for tensor, copy in packed)


def test_autocast_gives_float32():
    x, y = pictures((1, 1, 30, 30))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = x.bfloat16().requires_grad_()
        loss = ssim_fused.ssim_loss(half, y.bfloat16())
        assert loss.dtype == torch.float32
        mixed = ssim_fused.ssim_loss(half, y)  # network output against float32 data
        assert mixed.dtype == torch.float32
    mixed.backward()
    assert half.grad.dtype == torch.bfloat16
    assert torch.isfinite(half.grad).all()
    assert half.grad.abs().max() > 0


def test_float16_gradient_of_a_mean_does_not_underflow():
    x, y = pictures((4, 3, 128, 128), torch.float16, noise=0.01)
    scale = 2.0**16
    with torch.autocast("cpu", dtype=torch.float16):
        half = x.clone().requires_grad_()
        (ssim_fused.ssim_loss(half, y) * scale).backward()
    true = x.double().requires_grad_()
    (reference.ssim_loss(true, y.double()) * scale).backward()
    error = (half.grad.double() - true.grad).norm() / true.grad.norm()
    assert error < 2**-9


def test_float16_gradient_of_heavy_terms_does_not_overflow():
    x, y = pictures((1, 3, 64, 64), torch.float16)
    grads = []
    for dtype in (torch.float16, torch.float64):
        image = x.detach().to(dtype).requires_grad_()
        with torch.autocast("cpu", dtype=torch.float16, enabled=dtype == torch.float16):
            loss = ssim_fused.image_loss(image, y.to(dtype), ssim=1.0, mse=1e6)
        loss.backward()
        grads.append(image.grad)
    assert relative_error(*grads) < 1e-2


@native
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_which_transforms_call_the_native_operator():
    """As docs/gradients.md has them."""
    names = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function.namespace == "ssim_fused":
                names.append(function.__name__)
            return function(*args, **kwargs or {})

    def called(compute):
        names.clear()
        with Watch():
            compute()
        return list(names)

    x, y = (image.detach().float() for image in small())
    loss = ssim_fused.ssim_loss
    each = lambda x: loss(x, y, reduction="image")  # noqa: E731
    assert called(lambda: func.vmap(loss)(x, y)) == []
    assert called(lambda: func.vmap(func.grad(loss))(x, y)) == []
    assert called(lambda: func.jacfwd(each)(x)) == []
    assert called(lambda: func.grad(loss)(x, y)) == ["loss_and_gradients.default"]
    assert called(lambda: func.jacrev(each)(x)) == ["loss.default", *["loss_backward.default"] * 2]
