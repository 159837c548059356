"""The CUDA kernels on a GPU: the tables of the CPU's tests, and what only a GPU can show."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import textwrap
from pathlib import Path

import pytest
import torch
from gpu_tables import CALLS, LARGE, SMALL
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

import ssim_fused
from ssim_fused import reference

pytestmark = pytest.mark.cuda
REDUCTIONS = ["mean", "sum", "image", "none"]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def check(x, y, window=(11, 1.5), padding="same", reduction="mean"):
    """Value and gradients to one image and to both, against the textbook in float64."""
    value_tolerance, grad_tolerance = TOLERANCE[x.dtype]
    if reduction == "none":
        value_tolerance = MAP_TOLERANCE.get(x.dtype, value_tolerance)
    # float64 on the GPU, by torch's convolution: minutes on the CPU
    true_x, true_y = (t.detach().double().requires_grad_() for t in (x, y))
    true = reduce(1 - oracle_map(true_x, true_y, window, padding), reduction)
    weight = torch.rand(true.shape, generator=torch.Generator().manual_seed(0)) + 0.5
    if x.dtype == torch.float16 and reduction == "mean":
        weight *= 2**10  # else gradients lie below float16's normal numbers
    weight = weight.to(x.device, x.dtype)
    true_grads = torch.autograd.grad(true, (true_x, true_y), weight.double())
    size, sigma = window
    settings = {"window_size": size, "sigma": sigma, "padding": padding, "reduction": reduction}
    for wanted in ([0], [1], [0, 1]):
        images = [(x, y)[i].detach().requires_grad_(i in wanted) for i in (0, 1)]
        loss = ssim_fused.ssim_loss(*images, **settings)
        assert loss.device == x.device
        assert relative_error(loss.detach(), true.detach()) <= value_tolerance
        grads = torch.autograd.grad(loss, [images[i] for i in wanted], weight.to(loss.dtype))
        for i, grad in zip(wanted, grads):
            assert relative_error(grad, true_grads[i]) <= grad_tolerance


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("shape", [*SHAPES, (128, 1, 28, 28), (2, 3, 300, 517)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_shapes(reduction, padding, shape, dtype):
    if padding == "valid" and min(shape[-2:]) < 11:
        pytest.skip("the window does not fit")
    if dtype == torch.float16 and reduction == "sum" and 2 * shape[0] * shape[-1] > 2**9:
        pytest.skip("the sum is beyond float16's range")
    check(*(image.cuda() for image in pictures(shape, dtype)), (11, 1.5), padding, reduction)


@pytest.mark.parametrize("window", [*WINDOWS[2:], (35, 5.0)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_windows(window, dtype):
    for padding in ("same", "valid"):
        check(*(t.cuda() for t in pictures((2, 2, 40, 153), dtype)), window, padding)


def arguments(name, device, dtype):
    """Images and settings of a call of gpu_tables."""
    _, shape, settings = CALLS[name]
    images = [image.to(device, dtype) for image in pictures(shape)]
    tensors = {key: value for key, value in settings.items() if isinstance(value, torch.Tensor)}
    return images, settings | {key: value.to(device, dtype) for key, value in tensors.items()}


def call(name, images, settings, wanted=()):
    """Its value, and gradients to the images that are wanted."""
    images = [image.detach().requires_grad_(i in wanted) for i, image in enumerate(images)]
    value = getattr(ssim_fused, CALLS[name][0])(*images, **settings)
    if not wanted:
        return [value]
    upstream = torch.linspace(0.5, 1.5, value.numel(), dtype=value.dtype, device=value.device)
    needed = [images[i] for i in wanted]
    return [value.detach(), *torch.autograd.grad(value, needed, upstream.view(value.shape))]


@pytest.mark.parametrize("name", CALLS)
def test_every_kind_of_kernel(name):
    value_tolerance, grad_tolerance = TOLERANCE[torch.float32]
    if CALLS[name][2].get("reduction") == "none":
        value_tolerance = MAP_TOLERANCE[torch.float32]
    for wanted in ((), (0,), (0, 1)):
        found = call(name, *arguments(name, "cuda", torch.float32), wanted)
        true = call(name, *arguments(name, "cpu", torch.float64), wanted)
        tolerances = [value_tolerance, grad_tolerance, grad_tolerance]
        for a, b, tolerance in zip(found, true, tolerances):
            assert relative_error(a.cpu(), b) <= tolerance


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16], ids=str)
@pytest.mark.parametrize("shape", [SMALL, LARGE], ids=str)
def test_whole_numbers(dtype, shape):
    most = torch.iinfo(dtype).max
    x, y = ((image.clamp(0, 1) * most).to(dtype) for image in pictures(shape))
    for reduction in ("mean", "none"):
        settings = {"reduction": reduction, "data_range": float(most)}
        found = ssim_fused.ssim_loss(x.cuda(), y.cuda(), **settings)
        true = ssim_fused.ssim_loss(x.double(), y.double(), **settings)
        assert relative_error(found.cpu(), true) <= MAP_TOLERANCE[torch.float32]


def test_layouts():
    x, y = (t.cuda() for t in pictures((2, 3, 45, 70)))
    wide = torch.zeros(2, 3, 45, 140, device="cuda")
    wide[..., ::2] = x
    for image in (
        x.contiguous(memory_format=torch.channels_last),
        x.mT.contiguous().mT,
        wide[..., ::2],
    ):
        check(image, y)
        check(image, y, reduction="none")
    check(x[:1].expand(2, 3, 45, 70), y)


@pytest.mark.parametrize("pooling", ["floor", "pad", "edge"])
# not float16, below whose smallest number gradients of a mean fall
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_ms_ssim(pooling, dtype):
    x, y = pictures((2, 3, 179, 203), dtype)
    true_x, true_y = (t.double().requires_grad_() for t in (x, y))
    true = reference.ms_ssim_loss(true_x, true_y, pooling=pooling)
    true_grads = torch.autograd.grad(true, (true_x, true_y))
    images = [image.cuda().requires_grad_() for image in (x, y)]
    loss = ssim_fused.ms_ssim_loss(*images, pooling=pooling)
    value_tolerance, grad_tolerance = TOLERANCE[dtype]
    assert relative_error(loss.detach().cpu(), true.detach()) <= value_tolerance
    for grad, true_grad in zip(torch.autograd.grad(loss, images), true_grads):
        assert relative_error(grad.cpu(), true_grad) <= grad_tolerance


def test_results_are_bitwise_the_same():
    x, y = (t.cuda() for t in pictures((5, 3, 300, 517)))
    x.requires_grad_()
    results = []
    for _ in range(5):
        loss = ssim_fused.ssim_loss(x, y)
        results.append((loss.detach(), torch.autograd.grad(loss, x)[0]))
    assert all(torch.equal(a, b) for found in results for a, b in zip(found, results[0]))


def test_gradcheck_and_double_backward():
    x, y = (t.cuda().requires_grad_() for t in pictures((2, 1, 6, 7), torch.float64))
    for reduction in REDUCTIONS:

        def loss(a, b, reduction=reduction):
            return ssim_fused.ssim_loss(a, b, window_size=3, reduction=reduction)

        assert torch.autograd.gradcheck(loss, (x, y))
        assert torch.autograd.gradgradcheck(loss, (x, y))


needs_triton = pytest.mark.skipif(
    not Path(sysconfig.get_path("include"), "Python.h").exists(),
    reason="Triton compiles against Python's headers, which are not there (python3-dev)",
)


@needs_triton
def test_compile():
    torch._dynamo.reset()
    compiled = torch.compile(lambda x, y: ssim_fused.ssim_loss(x * 1.0, y), fullgraph=True)
    x, y = (t.cuda() for t in pictures((2, 3, 64, 64)))
    x.requires_grad_()
    expected, found = ssim_fused.ssim_loss(x, y), compiled(x, y)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(v, x)[0] for v in (found, expected)))


@needs_triton
def test_compiled_into_graphs():
    """Inductor's graphs object to memory that a first call keeps of their pool."""
    script = """
        import torch, ssim_fused
        step = torch.compile(lambda x, y: ssim_fused.ssim_loss(x, y), mode="reduce-overhead")
        x, y = (torch.rand(2, 3, 64, 64, device="cuda") for _ in range(2))
        expected = ssim_fused.ssim_loss(x.double(), y.double())
        for _ in range(5):
            z = x.clone().requires_grad_()
            loss = step(z, y)
            loss.backward()
            assert abs(loss.item() - expected.item()) < 1e-5
        print("done")
    """
    # in a process that has no counter yet
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.strip() == "done", done.stderr[-3000:]


