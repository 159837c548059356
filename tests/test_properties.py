"""Properties that hold for any shape, layout and settings."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tables import oracle_loss, oracle_map, pictures, reduce, relative_error

import ssim_fused
from ssim_fused import reference

quick = hypothesis_settings(max_examples=60, deadline=None, derandomize=True)

shapes = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 60), st.integers(1, 60))
windows = st.tuples(st.sampled_from([1, 3, 5, 7, 9, 11, 13, 21]), st.floats(0.3, 6.0))
paddings = st.sampled_from(["same", "valid"])
reductions = st.sampled_from(["mean", "sum", "image", "none"])
seeds = st.integers(0, 2**31)


def fits(shape, window, padding):
    return padding == "same" or min(shape[-2:]) >= window[0]


@st.composite
def views(draw, image):
    """The same picture with other strides: axes permuted in memory, gaps, an offset."""
    order = draw(st.permutations(range(4)))
    back = [order.index(axis) for axis in range(4)]
    steps = [draw(st.integers(1, 3)) for _ in range(4)]
    permuted = image.permute(order)
    room = torch.full([s * k + 1 for s, k in zip(permuted.shape, steps)], 7.0, dtype=image.dtype)
    inside = room[tuple(slice(1, None, k) for k in steps)]
    inside = inside[tuple(slice(0, s) for s in permuted.shape)]
    inside.copy_(permuted)
    return inside.permute(back)


@quick
@given(shapes, windows, paddings, reductions, seeds, st.data())
def test_value_and_gradients(shape, window, padding, reduction, seed, data):
    if not fits(shape, window, padding):
        return
    x, y = pictures(shape, torch.float64, seed)
    true_x, true_y = x.clone().requires_grad_(), y.clone().requires_grad_()
    true = reduce(1 - oracle_map(true_x, true_y, window, padding), reduction)
    weight = torch.rand(true.shape, dtype=torch.float64) + 0.5
    true_grads = torch.autograd.grad(true, (true_x, true_y), weight)

    a = data.draw(views(x)).requires_grad_()
    b = data.draw(views(y)).requires_grad_()
    size, sigma = window
    loss = ssim_fused.ssim_loss(
        a, b, window_size=size, sigma=sigma, padding=padding, reduction=reduction
    )
    assert relative_error(loss.detach(), true.detach()) < 1e-10
    for grad, expected in zip(torch.autograd.grad(loss, (a, b), weight), true_grads):
        assert relative_error(grad, expected) < 1e-8


@quick
@given(shapes, seeds)
def test_symmetric_in_its_images(shape, seed):
    x, y = pictures(shape, torch.float32, seed)
    assert torch.equal(
        ssim_fused.ssim_loss(x, y, reduction="none"), ssim_fused.ssim_loss(y, x, reduction="none")
    )


@quick
@given(
    shapes, seeds, st.floats(0, 2), st.sampled_from([torch.float32, torch.float16, torch.bfloat16])
)
def test_bounds(shape, seed, noise, dtype):
    x, y = pictures(shape, dtype, seed, noise)
    loss = ssim_fused.ssim_loss(x, y, reduction="none")
    assert loss.min() >= 0
    assert loss.max() <= 2
    assert ssim_fused.ssim_loss(x, x.clone(), reduction="none").count_nonzero() == 0


@quick
@given(shapes, seeds, st.floats(0.01, 1000))
def test_scaling_images_and_data_range_together_changes_nothing(shape, seed, scale):
    x, y = pictures(shape, torch.float64, seed)
    one = ssim_fused.ssim_loss(x, y, reduction="none")
    other = ssim_fused.ssim_loss(x * scale, y * scale, data_range=scale, reduction="none")
    torch.testing.assert_close(other, one, rtol=1e-8, atol=1e-12)


@quick
@given(shapes, seeds)
def test_flipping_the_images_flips_the_map(shape, seed):
    x, y = pictures(shape, torch.float64, seed)
    loss = ssim_fused.ssim_loss(x, y, reduction="none")
    for axes in ((-1,), (-2,), (-2, -1)):
        flipped = ssim_fused.ssim_loss(x.flip(axes), y.flip(axes), reduction="none")
        torch.testing.assert_close(flipped.flip(axes), loss, rtol=1e-8, atol=1e-12)


# ---- the same with every setting ----


@st.composite
def calls(draw):
    """Images, and settings that fit them; symmetric in the axes' order and direction."""
    axes = draw(st.sampled_from([1, 2, 2, 3]))
    longest = {1: 60, 2: 30, 3: 12}[axes]
    padding = draw(st.sampled_from(["same", "valid", "reflect", "replicate", "circular"]))
    taps = [draw(st.sampled_from([1, 3, 5, 9])) for _ in range(axes)]
    least = [count if padding == "valid" else count // 2 + 1 for count in taps]
    size = [draw(st.integers(low, max(low, longest))) for low in least]
    shape = (draw(st.integers(1, 2)), draw(st.integers(1, 3)), *size)
    x, y = pictures(shape, torch.float64, draw(seeds), draw(st.floats(0.01, 1)))
    kind = draw(st.sampled_from(["ssim", "luminance", "contrast_structure", "nonnegative"]))
    return (
        x,
        y,
        {
            "spatial_dims": axes,
            "padding": padding,
            "window_size": tuple(taps),
            "sigma": tuple(draw(st.floats(0.5, 4)) for _ in taps),
            "window": draw(st.sampled_from(["gaussian", "uniform"])),
            "term": "ssim" if kind == "nonnegative" else kind,
            "nonnegative_ssim": kind == "nonnegative",
            "sample_covariance": max(taps) > 1 and draw(st.booleans()),
        },
    )


def both_maps(x, y, **settings):
    """The map of losses by either path, which agree."""
    maps = [
        module.ssim_loss(x, y, reduction="none", **settings) for module in (ssim_fused, reference)
    ]
    torch.testing.assert_close(*maps, rtol=1e-8, atol=1e-12)
    return maps[0]


@quick
@given(calls())
def test_any_call_equals_the_oracle(call):
    x, y, settings = call
    expected = oracle_loss(x, y, reduction="none", **settings)
    torch.testing.assert_close(both_maps(x, y, **settings), expected, rtol=1e-8, atol=1e-11)


@quick
@given(calls())
def test_any_call_is_symmetric_zero_at_identity_and_bounded(call):
    x, y, settings = call
    loss = both_maps(x, y, **settings)
    assert torch.equal(loss, both_maps(y, x, **settings))
    assert both_maps(x, x.clone(), **settings).count_nonzero() == 0
    assert loss.min() >= 0
    assert loss.max() <= (1 if settings["nonnegative_ssim"] else 2)


@quick
@given(calls(), st.data())
def test_flips_and_transposes_of_any_call(call, data):
    x, y, settings = call
    loss, axes = both_maps(x, y, **settings), settings["spatial_dims"]
    flip = [axis for axis in range(-axes, 0) if data.draw(st.booleans())]
    flipped = both_maps(x.flip(flip), y.flip(flip), **settings).flip(flip)
    torch.testing.assert_close(flipped, loss, rtol=1e-9, atol=1e-12)
    order = data.draw(st.permutations(range(axes)))
    swapped = {
        **settings,
        "window_size": tuple(settings["window_size"][i] for i in order),
        "sigma": tuple(settings["sigma"][i] for i in order),
    }
    whole = (0, 1, *(2 + i for i in order))
    turned = both_maps(x.permute(whole), y.permute(whole), **swapped)
    torch.testing.assert_close(turned, loss.permute(whole), rtol=1e-9, atol=1e-12)


@quick
@given(calls())
def test_batch_and_channels_of_any_call_are_independent(call):
    x, y, settings = call
    x, y = x.float(), y.float()
    loss = ssim_fused.ssim_loss(x, y, reduction="none", **settings)
    for n in range(x.shape[0]):
        for c in range(x.shape[1]):
            plane = [t[n : n + 1, c : c + 1] for t in (x, y)]
            alone = ssim_fused.ssim_loss(*plane, reduction="none", **settings)
            assert torch.equal(alone, loss[n : n + 1, c : c + 1])


@quick
@given(calls(), st.floats(0.01, 1000))
def test_scaling_any_call(call, scale):
    x, y, settings = call
    one = both_maps(x, y, **settings)
    other = both_maps(x * scale, y * scale, data_range=scale, **settings)
    torch.testing.assert_close(other, one, rtol=1e-8, atol=1e-11)


@quick
@given(calls(), st.floats(-3, 3))
def test_a_constant_added_to_both_changes_the_luminance_alone(call, constant):
    """Also where k1 is 0: then the luminance term is 1 for images with equal means."""
    x, y, settings = call
    if settings["padding"] == "same":
        settings["padding"] = "replicate"  # zeros outside do not move with the image
    settings |= {"term": "contrast_structure", "nonnegative_ssim": False}
    one = both_maps(x, y, **settings)
    other = both_maps(x + constant, y + constant, **settings)
    torch.testing.assert_close(other, one, rtol=1e-8, atol=1e-11)
    settings["term"] = "luminance"
    mean_x, mean_y = 0.25 + constant, 0.75 + constant
    flat = [torch.full_like(x, mean) for mean in (mean_x, mean_y)]
    expected = (mean_x - mean_y) ** 2 / (mean_x**2 + mean_y**2 + 1e-4)
    found = both_maps(*flat, **settings)
    torch.testing.assert_close(found, torch.full_like(found, expected), rtol=1e-8, atol=1e-12)


@quick
@given(calls(), st.floats(0.1, 10))
def test_constants_of_zero_make_ssim_blind_to_contrast_and_brightness(call, scale):
    """With k1 = k2 = 0 a common factor changes nothing, without data_range's help."""
    x, y, settings = call
    if max(settings["window_size"]) == 1:
        return  # no variance: 0 / 0
    settings |= {"k1": 0.0, "k2": 0.0, "nonnegative_ssim": False}
    one = ssim_fused.ssim_loss(x + 1, y + 1, reduction="none", **settings)
    other = ssim_fused.ssim_loss(scale * (x + 1), scale * (y + 1), reduction="none", **settings)
    torch.testing.assert_close(other, one, rtol=1e-6, atol=1e-8, equal_nan=True)


anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 40),
    st.floats(allow_nan=True, allow_infinity=True),
    st.text(max_size=5),
)
ranks = st.lists(st.integers(0, 12), min_size=0, max_size=6)
dtypes = st.sampled_from(
    [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.complex64]
)


@hypothesis_settings(max_examples=300, deadline=None, derandomize=True)
@given(ranks, ranks, dtypes, dtypes, anything, anything, anything, anything, st.booleans())
def test_bad_input_is_a_value_or_type_error(
    shape_x, shape_y, dtype_x, dtype_y, size, sigma, span, padding, same
):
    """Whatever comes in: a finite result, or an error that the user can act on."""
    x = torch.zeros(shape_x, dtype=dtype_x)
    y = torch.zeros(shape_x if same else shape_y, dtype=dtype_x if same else dtype_y)
    for function in (ssim_fused.ssim_loss, reference.ssim_loss):
        try:
            loss = function(x, y, window_size=size, sigma=sigma, data_range=span, padding=padding)
        except (ValueError, TypeError) as error:
            explained = len(str(error)) > 0
        else:
            explained = bool(torch.isfinite(loss))
        assert explained
