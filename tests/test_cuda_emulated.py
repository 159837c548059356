"""The CUDA kernel, run on the CPU by tests/cuda_emulator, against float64."""

from __future__ import annotations

import shutil

import cuda_emulator
import pytest
import torch
from cuda_emulator import TASKS, TERMS, correlated_and_not, coverage_of
from tables import SHAPES, pictures, relative_error

pytestmark = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
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


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("sizes", [(5, 11), (11, 7), (1, 11), (3, 33), (33, 1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_window_for_each_axis(native, task, sizes, dtype):
    window = tuple((size, 0.3 + 0.14 * size) for size in sizes)
    for shape in ((2, 1, 40, 53), (1, 2, 35, 140), (1, 1, 4, 9)):
        for valid in (False, True):
            if not valid or (shape[2] >= sizes[0] and shape[3] >= sizes[1]):
                geometry = cuda_emulator.check(native, task, *pictures(shape, dtype), window, valid)
                assert geometry["cut"][0] == "any"


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("cut", [("streaming", 2, 2, 1), ("tile", 3, 3, 1)], ids=str)
def test_two_windows_of_11_taps(native, task, cut):
    window = ((11, 1.5), (11, 3.0))
    for valid in (False, True):
        cuda_emulator.check(native, task, *pictures((1, 2, 33, 71)), window, valid, cut=cut)


# A cut of each layout, with a window that it serves: tiles and bands with a rest, or planes side by
# side. With `valid`, some have tiles and bands in which no window is.
FEATURE_CUTS = [
    ((1, 2, 29, 83), ("streaming", 3, 2, 1), (11, 1.5)),
    ((1, 2, 29, 43), ("tile", 2, 3, 1), (11, 1.5)),
    ((1, 3, 13, 12), ("tile", 1, 1, 2), (11, 1.5)),
    ((1, 1, 17, 20), ("streaming", 6, 5, 1), (11, 1.5)),
    ((2, 1, 21, 38), ("any", 2, 2, 1), (7, 1.5)),
    ((1, 3, 14, 12), ("any", 1, 1, 2), ((5, 1.0), (11, 1.5))),
]
KINDS = ["contrast", "luminance", "nonnegative"]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("shape", "cut", "window"), FEATURE_CUTS, ids=str)
def test_every_kind(native, task, kind, shape, cut, window):
    x, y = correlated_and_not(shape)
    for valid in (False, True):
        cuda_emulator.check(native, task, x, y, window, valid, kind=kind, cut=cut)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_kind_in_every_dtype(native, kind, dtype):
    x, y = correlated_and_not((2, 1, 19, 26), dtype)
    for task in TASKS:
        cuda_emulator.check(native, task, x, y, kind=kind)


def test_where_ssim_is_negative_nonnegative_has_no_gradient(native):
    x, y = correlated_and_not((1, 1, 24, 60))
    out_map = cuda_emulator.run(native, "map", x, y)[1]
    assert 0 < (out_map > 1).sum() < out_map.numel()
    _, clamped, *_ = cuda_emulator.run(native, "map", x, y, kind="nonnegative")
    assert torch.equal(clamped, out_map.clamp(max=1))
    *_, grad, _, _ = cuda_emulator.run(native, "gradient", x, y, kind="nonnegative")
    flat = torch.nn.functional.max_pool2d((out_map < 1).float(), 11, 1, 5) == 0
    assert flat.any()
    assert not grad[flat].any()


@pytest.mark.parametrize("task", ["value", "gradient", "gradients"])
@pytest.mark.parametrize("weights", [TERMS, (1.0, 3.0, 0.0), (0.5, 0.0, 0.3), (0.0, 2.0, 1.0)])
@pytest.mark.parametrize(("shape", "cut", "window"), FEATURE_CUTS, ids=str)
def test_terms(native, task, weights, shape, cut, window):
    for valid in (False, True):
        how = {"term_weights": weights, "cut": cut}
        geometry = cuda_emulator.check(native, task, *pictures(shape), window, valid, **how)
        assert geometry["cut"] == cut


@pytest.mark.parametrize("task", ["value", "gradient", "gradients"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_terms_of_every_shape(native, task, dtype, shape):
    x, y = pictures(shape, dtype)
    last = [image.contiguous(memory_format=torch.channels_last) for image in (x, y)]
    cuda_emulator.check(native, task, *last, term_weights=TERMS)
    if min(shape[2:]) >= 11:
        cuda_emulator.check(native, task, x, y, valid=True, term_weights=TERMS)


MASKED_CUTS = [
    ((2, 2, 21, 38), ("any", 2, 2, 1), (11, 1.5)),
    ((1, 3, 14, 12), ("any", 1, 1, 2), ((5, 1.0), (11, 1.5))),
    ((1, 1, 37, 140), None, (11, 1.5)),
    ((1, 1, 5, 3), None, (7, 1.5)),
]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "cut", "window"), MASKED_CUTS, ids=str)
def test_masks(native, task, dtype, shape, cut, window):
    x, y = correlated_and_not(shape, dtype)
    accumulate = cuda_emulator.accumulation(dtype)
    one_for_all = cuda_emulator.random_mask((shape[0], 1, *shape[2:]), accumulate).expand(shape)
    for valid in (False, True):
        if valid and min(shape[2:]) < 11:
            continue
        for mask in (one_for_all, cuda_emulator.random_mask(shape, accumulate).mT.contiguous().mT):
            how = {"mask": mask, "cut": cut, "kind": "contrast" if valid else "ssim"}
            geometry = cuda_emulator.check(native, task, x, y, window, valid, **how)
            assert geometry["cut"][0] == "any"


@pytest.mark.parametrize("task", ["value", "gradients"])
def test_masks_and_weights_of_windows(native, task):
    for shape, cut, window in MASKED_CUTS:
        mask = cuda_emulator.random_mask((shape[0], 1, *shape[2:])).expand(shape)
        how = {"mask": mask, "weight": torch.rand(1, 1, 1, shape[3]).expand(shape), "cut": cut}
        cuda_emulator.check(native, task, *pictures(shape), window, **how)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("task", TASKS)
def test_what_is_masked_changes_no_bit(native, task, bad):
    shape = (1, 2, 23, 30)
    x, y = pictures(shape)
    mask = (cuda_emulator.random_mask(shape) > 0.1).float()
    mask[..., 11:13, 14:17] = 0  # the pixel that a pivot would be taken from
    spoiled = [torch.where(mask > 0, image, bad) for image in (x, y)]
    how = {"mask": mask, "weight": torch.ones(shape) if task.startswith("backward") else None}
    *expected, first = cuda_emulator.run(native, task, x, y, **how)
    *found, second = cuda_emulator.run(native, task, *spoiled, **how)
    for a, b in zip(found, expected):
        assert a is None or torch.equal(a.nan_to_num(), b.nan_to_num())
    if task in ("value", "gradient", "gradients"):
        assert first["total"] == second["total"] == first["total"]
    if task != "value" and task != "map":
        assert not found[2].isnan().any()
        assert not found[2][mask == 0].any()


@pytest.mark.parametrize("cut", cuda_emulator.HIGHLIGHT_CUTS, ids=str)
def test_a_highlight_is_no_pivot(native, cut):
    cuda_emulator.check_highlight(native, cut)


@pytest.mark.parametrize("seen", ["around the centre", "left", "below"])
def test_bright_masked_images_keep_their_digits(native, seen):
    """Also those that are smaller than the window: the zeros around them are not seen."""
    for shape, cut in (((1, 1, 9, 12), ("any", 1, 1, 1)), ((1, 2, 40, 45), ("any", 2, 2, 1))):
        x, y = (50 + image for image in pictures(shape, torch.float64))
        mask = torch.zeros(shape)
        if seen == "around the centre":
            mask[..., 1:-1, 1:-1] = 1
        elif seen == "left":
            mask[..., : shape[3] // 4] = 1
        else:
            mask[..., 3 * shape[2] // 4 :, :] = 1
        assert coverage_of(mask, (11, 1.5), False).any()
        how = {"mask": mask, "cut": cut}
        sums = cuda_emulator.run(native, "value", x.float(), y.float(), **how)[0]
        x, y = (image.float().double() for image in (x, y))
        true = cuda_emulator.true_map(x, y, (11, 1.5), False, "ssim", mask=mask)
        assert relative_error(sums, true.sum((2, 3))) < 1e-5


@pytest.mark.parametrize("task", ["value", "map"])
def test_masked_integers(native, task):
    images = [(image.clamp(0, 1) * 255).to(torch.uint8) for image in pictures((2, 1, 21, 38))]
    how = {"mask": cuda_emulator.random_mask((2, 1, 21, 38)), "data_range": 255.0}
    cuda_emulator.check(native, task, *images, **how)


OFFSETS = [(0, 0), (1, 0), (0, 1), (1, 1)]


@pytest.mark.parametrize("task", ["value", "gradient", "gradients"])
@pytest.mark.parametrize(("shape", "cut", "window"), FEATURE_CUTS, ids=str)
def test_halved_images(native, task, shape, cut, window):
    x, y = correlated_and_not(shape)
    for valid in (False, True):
        for offset in OFFSETS:
            how = {"kind": "contrast", "pool_offset": offset, "cut": cut}
            geometry = cuda_emulator.check(native, task, x, y, window, valid, **how)
            assert geometry["is_extra"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_halved_images_of_every_shape_and_dtype(native, shape, dtype):
    x, y = pictures(shape, dtype)
    last = [image.contiguous(memory_format=torch.channels_last) for image in (x, y)]
    for task in ("value", "gradients"):
        for offset in ((0, 0), (1, 1)):
            cuda_emulator.check(native, task, x, last[1], pool_offset=offset)
            valid = min(shape[2:]) >= 11
            cuda_emulator.check(native, task, *last, valid=valid, pool_offset=offset)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, (2, 3, 4, 256), (1, 2, 3, 600)], ids=str)
def test_the_way_back_through_halving(native, shape, dtype, in_place):
    for offset in OFFSETS:
        cuda_emulator.check_unpool(native, shape, offset, dtype, in_place)


def test_equal_pixels_have_no_gradient_of_l1(native):
    x, y = pictures((1, 1, 20, 30))
    y[..., ::3] = x[..., ::3]
    cuda_emulator.check(native, "gradients", x, y, term_weights=(0.0, 0.0, 1.0))
    *_, grad, _, _ = cuda_emulator.run(native, "gradient", x, y, term_weights=(0.0, 0.0, 1.0))
    assert not grad[..., ::3].any()


@pytest.mark.parametrize("task", ["value", "gradient"])
def test_terms_of_flat_pictures(native, task):
    """Equal numbers: what rounding takes from a sum of many, it takes each time."""
    x, y = torch.full((1, 1, 800, 12), 0.3), torch.full((1, 1, 800, 12), 0.4)
    how = {"term_weights": (1.0, 5.0, 0.1), "cut": ("streaming", 1, 1, 1)}
    cuda_emulator.check(native, task, x, y, **how)


def test_terms_of_small_differences(native):
    """Of a pixel's x - y nothing is lost to the pivot, which is far larger here."""
    x = 1e-3 * pictures((1, 1, 32, 40))[0]
    y = x + 1e-8 * torch.where(torch.rand(x.shape) < 0.5, -1.0, 1.0)
    y[0, 0, 16, 20] += 1  # the centre pixel
    for cut in (("streaming", 1, 1, 1), ("tile", 2, 1, 1), ("any", 1, 1, 1)):
        window = (7, 1.5) if cut[0] == "any" else (11, 1.5)
        how = {"term_weights": (0.0, 0.0, 1.0), "cut": cut}
        *_, grad, _, geometry = cuda_emulator.run(native, "gradient", x, y, window, **how)
        assert torch.equal(grad.sign(), (x - y).sign())


@pytest.mark.parametrize("task", ["value", "gradient", "gradients"])
@pytest.mark.parametrize(("shape", "cut", "window"), FEATURE_CUTS, ids=str)
def test_weights_of_windows(native, task, shape, cut, window):
    sizes = [side[0] for side in (window if isinstance(window[0], tuple) else (window, window))]
    for valid in (False, True):
        h, w = (n - (size - 1 if valid else 0) for n, size in zip(shape[2:], sizes))
        for kind, terms in (("ssim", None), ("contrast", TERMS)):
            how = {"kind": kind, "term_weights": terms, "cut": cut}
            for weight in (torch.rand(*shape[:2], h, w), torch.rand(1, 1, 1, w)):
                how["weight"] = weight.expand(*shape[:2], h, w)
                cuda_emulator.check(native, task, *pictures(shape), window, valid, **how)


@pytest.mark.parametrize(("shape", "cut"), [(s, c) for s, c, w in FEATURE_CUTS if w == (11, 1.5)])
def test_what_is_compiled_apart_computes_the_same(native, shape, cut):
    x, y = pictures(shape)
    ones = torch.ones(1, 1, 1, 1).expand(shape)
    for task in ("value", "gradient", "gradients"):
        plain = cuda_emulator.run(native, task, x, y, cut=cut)
        extra = cuda_emulator.run(native, task, x, y, cut=cut, weight=ones)
        assert not plain[-1]["is_extra"]
        assert extra[-1]["is_extra"]
        used = {"value": (0,), "gradient": (0, 2), "gradients": (0, 2, 3)}[task]
        assert all(torch.equal(plain[i], extra[i]) for i in used)


@pytest.mark.parametrize("task", ["value", "map"])
@pytest.mark.parametrize(("dtype", "most"), [(torch.uint8, 255), (torch.uint16, 65535)], ids=str)
def test_integers(native, task, dtype, most):
    for shape, cut, window in FEATURE_CUTS:
        for valid in (False, True):
            images = [(image.clamp(0, 1) * most).round().to(dtype) for image in pictures(shape)]
            how = {"data_range": float(most), "cut": cut}
            cuda_emulator.check(native, task, *images, window, valid, **how)
            if task == "value":
                how["term_weights"] = TERMS
                cuda_emulator.check(native, task, *images, window, valid, **how)
            last = [image.mT.contiguous().mT for image in images]
            cuda_emulator.check(native, task, *last, window, valid, kind="contrast", **how)


def test_results_are_bitwise_the_same(native):
    x, y = pictures((2, 1, 40, 129))
    first, second = (cuda_emulator.run(native, "gradients", x, y) for _ in range(2))
    for a, b in zip(first[:1] + first[2:4], second[:1] + second[2:4]):
        assert torch.equal(a, b)
    first, second = (
        cuda_emulator.run(native, "gradients", x, y, term_weights=TERMS)[-1] for _ in range(2)
    )
    assert first["total"] == second["total"]
    assert first["terms"] == second["terms"]


def test_identical_images(native):
    x = pictures((1, 2, 40, 50))[0] + 1000
    sums, *_ = cuda_emulator.run(native, "value", x, x.clone())
    assert not sums.any()


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