def test_kernels_run_on_the_current_stream():
    x, y = (t.cuda() for t in pictures((4, 3, 256, 256)))
    expected = ssim_fused.ssim_loss(x, y)
    stream = torch.cuda.Stream()
    for _ in range(20):
        late = torch.zeros_like(x)
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(10_000_000)  # a kernel on another stream would read zeros
            late.copy_(x)
            found = ssim_fused.ssim_loss(late, y)
        stream.synchronize()
        assert torch.equal(found, expected)


def test_streams_side_by_side():
    x, y = (t.cuda() for t in pictures((16, 3, 256, 256)))
    expected = ssim_fused.ssim_loss(x, y)
    streams = [torch.cuda.Stream() for _ in range(4)]
    torch.cuda.synchronize()
    found = []
    for _ in range(50):
        for stream in streams:
            with torch.cuda.stream(stream):
                found.append(ssim_fused.ssim_loss(x, y))
    torch.cuda.synchronize()
    assert all(torch.equal(loss, expected) for loss in found)


@pytest.mark.parametrize("name", CALLS)
def test_every_call_is_captured_in_a_graph(name):
    made = arguments(name, "cuda", torch.float32)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        expected = call(name, *made, (0,))
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = call(name, *made, (0,))
    for _ in range(3):
        graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(found, expected))


