"""Memory, and numbers at the ends of their range."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from tables import pictures, relative_error

import ssim_fused
from ssim_fused import _paths, reference

needs_native = pytest.mark.skipif(_paths.cpu_reason is not None, reason=f"{_paths.cpu_reason}")


def run_python(script: str, timeout: float = 120) -> str:
    """What a script prints; it must end well."""
    command = [sys.executable, "-c", textwrap.dedent(script)]
    # `make test` has malloc keep what is freed, which a script that measures memory must not
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


# ---- memory ----


def test_10_000_steps_keep_no_memory():
    script = """
        import torch, ssim_fused
        from pathlib import Path
        def resident():
            return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
        x = torch.rand(2, 1, 28, 28, requires_grad=True)
        y = torch.rand(2, 1, 28, 28)
        mask = torch.rand(2, 1, 28, 28) > 0.1
        def steps(count):
            for i in range(count):
                loss = ssim_fused.ssim_loss(x, y, mask=mask if i % 4 == 0 else None)
                if i % 4 == 1:
                    loss = loss + ssim_fused.ssim_loss(x, y, reduction="none").mean()
                torch.autograd.grad(loss, x)
        steps(1000)
        before = resident()
        steps(10_000)
        print(resident() - before)
    """
    assert int(run_python(script, 300)) < 1 << 20


@needs_native
@pytest.mark.skipif(not hasattr(resource, "RLIMIT_AS"), reason="no limit of address space")
def test_memory_that_cannot_be_had_is_an_error_and_the_process_goes_on():
    script = """
        import resource, torch, ssim_fused
        from pathlib import Path
        # 72 MB: malloc may serve up to 64 MiB from what it has reserved for a thread that has ended
        x, y = (torch.rand(1, 8, 1500, 1500, requires_grad=i == 0) for i in range(2))
        small = x[:, :1, :64, :64].detach()
        expected = ssim_fused.ssim_loss(small, small * 0.9)
        ssim_fused.ssim_loss(x, y).backward()  # torch's threads are there
        x.grad = None
        used = int(Path("/proc/self/statm").read_text().split()[0]) * 4096
        failed = 0
        for left in range(0, 90 << 20, 9 << 20):
            resource.setrlimit(resource.RLIMIT_AS, (used + left, resource.RLIM_INFINITY))
            try:
                ssim_fused.ssim_loss(x, y).backward()
            except (RuntimeError, MemoryError) as error:
                assert "alloc" in str(error) or "memory" in str(error), error
                failed += 1
            x.grad = None
            assert torch.equal(ssim_fused.ssim_loss(small, small * 0.9), expected)
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
        ssim_fused.ssim_loss(x, y).backward()
        print(failed)
    """
    assert 1 <= int(run_python(script)) <= 10


def free_memory() -> int:
    """In bytes, as Linux says; unknown is none."""
    meminfo = Path("/proc/meminfo")
    lines = meminfo.read_text().splitlines() if meminfo.exists() else []
    sizes = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable")]
    return sizes[0] << 10 if sizes else 0


@needs_native
@pytest.mark.skipif(free_memory() < 8 << 30, reason="needs 8 GiB of memory")
def test_more_than_2_to_the_31_pixels():
    dtype = torch.bfloat16
    side, patch, border = 46_400, 64, 16
    generator = torch.Generator().manual_seed(0)
    # numpy's zeros are no memory before they are written to
    x, y = (torch.from_numpy(np.zeros((1, 1, side, side), np.uint16)).view(dtype) for _ in range(2))
    assert x.numel() > 2**31
    # equal but for patches at the corners and in the middle, each with a border in which it ends
    corners = [(i, j) for i in (0, side - patch) for j in (0, side - patch)]
    places, expected = [], 0.0
    for i, j in [*corners, (side // 2, side // 3)]:
        inside = (..., slice(i, i + patch), slice(j, j + patch))
        around = (..., slice(max(i - border, 0), i + patch + border))
        around = (*around, slice(max(j - border, 0), j + patch + border))
        for image in (x, y):
            image[inside] = torch.rand(patch, patch, generator=generator).to(dtype)
        part = x[around].clone().requires_grad_()
        loss = ssim_fused.ssim_loss(part, y[around].clone(), reduction="sum")
        loss.backward()
        expected += loss.item()
        places.append((around, part.grad))
    x.requires_grad_()
    loss = ssim_fused.ssim_loss(x, y, reduction="sum")
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=2 * torch.finfo(dtype).eps)
    for around, grad in places:
        assert relative_error(x.grad[around].double(), grad.double()) <= 2 * torch.finfo(dtype).eps
    for row in range(border + patch, side // 2 - border, 997):  # elsewhere nothing was written
        assert not x.grad[..., row, :].any()


# ---- numbers ----


@pytest.fixture
def flushed_denormals():
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor flushes no denormals")
    yield
    torch.set_flush_denormal(False)


def compare(x, y, **settings):
    """Value and gradient against float64, and that they are numbers."""
    x, y = x.float(), y.float()
    found = [v.requires_grad_() for v in (x.clone(), x.double())]
    value = ssim_fused.ssim_loss(found[0], y, **settings)
    true = reference.ssim_loss(found[1], y.double(), **settings)
    value.backward()
    true.backward()
    assert relative_error(value.detach(), true.detach()) <= 1e-5
    assert torch.isfinite(found[0].grad).all()
    assert relative_error(found[0].grad, found[1].grad) <= 1e-4


@pytest.mark.parametrize("data_range", [1e-6, 1e-3, 1.0, 255.0, 65535.0, 1e6])
def test_ranges_of_data(data_range):
    x, y = pictures((2, 1, 40, 50), torch.float64)
    compare(x * data_range, y * data_range, data_range=data_range)


def test_denormal_numbers():
    x, y = pictures((1, 1, 40, 50), torch.float64)
    compare(x * 1e-40, y)
    assert ssim_fused.ssim_loss((x * 1e-40).float(), (y * 1e-40).float()) == 0


def test_flushed_denormal_numbers(flushed_denormals):
    x, y = pictures((2, 1, 40, 50), torch.float64)
    compare(x, y)
    compare(x * 1e-40, y)


@pytest.mark.parametrize("constant", [0.0, 0.5, 1.0, 255.0, 1e4])
def test_constant_images(constant):
    x = torch.full((1, 1, 30, 40), constant)
    assert ssim_fused.ssim_loss(x, x.clone()) == 0
    value = ssim_fused.ssim_loss(x, torch.zeros_like(x), padding="valid")
    expected = 1 - 1e-4 / (constant**2 + 1e-4)
    torch.testing.assert_close(value, torch.tensor(expected), rtol=2e-6, atol=0)


def test_checkerboards():
    board = (torch.arange(40)[:, None] + torch.arange(50)) % 2.0
    compare(board[None, None], 1 - board[None, None])
    compare(board[None, None], board[None, None] * 0.5)


@pytest.mark.parametrize("scale", [1e10, 1e15, 1e18])
def test_large_numbers(scale):
    x, y = pictures((1, 1, 40, 50), torch.float64)
    compare(x * scale, y * scale, data_range=scale)
