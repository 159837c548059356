"""Programs that hold the loss: compiled, exported and traced ones, and their gradients."""

from __future__ import annotations

import io
import itertools
import warnings

import pytest
import torch
from tables import pictures
from torch import func
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

from ssim_fused import (
    CVAELoss,
    PhotometricLoss,
    _paths,
    image_loss,
    ms_ssim_loss,
    ssim_loss,
)

native = pytest.mark.skipif(
    _paths.cpu_reason is not None, reason=f"no native library: {_paths.cpu_reason}"
)
SHAPE = (2, 2, 13, 14)
MASK = pictures((2, 1, 13, 14))[0] > 0.3
WEIGHT = pictures(SHAPE, seed=3)[0] + 0.5


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()


# ---- torch.func inside torch.compile ----

LOSSES = {
    "mean": ssim_loss,
    "image": lambda x, y: ssim_loss(x, y, reduction="image").sum(),
    "photometric": PhotometricLoss(),
    "ms_ssim": lambda x, y: ms_ssim_loss(x, y, window_size=3, betas=(0.5, 0.5)),
}
TRANSFORMS = {
    "grad": func.grad,
    "grad of both": lambda loss: func.grad(loss, (0, 1)),
    "grad_and_value": func.grad_and_value,
    "vjp": lambda loss: lambda x, y: func.vjp(loss, x, y)[1](torch.tensor(0.7)),
    "jvp": lambda loss: lambda x, y: func.jvp(loss, (x, y), (y, x)),
    "per sample": lambda loss: lambda x, y: func.vmap(
        lambda a, b: func.grad(loss)(a[None], b[None])
    )(x, y),
    "hessian-vector": lambda loss: lambda x, y: func.grad(
        lambda a: (func.grad(loss)(a, y) * y).sum()
    )(x),
}


@pytest.mark.parametrize(
    ("loss", "transform"),
    [*itertools.product(LOSSES, ["grad", "jvp"]), *itertools.product(["mean"], TRANSFORMS)],
)
def test_transforms_are_the_same_where_they_are_compiled(loss, transform):
    compute = TRANSFORMS[transform](LOSSES[loss])
    x, y = pictures(SHAPE)
    found, expected = torch.compile(compute, backend="eager")(x, y), compute(x, y)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)
    first = expected[0] if isinstance(expected, tuple) else expected
    assert first.abs().max() > 0


@pytest.mark.parametrize("loss", LOSSES)
def test_forward_mode_through_a_compiled_loss(loss):
    x, y = pictures(SHAPE)
    compiled = torch.compile(LOSSES[loss], backend="eager")
    compiled(x, y)
    tangents = []
    for compute in (compiled, LOSSES[loss]):
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x, y)
            tangents.append(forward_ad.unpack_dual(compute(dual, y)).tangent)
    assert tangents[0] is not None
    torch.testing.assert_close(*tangents, rtol=1e-4, atol=1e-7)


# ---- programs that were recorded ----


class Model(torch.nn.Module):
    """Two parameters, and a loss of what they make."""

    def __init__(self, loss, dtype=torch.float32):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(0.9, dtype=dtype))
        self.shift = torch.nn.Parameter(torch.tensor(0.05, dtype=dtype))
        self.loss = loss

    def forward(self, x, y):
        return self.loss(self.gain * x + self.shift, y)


def cvae(x, y):
    return CVAELoss(0.5, 1e-2)(x, y, x.mean((2, 3)), y.mean((2, 3)))


RECORDED = {
    **LOSSES,
    "sum": lambda x, y: ssim_loss(x, y, reduction="sum"),
    "channel": lambda x, y: ssim_loss(x, y, reduction="channel")[0].sum(),
    "map": lambda x, y: ssim_loss(x, y, reduction="none").square().mean(),
    "valid": lambda x, y: ssim_loss(x, y, padding="valid", window_size=5),
    "reflect": lambda x, y: ssim_loss(x, y, padding="reflect", window_size=5),
    "mask": lambda x, y: ssim_loss(x, y, mask=MASK),
    "masked images": lambda x, y: ssim_loss(x, y, mask=MASK, reduction="image").sum(),
    "weight": lambda x, y: ssim_loss(x, y, weight=WEIGHT),
    "weighted images": lambda x, y: ssim_loss(x, y, weight=WEIGHT, reduction="image").sum(),
    "terms": lambda x, y: image_loss(x, y, ssim=0.3, mse=0.5, l1=2.0),
    "contrast": lambda x, y: ssim_loss(x, y, term="contrast_structure"),
    "cvae": cvae,
}