def test_captured_in_a_graph():
    x, y = (t.cuda() for t in pictures((4, 3, 128, 128)))
    static = x.clone().requires_grad_()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            torch.autograd.grad(ssim_fused.ssim_loss(static, y), static)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = ssim_fused.ssim_loss(static, y)
        (grad,) = torch.autograd.grad(loss, static)
    other = pictures((4, 3, 128, 128), seed=1)[0].cuda()
    with torch.no_grad():
        static.copy_(other)
    for _ in range(3):
        graph.replay()
    other.requires_grad_()
    expected = ssim_fused.ssim_loss(other, y)
    assert torch.equal(loss, expected)
    assert torch.equal(grad, torch.autograd.grad(expected, other)[0])


def test_another_device():
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    check(*(t.to("cuda:1") for t in pictures((2, 3, 64, 64))))
    assert torch.cuda.current_device() == 0


def test_devices_that_differ_are_an_error():
    x, y = pictures((1, 1, 20, 20))
    with pytest.raises(ValueError, match="cuda"):
        ssim_fused.ssim_loss(x.cuda(), y)


def test_more_planes_than_a_grid_axis_holds():
    x, y = (t.cuda() for t in pictures((70_000, 1, 12, 11)))
    found = ssim_fused.ssim_loss(x, y, reduction="image")
    expected = reference.ssim_loss(x, y, reduction="image")
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_more_than_2_to_31_elements():
    shape = (2, 1, 33_000, 33_000)
    if torch.cuda.mem_get_info()[0] < 30 << 30:
        pytest.skip("needs 30 GiB of GPU memory")
    x = torch.zeros(shape, device="cuda", dtype=torch.bfloat16)
    y = torch.zeros_like(x)
    corner = pictures((1, 1, 300, 300), torch.bfloat16)
    x[1:, :, -300:, -300:], y[1:, :, -300:, -300:] = (image.cuda() for image in corner)
    x.requires_grad_()
    loss = ssim_fused.ssim_loss(x, y, reduction="sum")
    (grad,) = torch.autograd.grad(loss, x)
    # the same corner with a margin of zeros; what is far from it costs nothing
    small_x, small_y = (torch.nn.functional.pad(t, (20, 0, 20, 0)).cuda() for t in corner)
    small_x.requires_grad_()
    expected = ssim_fused.ssim_loss(small_x, small_y, reduction="sum")
    torch.testing.assert_close(loss, expected, rtol=1e-2, atol=0)
    (small_grad,) = torch.autograd.grad(expected, small_x)
    error = relative_error(grad[1:, :, -320:, -320:], small_grad)
    assert error < 2**-7
    assert not grad[:1].any()


def test_memory_of_a_step_is_one_image():
    x, y = (t.cuda() for t in pictures((4, 3, 512, 512)))
    x.requires_grad_()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    loss = ssim_fused.ssim_loss(x, y)
    assert torch.cuda.max_memory_allocated() - before <= 4 * x.numel() + (1 << 20)
    loss.backward()


# values of weights and masks are looked at
@pytest.mark.parametrize("name", [n for n in CALLS if not {"mask", "weight"} & CALLS[n][2].keys()])
def test_no_host_synchronisation(name):
    made = arguments(name, "cuda", torch.float32)
    call(name, *made, (0,))
    torch.cuda.set_sync_debug_mode("error")
    try:
        call(name, *made, (0,))
    finally:
        torch.cuda.set_sync_debug_mode("default")
