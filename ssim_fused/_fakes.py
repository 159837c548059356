"""Shapes and dtypes of what the operators make, for torch.compile and meta tensors."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ._request import PLANE, accumulate_dtype


def map_shape(image: Tensor, taps: Any, valid: bool) -> list:
    """Shape of the map, from what the operators are told."""
    *planes, size = image.shape[0], image.shape[1], image.shape[2:]
    counts = list(taps) * len(size) if len(taps) == 1 else taps
    shrunk = [length - (count - 1 if valid else 0) for length, count in zip(size, counts)]
    return [*planes, *shrunk]


def _fake_gradient(image: Tensor, wanted: bool) -> Tensor:
    return torch.empty_like(image) if wanted else image.new_empty((0,))


def _fake_loss(
    input, target, share, mask, coverage, window, taps, data_range, k1, k2, valid, kind,
    reduction, term_weights,
):  # fmt: skip
    shape = tuple(input.shape[:2]) if reduction == PLANE else (4,) if term_weights else ()
    return input.new_empty(shape, dtype=accumulate_dtype(input))


def _fake_loss_and_gradients(input, target, *beside):
    *settings, grad_input, grad_target = beside
    value = _fake_loss(input, target, *settings)
    return value, _fake_gradient(input, grad_input), _fake_gradient(target, grad_target)


def _fake_loss_map(input, target, mask, coverage, window, taps, data_range, k1, k2, valid, kind):
    dtype = input.dtype if input.is_floating_point() else torch.float32
    return input.new_empty(map_shape(input, taps, valid), dtype=dtype)


def _fake_loss_backward(
    grad_map, input, target, mask, coverage, window, taps, data_range, k1, k2, valid, kind,
    grad_input, grad_target,
):  # fmt: skip
    return _fake_gradient(input, grad_input), _fake_gradient(target, grad_target)


def _fake_loss_and_pool(
    input, target, pool_offset, window, taps, data_range, k1, k2, valid, kind, grad_input,
    grad_target,
):  # fmt: skip
    dtype = accumulate_dtype(input)
    n, c, h, w = input.shape
    pooled = (n, c, (h + pool_offset[0]) // 2, (w + pool_offset[1]) // 2)
    return (
        input.new_empty((n, c), dtype=dtype),
        input.new_empty(pooled, dtype=dtype),
        input.new_empty(pooled, dtype=dtype),
        _fake_gradient(input, grad_input),
        _fake_gradient(target, grad_target),
    )


def _fake_unpool(grad, factor, grad_pooled, pool_offset):
    return torch.empty_like(grad)


def _fake_unpool_(grad, factor, grad_pooled, pool_offset):
    return None


def _checked(fake: Callable) -> Callable:
    """A fake kernel that refuses some of what the operators refuse."""

    @functools.wraps(fake)
    def checked(*arguments):
        devices = {value.device for value in arguments if isinstance(value, Tensor)}
        if len(devices) > 1:
            names = ", ".join(sorted(map(str, devices)))
            raise RuntimeError(f"ssim_fused: tensors must be on one device, got {names}")
        if arguments[0].dim() not in (4, 5):
            shape = tuple(arguments[0].shape)
            raise RuntimeError(
                f"ssim_fused: images must be (N, C, H, W) or (N, C, D, H, W), got {shape}"
            )
        return fake(*arguments)

    return checked


def register_fakes() -> None:
    """Tell torch; once, when the operators are loaded."""
    fakes: dict[str, Callable[..., Any]] = {
        "loss": _fake_loss,
        "loss_and_gradients": _fake_loss_and_gradients,
        "loss_map": _fake_loss_map,
        "loss_backward": _fake_loss_backward,
        "loss_and_pool": _fake_loss_and_pool,
        "unpool": _fake_unpool,
        "unpool_": _fake_unpool_,
    }
    for name, fake in fakes.items():
        torch.library.register_fake(f"ssim_fused::{name}", _checked(fake))
