"""Masks: windows see what is seen, and nothing else in any way."""

from __future__ import annotations

import math
import re

import pytest
import torch
from tables import TOLERANCE, check_loss, oracle_loss, pictures, relative_error, window_taps

import ssim_fused
from ssim_fused import _paths, reference

PATHS = {"fused": ssim_fused, "reference": reference}
PADDINGS = ["same", "valid", "reflect", "replicate", "circular"]
REDUCTIONS = ["mean", "sum", "image", "channel", "none"]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SHAPE = (2, 3, 19, 26)

both_paths = pytest.mark.parametrize("path", PATHS)


def rand(*shape, seed=7):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def hole(shape):
    """A mask with a hole, a stripe and single pixels that are not seen."""
    mask = rand(*shape) > 0.1
    mask[..., shape[-2] // 3 : 2 * shape[-2] // 3, shape[-1] // 2 :] = False
    mask[..., 2] = False
    return mask


MASKS = {
    "hole": lambda: hole((2, 3, 19, 26)),
    "of every channel": lambda: hole((2, 1, 19, 26)),
    "of every image": lambda: hole((1, 3, 19, 26)),
    "of all": lambda: hole((1, 1, 19, 26)),
    "weights": lambda: rand(2, 1, 19, 26),
    "weights and a hole": lambda: rand(1, 3, 19, 26) * hole((1, 3, 19, 26)),
    "all": lambda: torch.ones(1, 1, 19, 26),
    # few enough to leave whole windows unseen
    "few": lambda: rand(2, 3, 19, 26) > 0.97,
    "one pixel of each image": lambda: torch.arange(19 * 26).view(1, 1, 19, 26) == 200,
}
# Where few pixels are seen, what is left of a window's variance is the rounding of each of them
# against C2 = 9e-4, as in a window of one pixel, and few windows average it out.
FEW = {torch.float32: (5e-5, 1e-4), torch.float64: (2e-11, 1e-10)}
# A share that is seen is rounded, too, and few windows count.
MASKED = {**TOLERANCE, torch.float32: (6e-6, 2e-5)}
THRESHOLD = {"few": 0.01, "one pixel of each image": 0.0, "weights and a hole": 0.3}


# ---- value and gradient ----


@both_paths
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("name", MASKS)
def test_masks(path, name, padding):
    for dtype in DTYPES[:2]:
        x, y = pictures(SHAPE, dtype)
        mask, threshold = MASKS[name](), THRESHOLD.get(name, 0.5)
        for reduction in REDUCTIONS:
            settings = {"padding": padding, "reduction": reduction, "mask_threshold": threshold}
            if name == "few" and reduction == "channel":
                continue  # a channel without a window
            tolerance = (FEW if name in THRESHOLD and threshold < 0.1 else MASKED)[dtype]
            check_loss(PATHS[path], x, y, tolerance, mask=mask, **settings)


def test_window_by_window():
    """The oracle itself and the library against the plainest loop."""
    x, y = pictures((1, 1, 9, 10), torch.float64)
    mask, taps = rand(1, 1, 9, 10) * hole((1, 1, 9, 10)), window_taps(2, 5, 1.2)
    expected = torch.zeros(9, 10, dtype=torch.float64)
    for i in range(9):
        for j in range(10):
            seen = []  # weight, x, y
            for k in range(5):
                for m in range(5):
                    row, column = i + k - 2, j + m - 2
                    if 0 <= row < 9 and 0 <= column < 10:
                        weight = (taps[0][k] * taps[1][m] * mask[0, 0, row, column]).item()
                        seen.append((weight, x[0, 0, row, column], y[0, 0, row, column]))
            total = math.fsum(weight for weight, *_ in seen)
            if total <= 0.3:
                continue
            mu_x = sum(w * a for w, a, _ in seen) / total
            mu_y = sum(w * b for w, _, b in seen) / total
            var_x = sum(w * (a - mu_x) ** 2 for w, a, _ in seen) / total
            var_y = sum(w * (b - mu_y) ** 2 for w, _, b in seen) / total
            cov = sum(w * (a - mu_x) * (b - mu_y) for w, a, b in seen) / total
            means = (2 * mu_x * mu_y + 1e-4) / (mu_x**2 + mu_y**2 + 1e-4)
            expected[i, j] = 1 - means * (2 * cov + 9e-4) / (var_x + var_y + 9e-4)
    settings = {"window_size": 5, "sigma": 1.2, "mask": mask, "mask_threshold": 0.3}
    for function in (oracle_loss, ssim_fused.ssim_loss, reference.ssim_loss):
        found = function(x, y, reduction="none", **settings)[0, 0]
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)


