"""Properties that hold for any shape, layout and settings."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import oracle_map, pictures, reduce, relative_error

import ssim_fused
from ssim_fused import reference

quick = settings(max_examples=60, deadline=None, derandomize=True)

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


@settings(max_examples=300, deadline=None, derandomize=True)
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
