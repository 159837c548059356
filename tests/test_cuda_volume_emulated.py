"""The CUDA kernel for volumes, run on the CPU by tests/cuda_emulator, against float64."""

from __future__ import annotations

import shutil

import pytest
import torch
from cuda_emulator import TASKS, accumulation, random_mask, volume
from cuda_emulator.volume import KINDS, check, run, volumes
from test_cuda_emulated import DTYPES

pytestmark = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
FAST = (11, 11, 11)
OTHER_TAPS = [
    *((1, 1, 1), (7, 7, 7), (11, 1, 3), (1, 11, 11), (13, 13, 13)),
    *((33, 1, 1), (1, 21, 5), (21, 21, 21), (33, 33, 33)),
]


@pytest.fixture(scope="module")
def native():
    return volume.load_volume()


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 1), (1, 1, 5, 7, 9), (1, 2, 12, 13, 17)], ids=str)
def test_every_task(native, task, dtype, shape):
    for taps in (FAST, (3, 5, 7), (1, 11, 11)):
        for valid in (False, True):
            if not valid or all(length >= k for length, k in zip(shape[2:], taps)):
                check(native, task, *volumes(shape, dtype), taps, valid)


@pytest.mark.parametrize(
    ("shape", "task"),
    [
        *(((2, 3, 12, 20, 33), task) for task in ("value", "gradients")),
        *(((1, 1, 24, 40, 40), task) for task in ("map", "gradient", "backward", "backwards")),
    ],
    ids=str,
)
def test_several_tiles(native, task, shape):
    assert check(native, task, *volumes(shape), FAST)["fast"]
    assert not check(native, task, *volumes(shape), (3, 5, 7))["fast"]
    check(native, task, *volumes(shape), FAST, valid=True)


@pytest.mark.parametrize("valid", [False, True], ids=["same", "valid"])
def test_several_tiles_of_float64(native, valid):
    check(native, "gradients", *volumes((1, 1, 13, 20, 33), torch.float64), FAST, valid)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "taps",
    OTHER_TAPS,
    ids=str,
)
def test_other_windows(native, task, dtype, taps):
    word_bytes = 8 if dtype == torch.float64 else 4
    if taps == (1, 1, 1) and dtype == torch.float32 and task not in ("value", "map"):
        pytest.skip("a gradient of rounding errors alone, see test_windows")
    if not native.serves(taps, task, word_bytes):
        assert max(taps) >= 21, "only the largest windows may be refused"
        with pytest.raises(ValueError, match="no geometry fits these windows"):
            check(native, task, *volumes((1, 1, 4, 5, 6), dtype), taps)
        return
    check(native, task, *volumes((1, 1, 6, 9, 14), dtype), taps)
    if max(taps) < 15:
        check(native, task, *volumes((1, 2, 15, 17, 19), dtype), taps, valid=True)


@pytest.mark.parametrize("task", ["value", "gradients", "backward"])
@pytest.mark.parametrize(
    ("shape", "taps", "cut"),
    [
        ((1, 1, 12, 12, 12), FAST, (5, 1, 1)),  # a last band of no slices
        ((1, 2, 9, 16, 17), FAST, (2, 1, 2)),
        ((1, 1, 6, 17, 16), FAST, (6, 3, 1)),
        ((1, 1, 8, 9, 10), (3, 5, 7), (3, 4, 5)),
        ((2, 1, 7, 9, 10), (5, 3, 3), (7, 1, 2)),
    ],
    ids=str,
)
def test_every_cut(native, task, shape, taps, cut):
    assert check(native, task, *volumes(shape), taps, cut=cut)["cut"] == cut


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("taps", [FAST, (3, 5, 7)], ids=str)
def test_kinds(native, task, taps):
    x, y = volumes((1, 1, 7, 12, 20))
    # one half like its copy, one unlike: there SSIM is below zero
    y[..., 10:] = 1 - y[..., 10:]
    for kind in KINDS:
        check(native, task, x, y, taps, kind=kind)
    if task == "map":
        clamped = run(native, task, x, y, taps, kind="nonnegative")[1]
        assert clamped.max() == 1.0
        assert run(native, task, x, y, taps)[1].max() > 1.0


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("taps", [FAST, (3, 5, 7)], ids=str)
def test_layouts(native, task, taps):
    x, y = volumes((2, 2, 7, 12, 13))
    last = y.contiguous(memory_format=torch.channels_last_3d)
    check(native, task, x.transpose(2, 4).contiguous().transpose(2, 4), last, taps)
    check(native, task, x[:1, :1].expand(2, 2, 7, 12, 13), y, taps)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("taps", [FAST, (3, 5, 7)], ids=str)
def test_masks(native, task, dtype, taps):
    shape = (1, 2, 12, 13, 14)
    x, y = volumes(shape, dtype)
    one_for_all = random_mask((1, 1, *shape[2:]), accumulation(dtype)).expand(shape)
    for valid, mask in ((False, one_for_all), (True, random_mask(shape, accumulation(dtype)))):
        assert not check(native, task, x, y, taps, valid, mask=mask)["fast"]
        check(native, task, x, y, taps, valid, mask=mask, kind="contrast", cut=(2, 3, 3))


