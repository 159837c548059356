"""Bad input is explained before any kernel runs; no direct call of an operator reads outside."""

from __future__ import annotations

import pytest
import torch
from tables import pictures

import ssim_fused
from ssim_fused import _ops, reference

X = torch.rand(2, 3, 16, 20)

# two images, settings, error, words that the message must hold
CASES = {
    "shapes": (X, X[..., :-1], {}, ValueError, ["(2, 3, 16, 20)", "(2, 3, 16, 19)"]),
    "broadcastable": (X, X[:1], {}, ValueError, ["(2, 3, 16, 20)", "(1, 3, 16, 20)"]),
    "dtypes": (X, X.double(), {}, TypeError, ["float32", "float64"]),
    "devices": (X, X.to("meta"), {}, ValueError, ["cpu", "meta"]),
    "integer": (X.int(), X.int(), {}, TypeError, ["int32"]),
    "bytes": (X.byte(), X.byte(), {}, TypeError, ["uint8"]),
    "complex": (X.cfloat(), X.cfloat(), {}, TypeError, ["complex64"]),
    "bool": (X > 0.5, X > 0.5, {}, TypeError, ["bool"]),
    "sparse": (X.to_sparse(), X.to_sparse(), {}, TypeError, ["sparse"]),
    "not a tensor": (X.numpy(), X, {}, TypeError, ["ndarray"]),
    "None": (X, None, {}, TypeError, ["NoneType"]),
    "rank 2": (X[0, 0], X[0, 0], {}, ValueError, ["(16, 20)"]),
    "rank 5": (X[None], X[None], {}, ValueError, ["(1, 2, 3, 16, 20)"]),
    "rank 0": (torch.tensor(1.0), torch.tensor(1.0), {}, ValueError, ["()"]),
    "empty batch": (X[:0], X[:0], {}, ValueError, ["(0, 3, 16, 20)"]),
    "empty rows": (X[:, :, :0], X[:, :, :0], {}, ValueError, ["(2, 3, 0, 20)"]),
    "even window": (X, X, {"window_size": 10}, ValueError, ["window_size", "10"]),
    "no window": (X, X, {"window_size": 0}, ValueError, ["window_size", "0"]),
    "negative window": (X, X, {"window_size": -3}, ValueError, ["-3"]),
    "float window": (X, X, {"window_size": 11.0}, TypeError, ["window_size", "float"]),
    "bool window": (X, X, {"window_size": True}, TypeError, ["bool"]),
    "window too large": (
        X,
        X,
        {"window_size": 17, "padding": "valid"},
        ValueError,
        ["17", "16 x 20"],
    ),
    "sigma 0": (X, X, {"sigma": 0.0}, ValueError, ["sigma", "0.0"]),
    "sigma negative": (X, X, {"sigma": -1.5}, ValueError, ["-1.5"]),
    "sigma nan": (X, X, {"sigma": float("nan")}, ValueError, ["nan"]),
    "sigma text": (X, X, {"sigma": "1.5"}, TypeError, ["sigma", "str"]),
    "range 0": (X, X, {"data_range": 0}, ValueError, ["data_range", "0"]),
    "range infinite": (X, X, {"data_range": float("inf")}, ValueError, ["inf"]),
    "k1": (X, X, {"k1": -0.01}, ValueError, ["k1"]),
    "k2": (X, X, {"k2": float("nan")}, ValueError, ["k2"]),
    "padding": (X, X, {"padding": "full"}, ValueError, ["padding", "'full'", "'same'"]),
    "reduction": (X, X, {"reduction": "avg"}, ValueError, ["reduction", "'avg'", "'mean'"]),
}


@pytest.mark.parametrize(
    "function", [ssim_fused.ssim, ssim_fused.ssim_loss, reference.ssim, reference.ssim_loss]
)
@pytest.mark.parametrize("name", CASES)
def test_errors_name_what_was_received(function, name):
    x, y, settings, error, words = CASES[name]
    with pytest.raises(error) as caught:
        function(x, y, **settings)
    for word in words:
        assert word in str(caught.value)


