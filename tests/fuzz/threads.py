"""``python -m fuzz.threads``: the operators from 16 threads at once, for ThreadSanitizer."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch

import ssim_fused
from ssim_fused import _paths

THREADS, ROUNDS = 16, 4
SHAPES = [(1, 1, 28, 28), (2, 3, 65, 90), (1, 2, 12, 30, 31)]
DTYPES = [torch.float32, torch.float64, torch.bfloat16]
LOSSES = [
    ssim_fused.ssim_loss,
    lambda x, y: ssim_fused.ssim_loss(x, y, reduction="none").mean(),
    lambda x, y: ssim_fused.ssim_loss(x, y, window_size=7, padding="reflect"),
    lambda x, y: ssim_fused.ms_ssim_loss(x, y, window_size=3, betas=(0.4, 0.6)),
]


def step(job: int) -> float:
    """One loss and its gradient."""
    shape, dtype = SHAPES[job % 3], DTYPES[job // 3 % 3]
    generator = torch.Generator().manual_seed(job)
    x, y = (torch.rand(shape, generator=generator).to(dtype) for _ in range(2))
    x.requires_grad_()
    LOSSES[job % 4](x, y).backward()
    assert x.grad is not None
    return x.grad.double().sum().item()


def main() -> None:
    """All combinations, some at a time, and again."""
    assert _paths.cpu_reason is None, _paths.cpu_reason
    jobs = list(range(36))
    expected = [step(job) for job in jobs]
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in range(ROUNDS):
            assert list(pool.map(step, jobs)) == expected
    print(f"{ROUNDS * len(jobs)} steps in {THREADS} threads")


if __name__ == "__main__":
    main()