OTHERS = {
    "window": {"window_size": (5, 9), "sigma": (1.0, 2.0)},
    "uniform": {"window": "uniform", "window_size": 7},
    "contrast": {"term": "contrast_structure"},
    "luminance": {"term": "luminance"},
    "nonnegative": {"nonnegative_ssim": True},
    "sample_covariance": {"sample_covariance": True},
    "data_range": {"data_range": 3.0},
}


@both_paths
@pytest.mark.parametrize("name", OTHERS)
def test_masks_with_other_settings(path, name):
    for dtype in DTYPES[:2]:
        x, y = pictures(SHAPE, dtype, noise=0.3)
        check_loss(
            PATHS[path],
            x,
            y,
            MASKED[dtype],
            mask=MASKS["weights and a hole"](),
            mask_threshold=0.2,
            **OTHERS[name],
        )


@both_paths
@pytest.mark.parametrize("dtype", DTYPES[2:], ids=str)
def test_half_precision(path, dtype):
    x, y = pictures(SHAPE, dtype)
    for reduction in REDUCTIONS:
        check_loss(PATHS[path], x, y, mask=MASKS["hole"](), reduction=reduction)


@both_paths
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_have_the_images_dtype(path, dtype):
    x, y = pictures(SHAPE, dtype)
    for beside in ({"mask": MASKS["weights"]()}, {"weight": MASKS["weights"]()}):
        for reduction in REDUCTIONS[: 5 if "mask" in beside else 4]:
            assert PATHS[path].ssim_loss(x, y, reduction=reduction, **beside).dtype == dtype
            assert PATHS[path].ssim(x, y, reduction=reduction, **beside).dtype == dtype


@both_paths
@pytest.mark.parametrize("padding", PADDINGS)
def test_other_dimensions(path, padding):
    for shape, settings in (
        ((2, 2, 8, 9, 10), {}),
        ((2, 8, 9, 10), {"spatial_dims": 3}),
        ((1, 2, 5, 9, 10), {"window_size": (1, 5, 3)}),
        ((3, 19, 26), {}),
        ((2, 3, 40), {"spatial_dims": 1}),
        ((3, 40), {"spatial_dims": 1, "reduction": "channel"}),
    ):
        axes = settings.get("spatial_dims", 3 if len(shape) == 5 else 2)
        full = shape if len(shape) == axes + 2 else (1, *shape)
        for dtype in DTYPES[:2]:
            x, y = (image.view(shape) for image in pictures(full, dtype))
            mask = (rand(*full) > 0.2).view(shape).narrow(-axes - 1, 0, 1)
            settings = {"window_size": 5, "padding": padding, **settings}
            check_loss(PATHS[path], x, y, MASKED[dtype], mask=mask, **settings)


@both_paths
@pytest.mark.parametrize("reduction", REDUCTIONS[:-1])
def test_mask_and_weight_together(path, reduction):
    weight = rand(1, 1, 19, 26, seed=3)
    for dtype in DTYPES[:2]:
        x, y = pictures(SHAPE, dtype)
        for name in ("hole", "weights"):
            check_loss(
                PATHS[path],
                x,
                y,
                MASKED[dtype],
                mask=MASKS[name](),
                weight=weight,
                reduction=reduction,
                mask_threshold=0.3,
            )


# ---- what is not seen ----

