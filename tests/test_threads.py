"""Threads, processes and signals; also what the wheel is tried with on a Python without a GIL."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tables import pictures
from torch.utils.data import DataLoader, Dataset

import ssim_fused

SHAPES = [(1, 1, 28, 28), (4, 3, 64, 64), (1, 3, 200, 310), (64, 1, 28, 28)]


def step(shape, seed=0):
    x, y = pictures(shape, seed=seed)
    x.requires_grad_()
    value = ssim_fused.ssim_loss(x, y)
    value.backward()
    return value.detach(), x.grad


def test_16_threads_at_once():
    jobs = [(shape, seed) for seed in range(12) for shape in SHAPES]
    expected = [step(*job) for job in jobs]
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda job: step(*job), jobs))
    for a, b in zip(found, expected):
        assert all(map(torch.equal, a, b))


class Similarities(Dataset):
    """Computes in a worker's process."""

    def __len__(self):
        return 8

    def __getitem__(self, i):
        return step((2, 3, 200, 300), seed=i)


def test_workers_forked_after_the_threads_have_run():
    expected = [step((2, 3, 200, 300), seed=i) for i in range(8)]
    loader = DataLoader(
        Similarities(), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60
    )
    for found, wanted in zip(loader, expected):
        assert all(map(torch.equal, found, wanted))


def test_number_of_threads_changed_between_forward_and_backward():
    expected = step((2, 3, 200, 300))
    threads = torch.get_num_threads()
    try:
        for before, after in ((1, 2), (2, 1), (1, 4)):
            x, y = pictures((2, 3, 200, 300))
            x.requires_grad_()
            torch.set_num_threads(before)
            value = ssim_fused.ssim_loss(x, y)
            torch.set_num_threads(after)
            value.backward()
            assert torch.equal(value.detach(), expected[0])
            assert torch.equal(x.grad, expected[1])
    finally:
        torch.set_num_threads(threads)


def test_a_loop_interrupted_by_signals():
    class Interrupt(Exception):
        pass

    def interrupt(*_):
        raise Interrupt

    expected, interrupted = step((2, 3, 200, 300)), 0
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for i in range(60):
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-3 + 1e-4 * i)
                for _ in range(100):
                    step((2, 3, 200, 300))
            except Interrupt:
                interrupted += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert interrupted == 60
    assert all(map(torch.equal, step((2, 3, 200, 300)), expected))


@pytest.mark.parametrize("daemon", [False, True])
def test_the_interpreter_may_end_while_calls_run(daemon):
    script = f"""
        import threading, time, torch, ssim_fused
        x = torch.rand(4, 3, 256, 256, requires_grad=True)
        y = torch.rand(4, 3, 256, 256)
        ending = time.monotonic() + 0.5
        def work():
            while {daemon} or time.monotonic() < ending:
                torch.autograd.grad(ssim_fused.ssim_loss(x, y), x)
        for _ in range(4):
            threading.Thread(target=work, daemon={daemon}).start()
        time.sleep(0.3)
        print("end", flush=True)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout == "end\n"
    # Python 3.11 ends a daemon thread by pthread_exit, on which torch aborts, mse_loss as well
    aborted = daemon and done.returncode == -signal.SIGABRT and "active exception" in done.stderr
    assert done.returncode == 0 or aborted, done.stderr
