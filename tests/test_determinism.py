"""Bitwise the same for every run and every thread count; close across instruction sets."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tables import pictures

import ssim_fused
from ssim_fused import _paths

pytestmark = pytest.mark.skipif(
    _paths.cpu_reason is not None, reason=f"no native library: {_paths.cpu_reason}"
)
# many small planes, and one that is cut into tiles and bands
SHAPES = [(64, 1, 28, 28), (3, 3, 200, 300), (1, 1, 1100, 700)]


def step(shape, reduction="mean", dtype=torch.float32):
    x, y = pictures(shape, dtype)
    x.requires_grad_()
    loss = ssim_fused.ssim_loss(x, y, reduction=reduction)
    loss.sum().backward()
    return loss.detach(), x.grad


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("reduction", ["mean", "sum", "image", "none"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_thread_counts(threads, shape, reduction):
    results = []
    for count in (1, 2, 3, 8, 1, 2):
        threads(count)
        results.append(step(shape, reduction))
    for loss, grad in results[1:]:
        assert torch.equal(loss, results[0][0])
        assert torch.equal(grad, results[0][1])


@pytest.mark.parametrize("channels", [3, 4, 5])
def test_thread_counts_of_channels_that_take_turns(threads, channels):
    x, y = pictures((3, channels, 300, 300))
    contiguous, _ = step(x.shape)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    y = y.contiguous(memory_format=torch.channels_last)
    results = []
    for count in (1, 2, 3):
        threads(count)
        x.grad = None
        loss = ssim_fused.ssim_loss(x, y)
        loss.backward()
        results.append((loss.detach(), x.grad))
    assert results[0][0] == pytest.approx(contiguous.item(), rel=1e-6)
    for loss, grad in results[1:]:
        assert torch.equal(loss, results[0][0])
        assert torch.equal(grad, results[0][1])


LONG = {  # what sums along one long axis, where the others have length 1
    "weight": lambda x, y: ssim_fused.ssim_loss(x, y, spatial_dims=1, weight=x),
    "sum of weights": lambda x, y: ssim_fused.ssim(x, y, spatial_dims=1, weight=x, reduction="sum"),
    "column": lambda x, y: ssim_fused.ssim_loss(x[..., None], y[..., None], weight=x[..., None]),
    "terms": lambda x, y: ssim_fused.image_loss(x, y, spatial_dims=1, ssim=0, mse=1, l1=1),
    "psnr": ssim_fused.psnr,
    "images": lambda x, y: ssim_fused.psnr(x.view(-1, 1, 1, 1), y.view(-1, 1, 1, 1)),
    "scales": lambda x, y: ssim_fused.ms_ssim_loss(
        x.view(-1, 1, 4, 4), y.view(-1, 1, 4, 4), window_size=1, betas=(0.5, 0.5)
    ),
}


@pytest.mark.parametrize("name", LONG)
def test_thread_counts_of_one_long_axis(threads, name):
    generator = torch.Generator().manual_seed(0)
    for length in (200_000, 1_120_016):
        x, y = torch.rand(2, 1, 1, length, generator=generator).unbind()
        values = set()
        for count in (1, 2, 3, 4, 7):
            threads(count)
            values.add(LONG[name](x, y).item())
        assert len(values) == 1


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_an_image_does_not_depend_on_its_batch(shape):
    x, y = pictures(shape)
    batch = ssim_fused.ssim_loss(x, y, reduction="image")
    alone = torch.stack([ssim_fused.ssim_loss(a, b, reduction="image") for a, b in zip(x, y)])
    assert torch.equal(batch, alone)


def test_calls_from_many_python_threads():
    expected = step((3, 3, 200, 300))
    with ThreadPoolExecutor(4) as pool:
        for loss, grad in pool.map(lambda _: step((3, 3, 200, 300)), range(12)):
            assert torch.equal(loss, expected[0])
            assert torch.equal(grad, expected[1])


SCRIPT = """
import sys, torch
sys.path.insert(0, {tests!r})
from test_determinism import SHAPES, step
assert torch.ops.ssim_fused.cpu_isa() == {isa!r}
torch.save([step(shape, dtype=dtype) for shape in SHAPES
            for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16)], {file!r})
"""


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_instruction_sets_agree(isa, tmp_path):
    file = str(tmp_path / "results.pt")
    script = SCRIPT.format(tests=os.path.dirname(__file__), isa=isa, file=file)
    run = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "SSIM_FUSED_CPU_ISA": isa},
        capture_output=True,
        text=True,
    )
    if f"SSIM_FUSED_CPU_ISA is '{isa}'" in run.stderr:
        pytest.skip(f"this processor or build has no {isa}")
    assert run.returncode == 0, run.stderr
    dtypes = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
    here = [step(shape, dtype=dtype) for shape in SHAPES for dtype in dtypes]
    unit = {torch.float32: 1e-6, torch.float64: 1e-12, torch.float16: 2**-10, torch.bfloat16: 2**-7}
    for (loss, grad), (other_loss, other_grad) in zip(here, torch.load(file)):
        tolerance = unit[loss.dtype]
        assert abs(loss - other_loss) <= tolerance * abs(loss)
        # a gradient's error is measured against its largest pixel; rounding alone sets it
        assert (grad - other_grad).abs().max() <= 20 * tolerance * grad.abs().max()


def test_an_unknown_instruction_set_is_an_error_that_names_it():
    run = subprocess.run(
        [sys.executable, "-m", "ssim_fused"],
        env={**os.environ, "SSIM_FUSED_CPU_ISA": "sse9"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert "sse9" in run.stdout
    assert "fallback" in run.stdout


MEMORY = """
import sys, torch
import ssim_fused
shape = (1, 3, {size}, {size})
x, y = torch.rand(shape), torch.rand(shape)
x.requires_grad_()
small = torch.rand(1, 1, 64, 64, requires_grad=True)
(0.5 * ssim_fused.ssim_loss(small, small.detach() * 0.9)).backward()

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024

open("/proc/self/clear_refs", "w").write("5")
before = peak()
({weight} * ssim_fused.ssim_loss(x, y)).backward(retain_graph={retain})
print(peak() - before)
"""


def peak_bytes(**settings):
    run = subprocess.run(
        [sys.executable, "-c", MEMORY.format(**settings)],
        # every large block from the system and back to it: freed memory would hide what is used
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(run.stdout)


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs Linux's /proc")
@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_a_step_needs_one_image_more(weight):
    size = 2048
    image = 3 * size * size * 4
    slack = 6 << 20
    needed = peak_bytes(size=size, weight=weight, retain=False)
    # the measurement sees the gradient, and no copy; pages in use before count less than they are
    assert 0.95 * image <= needed <= image + slack
    # a graph that is kept keeps the gradient unscaled: a copy
    assert peak_bytes(size=size, weight=weight, retain=True) >= 1.95 * image