@pytest.mark.parametrize("task", TASKS)
def test_what_is_masked_changes_no_bit(native, task):
    x, y = volumes((1, 1, 12, 13, 14))
    mask = (random_mask(x.shape) > 0.1).float()
    mask[0, 0, 5:8, 5:8, 6:9] = 0  # the voxel that a pivot would be taken from
    spoiled = [torch.where(mask > 0, volume, float("nan")) for volume in (x, y)]
    how = {"mask": mask, "weight": torch.ones(x.shape) if task.startswith("backward") else None}
    *expected, first = run(native, task, x, y, FAST, **how)
    *found, second = run(native, task, *spoiled, FAST, **how)
    for a, b in zip(found, expected):
        assert a is None or torch.equal(a.nan_to_num(), b.nan_to_num())
    if task in ("value", "gradient", "gradients"):
        assert first["total"] == second["total"] == first["total"]
    if task not in ("value", "map"):
        assert not found[2].isnan().any()
        assert not found[2][mask == 0].any()


@pytest.mark.parametrize("task", ["value", "gradient", "gradients"])
@pytest.mark.parametrize("taps", [FAST, (3, 5, 7)], ids=str)
def test_weights_of_windows(native, task, taps):
    x, y = volumes((2, 1, 12, 13, 14))
    for valid in (False, True):
        size = [length - (k - 1 if valid else 0) for length, k in zip(x.shape[2:], taps)]
        for weight in (torch.rand(2, 1, *size), torch.rand(1, 1, 1, 1, size[2])):
            weight = weight.expand(2, 1, *size)
            assert not check(native, task, x, y, taps, valid, weight=weight)["fast"]


@pytest.mark.parametrize("task", ["value", "map"])
@pytest.mark.parametrize(("dtype", "most"), [(torch.uint8, 255), (torch.uint16, 65535)], ids=str)
def test_integers(native, task, dtype, most):
    images = [(t.clamp(0, 1) * most).round().to(dtype) for t in volumes((1, 2, 12, 13, 14))]
    for taps in (FAST, (3, 5, 7)):
        check(native, task, *images, taps, valid=taps == FAST, data_range=float(most))


@pytest.mark.parametrize("taps", [FAST, (3, 5, 7)], ids=str)
def test_results_are_bitwise_the_same(native, taps):
    x, y = volumes((2, 1, 12, 17, 33))
    first, second = (run(native, "gradients", x, y, taps) for _ in range(2))
    for a, b in zip(first[:1] + first[2:4], second[:1] + second[2:4]):
        assert torch.equal(a, b)


@pytest.mark.parametrize("taps", [FAST, (3, 5, 7)], ids=str)
def test_identical_volumes(native, taps):
    x = volumes((1, 2, 12, 13, 14))[0] + 1000
    sums, *_ = run(native, "value", x, x.clone(), taps)
    assert torch.equal(sums, torch.zeros(1, 2))


@pytest.mark.parametrize("taps", [FAST, (3, 5, 7)], ids=str)
def test_near_convergence_and_bright(native, taps):
    x, _ = volumes((1, 1, 20, 20, 24), torch.float64)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for a, b in ((x, x + 1e-4 * noise), (0.98 + 0.01 * x, 0.98 + 0.01 * x + 1e-3 * noise)):
        for valid in (False, True):
            check(native, "value", a.float(), b.float(), taps, valid)
            check(native, "gradients", a.float(), b.float(), taps, valid)


def test_a_pivot_keeps_the_digits_of_a_bright_volume(native):
    x, y = volumes((1, 1, 16, 20, 20), torch.float64)
    bright = [(100 + volume).float() for volume in (x, y)]
    # without one, the squares would be rounded to 1e-3, and variances are 1e-2
    check(native, "value", *bright, FAST, valid=True)


def test_a_highlight_is_no_pivot(native):
    volume.check_highlight(native)


def test_nan_stays_in_its_windows(native):
    x, y = volumes((1, 1, 14, 30, 30))
    x[0, 0, 7, 15, 15] = float("nan")
    out_map = run(native, "map", x, y, FAST)[1]
    hit = torch.zeros(14, 30, 30, dtype=torch.bool)
    hit[2:13, 10:21, 10:21] = True
    assert torch.equal(torch.isnan(out_map[0, 0]), hit)


@pytest.mark.parametrize(
    ("taps", "word_bytes", "served"),
    [
        (FAST, 4, True),
        (FAST, 8, True),
        ((3, 5, 7), 8, True),
        ((15, 15, 15), 8, True),
        ((33, 1, 1), 8, True),
        ((33, 33, 33), 4, False),
        ((4, 3, 3), 4, False),
        ((35, 1, 1), 4, False),
        ((3, 0, 3), 4, False),
    ],
)
def test_which_windows_are_served(native, taps, word_bytes, served):
    assert native.serves(taps, "gradients", word_bytes) == served


def test_a_deep_volume_of_few_tiles_fills_a_large_gpu(native):
    geometry = native.cut((1, 1), (256, 32, 32), FAST, False, "gradient", 4, 132)
    assert geometry["cut"][1:] == (2, 2)
    assert 16 <= geometry["blocks"] <= 132
    many = native.cut((8, 4), (32, 64, 64), FAST, False, "gradient", 4, 132)
    assert many["cut"] == (1, 4, 4)  # no halo along z
