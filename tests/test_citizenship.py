"""What PyTorch does to functions and modules: tracing, transforms, copies, contexts, subclasses."""

from __future__ import annotations

import copy
import functools
import io
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tables import pictures
from test_gradients import native, settings_arguments
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint

import ssim_fused
from ssim_fused import _paths, reference
from ssim_fused._checks import PADDINGS

func = torch.func
ssim_loss, image_loss = ssim_fused.ssim_loss, ssim_fused.image_loss
multiscale = functools.partial(ssim_fused.ms_ssim_loss, window_size=3, betas=(0.4, 0.6))


def _settings(**settings):
    return lambda x, y, m: ssim_loss(x, y, **settings)


# name -> any public function of two images and a mask; differentiable in both images but for psnr
FUNCTIONS = {
    **{name: _settings(reduction=name) for name in ("mean", "sum", "image", "channel", "none")},
    **{name: _settings(padding=name) for name in ("valid", "reflect", "replicate", "circular")},
    "uniform": _settings(window="uniform", window_size=(3, 5), sample_covariance=True),
    "own_window": _settings(window=[0.25, 0.5, 0.25], term="contrast_structure"),
    "nonnegative": _settings(nonnegative_ssim=True),
    "mask": lambda x, y, m: ssim_loss(x, y, mask=m),
    "mask_of_each": lambda x, y, m: ssim_loss(x, y, mask=m.float(), reduction="image"),
    "mask_and_map": lambda x, y, m: ssim_loss(x, y, mask=m, padding="reflect", reduction="none"),
    "weight": lambda x, y, m: ssim_loss(x, y, weight=m.float()),
    "volumes": lambda x, y, m: ssim_loss(x[:, :, None], y[:, :, None], window_size=3),
    "signals": lambda x, y, m: ssim_loss(x[:, :, 0], y[:, :, 0], spatial_dims=1),
    "ssim": lambda x, y, m: sum(ssim_fused.ssim(x, y, return_cs=True)),
    "dssim": lambda x, y, m: ssim_fused.dssim(x, y),
    "psnr": lambda x, y, m: ssim_fused.psnr(x, y),
    "image_loss": lambda x, y, m: image_loss(x, y, mse=1.0, l1=0.5),
    "masked_terms": lambda x, y, m: image_loss(x, y, mse=1.0, l1=0.5, mask=m),
    "photometric": lambda x, y, m: ssim_fused.PhotometricLoss()(x, y, mask=m),
    "cvae": lambda x, y, m: ssim_fused.CVAELoss(beta=0)(x, y, x, y),
    "scales": lambda x, y, m: multiscale(x, y),
    "scales_edges": lambda x, y, m: multiscale(x, y, padding="reflect", pooling="edge"),
    "reference": lambda x, y, m: reference.ssim_loss(x, y, mask=m),
}
all_functions = pytest.mark.parametrize("name", FUNCTIONS)
CLOSE = {"rtol": 1e-8, "atol": 1e-12}


def images(shape=(3, 2, 14, 15), dtype=torch.float64):
    x, y = pictures(shape, dtype)
    return x, y, torch.rand(shape, generator=torch.Generator().manual_seed(1)) > 0.2


def value_and_grad(function, x, *others):
    x = x.detach().clone().requires_grad_()
    value = function(x, *others)
    value.sum().backward()
    return value.detach(), x.grad


# ---- tensors without values ----


@native
@pytest.mark.parametrize("kind", ["contrast_structure", "luminance", "nonnegative"])
@pytest.mark.parametrize("offset", [(0, 0), (1, 0), (1, 1)])
def test_opcheck_of_halved_images(kind, offset):
    x, y = pictures((2, 3, 21, 25))
    arguments = (x, y, offset, *settings_arguments(kind=kind))
    for grads in ((False, False), (False, True), (True, True)):
        torch.library.opcheck(torch.ops.ssim_fused.loss_and_pool.default, (*arguments, *grads))
    planes, half, *_, grad = torch.ops.ssim_fused.loss_and_pool(*arguments, True, True)
    for grad_pooled in (half, None):
        arguments = (grad, planes, grad_pooled, offset)
        torch.library.opcheck(torch.ops.ssim_fused.unpool.default, arguments)
        torch.library.opcheck(torch.ops.ssim_fused.unpool_.default, arguments)


