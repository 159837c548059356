"""The CUDA kernel, run on the CPU by tests/cuda_emulator, against float64; and under sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cuda_emulator
import pytest
import torch
from cuda_emulator import TASKS
from cuda_emulator.mutations import MUTATIONS, planted
from tables import SHAPES, pictures

pytestmark = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
TESTS = Path(__file__).resolve().parent
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


@pytest.fixture(scope="module")
def native():
    return cuda_emulator.load()


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, (7, 3, 9, 12), (1, 1, 40, 129)], ids=str)
def test_every_task(native, task, dtype, shape):
    for valid in (False, True):
        if not valid or min(shape[-2:]) >= 11:
            cuda_emulator.check(native, task, *pictures(shape, dtype), valid=valid)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("window", [(1, 1.0), (3, 0.8), (7, 1.5), (21, 3.0), (33, 5.0)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_other_windows(native, task, window, dtype):
    if window[0] == 1 and dtype == torch.float32 and task not in ("value", "map"):
        pytest.skip("a gradient of rounding errors alone, see test_windows")
    for shape in ((2, 1, 40, 53), (1, 1, 35, 140)):
        for valid in (False, True):
            cuda_emulator.check(native, task, *pictures(shape, dtype), window, valid)


@pytest.mark.parametrize("task", ["value", "gradients", "backward"])
@pytest.mark.parametrize(
    ("shape", "cut"),
    [
        ((3, 2, 28, 28), ("streaming", 1, 1, 1)),
        ((3, 2, 28, 28), ("tile", 1, 2, 1)),
        ((3, 2, 9, 12), ("tile", 1, 1, 2)),
        ((1, 3, 7, 28), ("tile", 1, 1, 2)),  # the last block has one plane
        ((1, 4, 12, 28), ("tile", 1, 4, 2)),
        ((1, 1, 64, 64), ("streaming", 1, 16, 1)),
        ((1, 1, 64, 64), ("tile", 4, 8, 1)),
        ((1, 1, 64, 64), ("streaming", 4, 3, 1)),
        ((1, 1, 30, 107), ("streaming", 7, 2, 1)),  # a last tile of 11 columns
        ((1, 1, 30, 107), ("tile", 7, 2, 1)),
        ((1, 1, 17, 33), ("tile", 5, 9, 1)),  # a last tile of 5 columns, a last band of 1 row
    ],
    ids=str,
)
def test_every_cut(native, task, shape, cut):
    geometry = cuda_emulator.check(native, task, *pictures(shape), cut=cut)
    assert geometry["cut"] == cut


@pytest.mark.parametrize("task", TASKS)
def test_layouts(native, task):
    x, y = pictures((2, 3, 21, 34))
    last = [image.contiguous(memory_format=torch.channels_last) for image in (x, y)]
    cuda_emulator.check(native, task, *last)
    cuda_emulator.check(native, task, x.mT.contiguous().mT, last[1])
    cuda_emulator.check(native, task, x[:1, :1].expand(2, 3, 21, 34), y)


def test_results_are_bitwise_the_same(native):
    x, y = pictures((2, 1, 40, 129))
    first, second = (cuda_emulator.run(native, "gradients", x, y) for _ in range(2))
    for a, b in zip(first[:1] + first[2:4], second[:1] + second[2:4]):
        assert torch.equal(a, b)


def test_identical_images(native):
    x = pictures((1, 2, 40, 50))[0] + 1000
    sums, *_ = cuda_emulator.run(native, "value", x, x.clone())
    assert sums.item() == 0.0


def test_near_convergence_and_bright(native):
    x, _ = pictures((1, 1, 64, 80), torch.float64)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for a, b in ((x, x + 1e-4 * noise), (0.98 + 0.01 * x, 0.98 + 0.01 * x + 1e-3 * noise)):
        cuda_emulator.check(native, "gradients", a.float(), b.float())


def test_nan_stays_in_its_windows(native):
    x, y = pictures((1, 1, 60, 60))
    x[0, 0, 30, 30] = float("nan")
    out_map = cuda_emulator.run(native, "map", x, y)[1]
    hit = torch.zeros(60, 60, dtype=torch.bool)
    hit[25:36, 25:36] = True
    assert torch.equal(torch.isnan(out_map[0, 0]), hit)


def test_a_launch_for_training_on_small_pictures_is_one_and_fills_the_gpu(native):
    x, y = pictures((128, 1, 28, 28))
    geometry = cuda_emulator.check(native, "gradient", x, y, sms=132)
    assert geometry["blocks"] >= 64
    layout, tiles, *_ = geometry["cut"]
    assert (layout, tiles) == ("tile", 1)  # no halo between columns


# ---- sanitizers ----

THREADS = ["-O1", "-DSSIM_EMULATOR_THREADS", "-pthread"]
SANITIZERS = {
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-fsanitize=thread"],
}


def run_sanitized(sanitizer, csrc=cuda_emulator.ROOT / "csrc"):
    flags = [*THREADS, *SANITIZERS[sanitizer]]
    # the compiler cannot see through the sanitizers' checks
    program = cuda_emulator.build("sanitized.cpp", [*flags, "-Wno-maybe-uninitialized"], csrc)
    return subprocess.run(
        [program],
        capture_output=True,
        text=True,
        env={"TSAN_OPTIONS": "halt_on_error=1 exitcode=66"},
    )


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_sanitizers_find_nothing(sanitizer):
    done = run_sanitized(sanitizer)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout == "done\n"


# ---- do these tests see faults? ----


def faults_seen(name, folder) -> str:
    """What the check that must see a fault says of it."""
    csrc = planted(name, folder)
    seen_by = MUTATIONS[name].seen_by
    if seen_by in SANITIZERS:
        words = {"address": "AddressSanitizer", "thread": "data race"}[seen_by]
        said = run_sanitized(seen_by, csrc).stderr
        return said if words in said else ""
    # a process of its own: Python would find the kernel without the fault already loaded
    command = [sys.executable, "-m", "cuda_emulator", str(csrc)]
    done = subprocess.run(command, cwd=TESTS, capture_output=True, text=True)
    if done.returncode < 0:
        return "it wrote outside an array"
    failed = "AssertionError: " in done.stderr or "threads have left" in done.stderr
    assert failed or done.returncode == 0, done.stderr  # it must not fail in any other way
    return done.stderr


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Each fault's check, as many at once as there are processors."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        folders = {name: tmp_path_factory.mktemp("fault") for name in MUTATIONS}
        yield {name: pool.submit(faults_seen, name, folders[name]) for name in MUTATIONS}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_planted_fault_is_seen(outcomes, name):
    assert outcomes[name].result(), "nothing was seen"


def test_without_a_fault_the_same_check_passes():
    command = [sys.executable, "-m", "cuda_emulator", str(cuda_emulator.ROOT / "csrc")]
    done = subprocess.run(command, cwd=TESTS, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