def test_modules_check_at_construction():
    with pytest.raises(ValueError, match="window_size"):
        ssim_fused.SSIMLoss(kernel_size=4)
    with pytest.raises(ValueError, match="sigma"):
        ssim_fused.CVAELoss(sigma=-1)
    with pytest.raises(TypeError, match="alpha"):
        ssim_fused.CVAELoss(alpha="1")
    with pytest.raises(ValueError, match="beta"):
        ssim_fused.CVAELoss(beta=float("inf"))


def test_modules_refuse_other_channel_counts():
    with pytest.raises(ValueError, match=r"\(2, 3, 16, 20\) and \(2, 4, 16, 20\)"):
        ssim_fused.SSIMLoss()(X, torch.rand(2, 4, 16, 20))
    with pytest.raises(ValueError, match=r"\(2, 3, 16, 20\) and \(2, 1, 16, 20\)"):
        ssim_fused.CVAELoss()(X, X[:, :1], torch.zeros(2, 4), torch.zeros(2, 4))


def test_latent_errors():
    loss = ssim_fused.CVAELoss()
    with pytest.raises(ValueError, match=r"\(2, 4\) and \(2, 5\)"):
        loss(X, X, torch.zeros(2, 4), torch.zeros(2, 5))
    with pytest.raises(TypeError, match=r"mu must be a torch\.Tensor"):
        loss(X, X, None, torch.zeros(2, 4))
    with pytest.raises(TypeError, match="int64"):
        loss(X, X, torch.zeros(2, 4, dtype=torch.int64), torch.zeros(2, 4))


# ---- direct calls of the operators ----

native = pytest.mark.skipif(
    _ops.cpu_reason is not None, reason=f"no native library: {_ops.cpu_reason}"
)
WINDOW = (0.25, 0.5, 0.25)
HOSTILE = {
    "shapes": (X, X[..., :5], WINDOW, 1.0),
    "rank": (X[0], X[0], WINDOW, 1.0),
    "dtypes": (X, X.double(), WINDOW, 1.0),
    "integer": (X.int(), X.int(), WINDOW, 1.0),
    "empty": (X[:0], X[:0], WINDOW, 1.0),
    "even window": (X, X, WINDOW[:2], 1.0),
    "no window": (X, X, (), 1.0),
    "lopsided window": (X, X, (0.5, 0.3, 0.2), 1.0),
    "range": (X, X, WINDOW, 0.0),
    "range nan": (X, X, WINDOW, float("nan")),
}


@native
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_operator_calls_raise(name):
    x, y, window, data_range = HOSTILE[name]
    arguments = (x, y, window, data_range, 0.01, 0.03, False)
    with pytest.raises(RuntimeError, match="ssim_fused"):
        torch.ops.ssim_fused.loss(*arguments, "mean", True, True)
    with pytest.raises(RuntimeError, match="ssim_fused"):
        torch.ops.ssim_fused.loss_map(*arguments)
    with pytest.raises(RuntimeError, match="ssim_fused"):
        torch.ops.ssim_fused.loss_backward(torch.ones(2, 3, 16, 20), *arguments, True, True)


@native
def test_hostile_arguments_beside_the_images():
    arguments = (X, X, WINDOW, 1.0, 0.01, 0.03, False)
    ops = torch.ops.ssim_fused
    with pytest.raises(RuntimeError, match="reduction"):
        ops.loss(*arguments, "median", False, False)
    with pytest.raises(RuntimeError, match="loss_backward"):
        ops.loss(*arguments, "image", True, False)
    with pytest.raises(RuntimeError, match="larger"):
        ops.loss(X, X, (1 / 21,) * 21, 1.0, 0.01, 0.03, True, "mean", True, False)
    for grad_map in (
        torch.ones(2, 3, 16, 19),
        torch.ones(2, 3, 16),
        torch.ones(2, 3, 16, 20).double(),
    ):
        with pytest.raises(RuntimeError, match="grad_map"):
            ops.loss_backward(grad_map, *arguments, True, False)


@native
def test_a_window_with_nan_does_not_crash():
    loss = torch.ops.ssim_fused.loss(
        X, X + 0.1, (float("nan"),) * 3, 1.0, 0.01, 0.03, False, "mean", True, True
    )
    assert torch.isnan(loss[0])


def test_an_overshoot_of_the_range_is_no_error():
    x, y = pictures((1, 1, 20, 20))
    assert torch.isfinite(ssim_fused.ssim_loss(x * 1.5 - 0.2, y))