@pytest.mark.parametrize("how", ["meta", "fake"])
@all_functions
def test_shapes_without_values(name, how):
    given = images(dtype=torch.bfloat16)
    expected = value_and_grad(FUNCTIONS[name], *given)
    mode = FakeTensorMode() if how == "fake" else torch.device("meta")
    with mode:
        empty = [mode.from_tensor(t) if how == "fake" else t.to("meta") for t in given]
        found = value_and_grad(FUNCTIONS[name], *empty)
    for a, b in zip(found, expected):
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())


# ---- torch.compile and export ----

COMPILED = [
    # inductor: the operators in its graphs, whole and beside generated code
    ("inductor", ["mean", "image", "mask", "image_loss"]),
    # aot_eager: their gradients
    ("aot_eager", ["channel", "none", "weight", "signals", "reflect", "volumes", "cvae"]),
    ("aot_eager", ["scales", "masked_terms", "mask_and_map"]),
    # eager: what only the Python around them tells apart
    ("eager", ["valid", "uniform", "own_window", "replicate", "circular", "photometric"]),
    ("eager", ["scales_edges"]),
]


@pytest.mark.parametrize(("backend", "names"), COMPILED)
def test_compile(backend, names):
    torch._dynamo.reset()

    def step(x, y, mask):
        x = 0.9 * x  # something to fuse with
        return sum(FUNCTIONS[name](x, y, mask).square().sum() for name in names)

    compiled = torch.compile(step, backend=backend, fullgraph=True, dynamic=True)
    for shape, stance in (((4, 2, 40, 44), "default"), ((3, 2, 52, 36), "fail_on_recompile")):
        given = images(shape, torch.float32)
        with torch.compiler.set_stance(stance):
            found = value_and_grad(compiled, *given)
        expected = value_and_grad(step, *given)
        torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", ["mean", "scales"])
def test_one_graph_serves_all_sizes(name):
    torch._dynamo.reset()
    compiled = torch.compile(FUNCTIONS[name], backend="eager", fullgraph=True, dynamic=True)
    stance = "default"
    for size in ((44, 52), (45, 52), (44, 53), (47, 51), (61, 46), (50, 99)):
        given = images((2, 2, *size), torch.float32)
        with torch.compiler.set_stance(stance):
            torch.testing.assert_close(compiled(*given), FUNCTIONS[name](*given))
        stance = "fail_on_recompile"


def test_a_gpus_reason_is_a_constant_of_compiled_code(monkeypatch):
    def read(device):  # what Dynamo cannot trace
        return open(__file__).readline()

    monkeypatch.setattr(_paths, "_find_gpu_reason", read)
    compiled = torch.compile(
        lambda x: x + len(_paths.gpu_reason(0)), backend="eager", fullgraph=True
    )
    assert compiled(torch.zeros(())) == len(read(0))