BAD = {
    "random": lambda x: rand(*x.shape, seed=11).to(x.dtype),
    "huge": lambda x: torch.full_like(x, 1e30),
    "infinite": lambda x: torch.full_like(x, -math.inf),
    "nan": lambda x: torch.full_like(x, math.nan),
    "all of them": lambda x: torch.tensor([1e30, math.inf, -math.inf, math.nan, 0.5])
    .to(x.dtype)
    .repeat(x.numel() // 5 + 1)[: x.numel()]
    .view(x.shape),
}


@both_paths
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("bad", BAD)
def test_what_is_masked_changes_no_bit(path, bad, padding):
    for shape, dtype in (
        (SHAPE, torch.float32),
        (SHAPE, torch.bfloat16),
        ((1, 2, 8, 9, 10), torch.float32),
    ):
        x, y = pictures(shape, dtype)
        seen = hole(shape)
        for reduction in ("mean", "none"):
            results = []
            for make in (torch.clone, BAD[bad]):
                a = torch.where(seen, x, make(x)).requires_grad_()
                b = torch.where(seen, y, make(y.flip(-1))).requires_grad_()
                loss = PATHS[path].ssim_loss(
                    a, b, mask=seen, padding=padding, reduction=reduction, window_size=7
                )
                results.append((loss.detach(), *torch.autograd.grad(loss.sum(), (a, b))))
            for clean, dirty in zip(*results):
                assert torch.equal(clean, dirty)
            for grad in results[1][1:]:
                assert grad[~seen].count_nonzero() == 0
                assert grad[seen].count_nonzero() > 0


@both_paths
def test_second_derivatives_do_not_see_it_either(path):
    x, y = pictures(SHAPE, torch.float64)
    seen = hole(SHAPE)
    results = []
    for bad in (0.5, math.nan):
        a = torch.where(seen, x, bad).requires_grad_()
        loss = PATHS[path].ssim_loss(a, torch.where(seen, y, bad), mask=seen)
        (grad,) = torch.autograd.grad(loss, a, create_graph=True)
        results.append(torch.autograd.grad(grad.square().sum(), a)[0])
    assert torch.equal(*results)
    assert results[0].isfinite().all()


@both_paths
@pytest.mark.parametrize("padding", PADDINGS)
def test_the_edge_of_the_mask_is_the_edge_of_the_image(path, padding):
    """Outside an image, with 'same' and a mask, is as unseen as what is masked."""
    x, y = pictures((1, 1, 24, 24), torch.float64)
    inside = torch.zeros(1, 1, 24, 24, dtype=torch.bool)
    inside[..., 6:18, 6:18] = True
    settings = {"reduction": "none", "mask_threshold": 0.0}
    wide = PATHS[path].ssim_loss(x, y, mask=inside, **settings)[..., 6:18, 6:18]
    x, y = (t[..., 6:18, 6:18] for t in (x, y))
    cropped = PATHS[path].ssim_loss(x, y, mask=torch.ones_like(x), padding=padding, **settings)
    if padding == "valid":
        wide = wide[..., 5:-5, 5:-5]
        torch.testing.assert_close(cropped, wide, rtol=1e-10, atol=1e-13)
    elif padding == "same":
        torch.testing.assert_close(cropped, wide, rtol=1e-10, atol=1e-13)
    else:  # a border is seen where what it copies is
        plain = PATHS[path].ssim_loss(x, y, padding=padding, reduction="none")
        torch.testing.assert_close(cropped, plain, rtol=1e-10, atol=1e-13)


@both_paths
def test_all_seen_is_no_mask(path):
    x, y = pictures(SHAPE, torch.float64)
    for mask in (torch.ones(SHAPE), torch.ones(1, 1, 19, 26, dtype=torch.bool)):
        for padding in PADDINGS[1:]:
            for reduction in REDUCTIONS:
                settings = {"padding": padding, "reduction": reduction}
                masked = PATHS[path].ssim_loss(x, y, mask=mask, **settings)
                plain = PATHS[path].ssim_loss(x, y, **settings)
                torch.testing.assert_close(masked, plain, rtol=1e-11, atol=1e-14)


@pytest.mark.skipif(_paths.cpu_reason is not None, reason="no native library")
@pytest.mark.parametrize("seen", ["middle", "left", "below"])
@pytest.mark.parametrize("shape", [(1, 1, 40, 9), (2, 2, 40, 45), (2, 1, 8, 40, 20)], ids=str)
def test_bright_masked_images_keep_their_digits(shape, seen):
    """Also those smaller than the window, and where the centre is not seen."""
    x, y = ((image + 50).float() for image in pictures(shape, torch.float64))
    mask = torch.zeros(shape)
    part = {"middle": mask[..., 1:-1, 1:-1], "left": mask[..., :5], "below": mask[..., 30:, :]}
    part[seen].fill_(1)
    settings = {"mask": mask, "mask_threshold": 0.2}
    true = reference.ssim_loss(x.double(), y.double(), **settings)
    assert relative_error(ssim_fused.ssim_loss(x, y, **settings), true) < 1e-5


# ---- thresholds, similarity, errors ----


@both_paths
def test_a_window_counts_where_enough_of_it_is_seen(path):
    x, y = pictures((1, 1, 20, 30), torch.float64)
    mask = torch.zeros(1, 1, 20, 30)
    mask[..., 15:] = 1  # an upright edge: windows to its right see more than half
    left = window_taps(2)[1]
    for threshold in (0.0, 0.1, 0.5, 0.9, 0.99999):
        settings = {"mask": mask, "mask_threshold": threshold, "window_size": (1, 11)}
        loss = PATHS[path].ssim_loss(x, y, reduction="none", **settings)
        columns = [j for j in range(30) if loss[0, 0, :, j].count_nonzero()]
        # the share that is seen by a window at column j: beyond 24, it reaches outside
        shares = [sum(left[k] for k in range(11) if 15 <= j + k - 5 < 30) for j in range(30)]
        assert columns == [j for j, share in enumerate(shares) if share > threshold]
        mean = PATHS[path].ssim_loss(x, y, **settings)
        torch.testing.assert_close(mean, loss[..., columns].mean(), rtol=1e-12, atol=0)


@both_paths
def test_similarity_of_what_is_seen(path):
    x, y = pictures(SHAPE, torch.float64)
    mask = MASKS["hole"]()
    for reduction in ("mean", "image", "channel"):
        settings = {"mask": mask, "reduction": reduction}
        value, cs = PATHS[path].ssim(x, y, return_cs=True, **settings)
        torch.testing.assert_close(value, 1 - oracle_loss(x, y, **settings))
        expected = 1 - oracle_loss(x, y, term="contrast_structure", **settings)
        torch.testing.assert_close(cs, expected)
    counted = PATHS[path].ssim_loss(x, x + 1, mask=mask, reduction="none") > 0
    total = PATHS[path].ssim(x, y, mask=mask, reduction="sum")
    each = PATHS[path].ssim(x, y, mask=mask, reduction="none")
    torch.testing.assert_close(total, each[counted].sum())


@both_paths
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_does_not_decide_which_windows_count(path, dtype):
    """Of windows of 25 pixels, those of which 21 are seen count, and not those of 20."""
    x, y = pictures((1, 1, 48, 48), dtype)
    mask = rand(1, 1, 48, 48) > 0.2
    settings = {"window": "uniform", "window_size": 5, "padding": "valid"}
    of_map = PATHS[path].ssim_loss(
        x, y, mask=mask, mask_threshold=0.01, reduction="none", **settings
    )
    count = torch.nn.functional.avg_pool2d(mask.double(), 5, 1, divisor_override=1).round()
    assert (count == 20).any()
    expected = of_map.double()[count > 20].mean()
    for flip in ([], [-1], [-1, -2]):
        first, second, seen = (image.flip(flip) for image in (x, y, mask))
        loss = PATHS[path].ssim_loss(first, second, mask=seen, mask_threshold=0.8, **settings)
        assert loss.item() == pytest.approx(expected.item(), rel=2e-6)
    half = torch.full((1, 1, 48, 48), 0.5)
    for window in ({"window": "uniform"}, {"window_size": 7}, {"sigma": 1.0}):
        with pytest.raises(ValueError, match="leaves no window"):
            PATHS[path].ssim_loss(x, y, mask=half, **window)
    whole = PATHS[path].ssim_loss(x, y, padding="valid")
    strict = PATHS[path].ssim_loss(
        x, y, mask=torch.ones_like(half), mask_threshold=1 - 1e-6, padding="valid"
    )
    assert strict.item() == pytest.approx(whole.item(), rel=2e-6)


@both_paths
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_windows_that_see_next_to_nothing_do_not_count(path, dtype):
    x, y = pictures((1, 1, 32, 32), dtype)
    x.requires_grad_()
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 8:20, 8:20] = 1
    loss = PATHS[path].ssim_loss(x, y, sigma=0.5, mask=mask, mask_threshold=0)
    (grad,) = torch.autograd.grad(loss, x)
    assert grad.isfinite().all()
    exact = [image.detach().double() for image in (x, y)]
    true = reference.ssim_loss(*exact, sigma=0.5, mask=mask.double(), mask_threshold=0)
    assert relative_error(loss.detach(), true) < 3e-5