def export(model, images):
    return torch.export.export(model, images).module()


def export_strictly(model, images):
    return torch.export.export(model, images, strict=True).module()


def export_for_inference(model, images):
    return torch.export.export(model, images).run_decompositions().module()


def save_and_load(model, images):
    file = io.BytesIO()
    torch.export.save(torch.export.export(model, images), file)
    file.seek(0)
    return torch.export.load(file).module()


def trace(model, images):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of shapes, which a trace keeps; that it is deprecated
        return torch.jit.trace(model, images)


EACH_OPERATOR = ["mean", "map", "image", "ms_ssim", "terms", "mask"]
RECORDINGS = [
    *itertools.product((export, trace), RECORDED),
    *itertools.product((export_strictly, export_for_inference, save_and_load), EACH_OPERATOR),
]


def step(module, x, y):
    """Value and gradients of a module that has the parameters of Model."""
    for parameter in module.parameters():
        parameter.grad = None
    loss = module(x, y)
    loss.backward()
    return [loss.detach(), *(parameter.grad for parameter in module.parameters())]


@pytest.mark.parametrize(("record", "loss"), RECORDINGS, ids=lambda v: getattr(v, "__name__", v))
def test_a_recorded_model_trains_as_the_model_does(record, loss):
    x, y = pictures(SHAPE)
    model = Model(RECORDED[loss])
    program = record(model, (x, y))
    other = pictures(SHAPE, seed=7)
    found, expected = step(program, *other), step(model, *other)
    assert all(grad.abs() > 0 for grad in expected[1:])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


def whole(program, images):
    return make_fx(program)(*images)


# without inputs that require a gradient, the value alone is recorded; later ones may require one
@pytest.mark.parametrize("loss", EACH_OPERATOR)
@pytest.mark.parametrize("record", [export, trace, whole], ids=lambda f: f.__name__)
@pytest.mark.parametrize("wanted", [(1,), (0, 1)], ids=str)
def test_gradients_that_were_not_asked_for_when_it_was_recorded(record, loss, wanted):
    class Loss(torch.nn.Module):
        def forward(self, x, y):
            return RECORDED[loss](x, y)

    program = record(Loss(), pictures(SHAPE))
    results = []
    for compute in (program, Loss()):
        images = [image.requires_grad_(i in wanted) for i, image in enumerate(pictures(SHAPE))]
        compute(*images).backward()
        results.append([image.grad for image in images if image.requires_grad])
    assert all(grad.abs().max() > 0 for grad in results[1])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("loss", ["mean", "map", "ms_ssim"])
def test_other_types(loss, dtype):
    images = pictures(SHAPE, dtype)
    model = Model(RECORDED[loss], dtype)
    found, expected = step(export(model, images), *images), step(model, *images)
    assert [t.dtype for t in found] == [t.dtype for t in expected]
    rtol = 2e-2 if dtype != torch.float64 else 1e-9
    torch.testing.assert_close(found, expected, rtol=rtol, atol=1e-6)


@pytest.mark.parametrize("loss", ["mean", "map", "ms_ssim"])
def test_an_exported_model_can_be_compiled(loss):
    x, y = pictures(SHAPE)
    model = Model(RECORDED[loss])
    compiled = torch.compile(export(model, (x, y)), backend="aot_eager")
    torch.testing.assert_close(step(compiled, x, y), step(model, x, y), rtol=1e-4, atol=1e-7)


@native
def test_second_derivatives_of_a_recorded_loss_are_refused():
    for loss, wanted in itertools.product(("mean", "map", "ms_ssim"), (True, False)):
        x, y = pictures(SHAPE)
        program = export(Model(RECORDED[loss]), (x.clone().requires_grad_(wanted), y))
        x.requires_grad_()
        (grad,) = torch.autograd.grad(program(x, y), x, create_graph=True)
        with pytest.raises(NotImplementedError, match="no second derivatives"):
            grad.sum().backward()