class Scored(nn.Module):
    """A network that ends in a loss."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(2, 2, 3, padding=1)
        self.criterion = ssim_fused.SSIMLoss()

    def forward(self, x, y, mask=None):
        return self.criterion(self.layer(x), y, mask=mask)


def test_export_and_package(tmp_path):
    model = Scored().eval()
    batch, height = torch.export.Dim("batch", max=64), torch.export.Dim("height", min=12, max=512)
    shapes = ({0: batch, 2: height},) * 3
    example, other = images((2, 2, 16, 20), torch.float32), images((5, 2, 31, 20), torch.float32)
    exported = torch.export.export(model, example, dynamic_shapes=shapes)
    path = torch._inductor.aoti_compile_and_package(exported, package_path=str(tmp_path / "m.pt2"))
    package = torch._inductor.aoti_load_package(path)
    with torch.no_grad():
        expected = model(*other)
        torch.testing.assert_close(exported.module()(*other), expected)
        torch.testing.assert_close(package(*other), expected)


# ---- torch.func ----


def fold(function, *batched):
    return torch.stack([function(*each) for each in zip(*batched)])


@all_functions
def test_func_grad_and_jvp(name):
    function = FUNCTIONS[name]
    x, y, mask = images()
    value, grad = value_and_grad(function, x, y, mask)
    found = func.grad(lambda x: function(x, y, mask).sum())(x)
    torch.testing.assert_close(found, grad, **CLOSE)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=x.dtype)
    same, slope = func.jvp(lambda x: function(x, y, mask).sum(), (x,), (direction,))
    torch.testing.assert_close(same, value.sum(), **CLOSE)
    torch.testing.assert_close(slope, (grad * direction).sum(), **CLOSE)
    with forward_ad.dual_level():
        dual = function(forward_ad.make_dual(x, direction), y, mask).sum()
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, slope, **CLOSE)


@all_functions
def test_vmap_of_values_and_gradients(name):
    function = FUNCTIONS[name]
    x, y, mask = (t.unflatten(0, (2, 2)) for t in images((4, 2, 14, 15)))
    found = func.vmap(function)(x, y, mask)
    torch.testing.assert_close(found, fold(function, x, y, mask), **CLOSE)
    # one target for all of them, and the axis elsewhere
    found = func.vmap(function, in_dims=(1, None, 1), out_dims=-1)(x, y[:, 0], mask)
    expected = fold(lambda x, m: function(x, y[:, 0], m), x.transpose(0, 1), mask.transpose(0, 1))
    torch.testing.assert_close(found.movedim(-1, 0), expected, **CLOSE)

    def summed(x, y, mask):
        return function(x, y, mask).sum()

    expected = fold(lambda *each: value_and_grad(summed, *each)[1], x, y, mask)
    torch.testing.assert_close(func.vmap(func.grad(summed))(x, y, mask), expected, **CLOSE)
    outside = func.grad(lambda x: func.vmap(summed)(x, y, mask).sum())(x)
    torch.testing.assert_close(outside, expected, **CLOSE)


@pytest.mark.parametrize("reduction", ["mean", "image", "none"])
def test_jacobians_and_hessians(reduction):
    x, y, _ = images((2, 1, 4, 5))

    def native_loss(x):
        return ssim_loss(x, y, window_size=3, reduction=reduction).sum(dim=None)

    def plain(x):
        return reference.ssim_loss(x, y, window_size=3, reduction=reduction).sum(dim=None)

    def each(loss):
        return lambda x: loss(x, y, window_size=3, reduction=reduction)

    expected = func.jacfwd(each(reference.ssim_loss))(x)
    torch.testing.assert_close(func.jacrev(each(ssim_loss))(x), expected, **CLOSE)
    found = torch.autograd.functional.jacobian(each(ssim_loss), x, vectorize=True)
    torch.testing.assert_close(found, expected, **CLOSE)
    hessian = func.jacfwd(func.jacrev(plain))(x)
    for transformed in (func.hessian(native_loss), func.jacrev(func.jacrev(native_loss))):
        torch.testing.assert_close(transformed(x), hessian, **CLOSE)


@pytest.mark.parametrize("padding", PADDINGS)
def test_hessians_with_every_border(padding):
    x, y, _ = images((1, 2, 4, 5))

    def loss(x):
        return ssim_loss(x, y, window_size=3, padding=padding)

    expected = func.jacrev(func.jacrev(loss))(x)
    hessian = functools.partial(torch.autograd.functional.hessian, vectorize=True)
    for found in (
        func.hessian(loss)(x),
        func.jacfwd(func.jacfwd(loss))(x),
        hessian(loss, x),
        hessian(loss, x, outer_jacobian_strategy="forward-mode"),
    ):
        torch.testing.assert_close(found, expected, **CLOSE)


def test_per_sample_gradients_of_a_network():
    model = Scored().double()
    x, y, _ = images()
    parameters = dict(model.named_parameters())

    def loss(parameters, x, y):
        return func.functional_call(model, parameters, (x[None], y[None]))

    found = func.vmap(func.grad(loss), (None, 0, 0))(parameters, x, y)
    for i in range(len(x)):
        model.zero_grad()
        model(x[i : i + 1], y[i : i + 1]).backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(found[name][i], parameter.grad, **CLOSE)


def test_an_empty_mask_under_vmap_is_an_error():
    x, y, mask = (t[:, None] for t in images())
    mask[1] = False
    with pytest.raises(ValueError, match="mask"):
        func.vmap(lambda x, y, m: ssim_loss(x, y, mask=m))(x, y, mask)


# ---- copies ----

MODULES = [
    ssim_fused.SSIMLoss(7, window="uniform", padding="reflect"),
    ssim_fused.SSIMLoss(window=torch.tensor([0.25, 0.5, 0.25])),
    ssim_fused.MSSSIMLoss(3, betas=(0.4, 0.6), normalize="relu"),
    ssim_fused.PhotometricLoss(0.3),
    Scored().double(),
]


def saved_and_loaded(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: type(module).__name__)
def test_copies_of_modules(module):
    x, y, _ = images()
    compiled = torch.compile(module, backend="eager")
    compiled(x, y)
    clones = [copy.deepcopy(module), pickle.loads(pickle.dumps(module)), saved_and_loaded(module)]
    clones[0].load_state_dict(module.state_dict())
    clones += [copy.deepcopy(compiled), nn.DataParallel(module)]
    for clone in clones:
        assert torch.equal(clone(x, y), module(x, y))
    assert repr(clones[2]) == repr(module)


# ---- contexts ----


@all_functions
def test_deterministic_mode_has_nothing_to_forbid(name):
    expected = value_and_grad(FUNCTIONS[name], *images())
    torch.use_deterministic_algorithms(True)
    try:
        found = value_and_grad(FUNCTIONS[name], *images())
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("name", ["mean", "none", "image_loss", "mask", "scales"])
def test_checkpoints_hooks_and_threads(name):
    function = FUNCTIONS[name]
    given = images()
    value, grad = value_and_grad(function, *given)
    # a reentrant checkpoint's forward makes no gradient, and that may cut an image in other bands
    without = function(*given)

    def hooked(*given):
        with torch.autograd.graph.saved_tensors_hooks(Tensor.clone, Tensor.clone):
            return function(*given)

    def on_cpu(*given):
        with torch.autograd.graph.save_on_cpu():
            return function(*given)

    ways = {
        functools.partial(checkpoint, function, use_reentrant=True): without,
        functools.partial(checkpoint, function, use_reentrant=False): value,
        hooked: value,
        on_cpu: value,
    }
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda way: value_and_grad(way, *given), [*ways] * 4)
        for (found_value, found_grad), expected in zip(found, [*ways.values()] * 4):
            assert torch.equal(found_value, expected)
            assert torch.equal(found_grad, grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@all_functions
def test_autocast(name, dtype):
    x, y, mask = images(dtype=dtype)
    expected = FUNCTIONS[name](x.float(), y.float(), mask)
    with torch.autocast("cpu", torch.bfloat16):
        for given in ((x, y), (x, y.float()), (x.float(), y.float())):
            found, grad = value_and_grad(FUNCTIONS[name], *given, mask)
            assert found.dtype == torch.float32
            assert grad.dtype == given[0].dtype
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        FUNCTIONS[name](x.double(), y.double(), mask)
    with pytest.raises(TypeError, match="dtype"):
        FUNCTIONS[name](x, y.float(), mask)


def test_scaled_training_in_float16():
    torch.manual_seed(0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    image, y = (t.clamp(0, 1) for t in pictures((1, 1, 64, 64)))
    image.requires_grad_()
    optimizer = torch.optim.Adam([image], 1e-2)
    losses = []
    for _ in range(50):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = image_loss(image.half(), y.half(), mse=1.0)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert scaler.get_scale() == 2.0**16  # no step was skipped
    assert losses[-1] < 0.1 * losses[0]


# ---- subclasses ----


class Logged(Tensor):
    """Sees each function that it is given to."""

    calls = 0

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.calls += 1
        return super().__torch_function__(func, types, args, kwargs or {})


class Wrapped(Tensor):
    """Holds a tensor, and sees each operator."""

    @staticmethod
    def __new__(cls, held):
        return Tensor._make_wrapper_subclass(
            cls, held.shape, dtype=held.dtype, device=held.device, strides=held.stride()
        )

    def __init__(self, held):
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        def bare(value):
            return value.held if isinstance(value, Wrapped) else value

        found = func(*tree_map(bare, args), **tree_map(bare, kwargs or {}))
        return tree_map(lambda value: cls(value) if isinstance(value, Tensor) else value, found)


@all_functions
def test_subclasses(name):
    function = FUNCTIONS[name]
    x, y, mask = images()
    expected = value_and_grad(function, x, y, mask)
    logged = value_and_grad(function, x.as_subclass(Logged), y, mask)
    assert Logged.calls > 0
    wrapped = value_and_grad(function, Wrapped(x), Wrapped(y), Wrapped(mask))
    for a, b, c in zip(logged, wrapped, expected):
        torch.testing.assert_close(a.as_subclass(Tensor), c, **CLOSE)
        torch.testing.assert_close(b.held, c, **CLOSE)


# ---- memory ----


def saved_beside(compute, x, y):
    """How much is kept for backward beside two images, in images of their size."""
    saved = {}

    def pack(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        compute()
    beside = [size for at, size in saved.items() if at not in (x.data_ptr(), y.data_ptr())]
    return sum(beside) / (x.numel() * x.element_size())


@native
@pytest.mark.parametrize(
    ("name", "kept"),
    # images of their size that are kept for backward beside input and target
    [("mean", 1), ("sum", 1), ("image_loss", 1), ("image", 0), ("channel", 0), ("none", 0)],
)
def test_what_is_saved_for_backward(name, kept):
    x, y, mask = images((1, 2, 30, 31))
    assert saved_beside(lambda: FUNCTIONS[name](x.requires_grad_(), y, mask), x, y) == kept


@native
@pytest.mark.parametrize(
    ("call", "least", "most"),
    # as docs/performance.md has them
    [
        (lambda x, y, _: ssim_fused.ssim_loss(x, y, padding="valid"), 1, 1),
        (lambda x, y, mask: ssim_fused.ssim_loss(x, y, mask=mask), 1.9, 2.1),
        (lambda x, y, _: ssim_fused.ms_ssim_loss(x, y), 1.9, 2.1),
        (lambda x, y, _: ssim_fused.ssim_loss(x, y, padding="reflect"), 3, 3.2),
        (lambda x, y, mask: ssim_fused.PhotometricLoss()(x, y, mask=mask), 3.3, 3.4),
    ],
    ids=["valid", "mask", "MS-SSIM", "reflect", "PhotometricLoss, mask"],
)
def test_what_masks_borders_and_scales_save(call, least, most):
    x, y, mask = images((1, 3, 540, 960))
    mask = mask[:, :1].contiguous()
    found = saved_beside(lambda: call(x.requires_grad_(), y, mask), x, y)
    assert least <= found <= most