@both_paths
def test_an_empty_mask_names_its_images(path):
    x, y = pictures((3, 2, 19, 26))
    mask = torch.ones(3, 1, 19, 26)
    mask[1] = 0
    with pytest.raises(ValueError, match=r"mask.*0\.5.*images \[1\]"):
        PATHS[path].ssim_loss(x, y, mask=mask)
    mask[1, :, 3, 3] = 1  # one pixel alone is 7 % of the window around it
    with pytest.raises(ValueError, match=r"mask.*0\.5.*images \[1\]"):
        PATHS[path].ssim_loss(x, y, mask=mask)
    assert PATHS[path].ssim_loss(x, y, mask=mask, mask_threshold=0.05).isfinite()
    with pytest.raises(ValueError, match=r"images \[0, 1, 2\]"):
        PATHS[path].ssim_loss(x, y, mask=torch.zeros(1, 1, 19, 26))
    # a weight of zero wherever something is seen
    weight = torch.ones(3, 1, 19, 26)
    weight[2] = 0
    with pytest.raises(ValueError, match=r"images \[2\]"):
        PATHS[path].ssim_loss(x, y, mask=torch.ones(1, 1, 19, 26), weight=weight)


@both_paths
def test_autocast(path):
    """A mask is filtered in float32 whatever autocast would make of a convolution."""
    x, y = pictures(SHAPE, torch.bfloat16)
    mask = rand(*SHAPE)
    true = oracle_loss(x.double(), y.double(), mask=mask, mask_threshold=0.3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = PATHS[path].ssim_loss(x, y, mask=mask, mask_threshold=0.3)
    assert loss.dtype == torch.float32
    assert relative_error(loss, true) < TOLERANCE[torch.float32][0]


# ---- more terms under a mask ----


def masked_terms(x, y, mask, **settings):
    """SSIM loss, MSE and L1 of what is seen, one by one, in float64."""
    weights = mask.double().expand(x.shape)
    difference = torch.where(weights > 0, x - y, 0.0)
    squares = (weights * difference.square()).sum() / weights.sum()
    absolute = (weights * difference.abs()).sum() / weights.sum()
    return oracle_loss(x, y, mask=mask, **settings), squares, absolute


@pytest.mark.parametrize("name", ["hole", "of all", "weights and a hole"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_image_loss(name, dtype):
    value_tol, grad_tol = TOLERANCE[dtype]
    mask = MASKS[name]()
    for padding in ("same", "valid", "reflect"):
        x, y = (image.requires_grad_() for image in pictures(SHAPE, dtype))
        settings = {"padding": padding, "mask": mask, "mask_threshold": 0.3}
        true_x, true_y = (t.detach().double().requires_grad_() for t in (x, y))
        true_terms = masked_terms(true_x, true_y, **settings)
        for weights in ((1.0, 0.0, 0.0), (0.2, 0.0, 0.8), (1.0, 3.0, 0.5), (0.0, 1.0, 0.0)):
            true = sum(weight * term for weight, term in zip(weights, true_terms))
            true_grads = torch.autograd.grad(true, (true_x, true_y), retain_graph=True)
            named = dict(zip(("ssim", "mse", "l1"), weights))
            loss, terms = ssim_fused.image_loss(x, y, return_terms=True, **named, **settings)
            assert relative_error(loss.detach(), true.detach()) <= 2 * value_tol
            for weight, found, term in zip(weights, terms, true_terms):
                expected = term.detach() if weight else torch.zeros(())
                assert relative_error(found, expected) <= 2 * value_tol
            for found, grad in zip(torch.autograd.grad(loss, (x, y)), true_grads):
                assert relative_error(found, grad) <= grad_tol


@pytest.mark.parametrize("bad", BAD)
def test_image_loss_does_not_see_what_is_masked(bad):
    x, y = pictures(SHAPE)
    seen = hole(SHAPE)
    results = []
    for make in (torch.clone, BAD[bad]):
        a = torch.where(seen, x, make(x)).requires_grad_()
        loss = ssim_fused.PhotometricLoss()(a, torch.where(seen, y, make(y)), mask=seen)
        results.append((loss.detach(), torch.autograd.grad(loss, a)[0]))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert results[1][1][~seen].count_nonzero() == 0


def test_photometric_loss():
    x, y = pictures(SHAPE, torch.float64)
    mask = hole((2, 1, 19, 26))
    dssim, _, l1 = masked_terms(x, y, mask, padding="valid", window_size=7)
    found = ssim_fused.PhotometricLoss(0.3, 7, padding="valid")(x, y, mask=mask)
    torch.testing.assert_close(found, 0.7 * l1 + 0.3 * dssim, rtol=1e-12, atol=0)
    one = ssim_fused.PhotometricLoss(0.3, 7, padding="valid")(x[0], y[0], mask=mask[0])
    dssim, _, l1 = masked_terms(x[:1], y[:1], mask[:1], padding="valid", window_size=7)
    torch.testing.assert_close(one, 0.7 * l1 + 0.3 * dssim, rtol=1e-12, atol=0)
    strict = ssim_fused.PhotometricLoss(0.3, mask_threshold=0.9)(x, y, mask=mask)
    dssim, _, l1 = masked_terms(x, y, mask, mask_threshold=0.9)
    torch.testing.assert_close(strict, 0.7 * l1 + 0.3 * dssim, rtol=1e-12, atol=0)


def test_empty_and_wrong_masks_of_image_loss():
    x, y = pictures((2, 1, 19, 26))
    mask = torch.ones(2, 1, 19, 26)
    mask[1] = 0
    for weights in ({"ssim": 1.0}, {"ssim": 0.0, "l1": 1.0}):
        with pytest.raises(ValueError, match=r"mask.*images \[1\]"):
            ssim_fused.image_loss(x, y, mask=mask, **weights)
        with pytest.raises(ValueError, match=r"mask must lie in \[0, 1\]"):
            ssim_fused.image_loss(x, y, mask=mask + 1, **weights)
        with pytest.raises(ValueError, match="mask must be"):
            ssim_fused.image_loss(x, y, mask=mask[..., 1:], **weights)


def test_ssim_loss_module():
    x, y = pictures((2, 1, 19, 26), torch.float64)
    mask = hole((1, 1, 19, 26))
    found = ssim_fused.SSIMLoss(7, padding="valid")(x, y, mask=mask)
    torch.testing.assert_close(found, oracle_loss(x, y, mask=mask, padding="valid", window_size=7))


@both_paths
def test_an_empty_channel_is_an_error_where_it_has_a_value(path):
    x, y = pictures((2, 3, 19, 26))
    mask = torch.ones(2, 3, 19, 26)
    mask[1, 2] = 0
    for beside in ({"mask": mask}, {"weight": mask}):
        for reduction in ("mean", "image"):
            assert PATHS[path].ssim_loss(x, y, reduction=reduction, **beside).isfinite().all()
        with pytest.raises(ValueError, match=r"images \[1\]"):
            PATHS[path].ssim_loss(x, y, reduction="channel", **beside)


BAD_BESIDE = {
    "mask must lie in [0, 1]": {"mask": 2.0},
    "mask leaves no window of which more than mask_threshold = 0.5 is seen": {"mask": 0.25},
    "weight must be finite and not negative": {"weight": -1.0},
    "weight is zero all over": {"weight": 0.0},
}


@pytest.mark.parametrize("message", BAD_BESIDE)
def test_compiled_code_and_vmap_say_what_is_wrong(message):
    x, y = pictures((2, 1, 20, 20))
    beside = {
        name: torch.full((2, 1, 20, 20), value) for name, value in BAD_BESIDE[message].items()
    }

    def loss(x, y, beside):
        return ssim_fused.ssim_loss(x, y, **beside)

    with pytest.raises(RuntimeError, match=re.escape(f"ssim_fused: {message}")):
        torch.compile(loss, backend="eager", fullgraph=True)(x, y, beside)
    with pytest.raises(ValueError, match=re.escape(message)):
        torch.vmap(loss)(x[None], y[None], {name: value[None] for name, value in beside.items()})


def test_an_image_loss_without_seen_pixels_is_named_in_compiled_code():
    x, y = pictures((2, 1, 20, 20))
    loss = torch.compile(ssim_fused.image_loss, backend="eager", fullgraph=True)
    with pytest.raises(RuntimeError, match="ssim_fused: mask is zero all over"):
        loss(x, y, ssim=0, mse=1, mask=torch.zeros(2, 1, 20, 20))
