"""Gradients of the operators, for programs that hold them by name: exported and traced ones.

What the library itself calls has its gradients from ``_ops``, which makes them with the value and
knows second derivatives.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ._fakes import map_shape
from ._request import MEAN, PLANE, accumulate_dtype, is_half

_SECOND = "ssim_fused: an exported or traced program has no second derivatives of the loss"


def of_stored(windows: int, term_weights: tuple[float, ...]) -> float:
    """What stored gradients of a mean of float16 images are multiplied with.

    As Reduction::stored_for() in csrc/ssim_operators.h has stored them.
    """
    largest = max(map(abs, term_weights)) if term_weights else 1.0
    return (largest or 1.0) / windows


def spread(grad: Tensor, shape: list[int], share: Tensor | None) -> Tensor:
    """The gradient by a map of that shape, of the one by each plane's loss, [N, C] or [N, 1]."""
    grad = grad[(..., *(None,) * (len(shape) - 2))].expand(shape)
    return grad if share is None else grad * share


def if_needed(needs: Iterable[bool], grads: Iterable[Any]) -> tuple:
    """Gradients by the two images; None for one that is not needed."""
    need_input, need_target = needs
    grad_input, grad_target = grads
    return grad_input if need_input else None, grad_target if need_target else None


def by_images(ctx: Any, grads: tuple) -> tuple:
    """What a backward returns: gradients by the two images, None for what else forward takes."""
    return *grads, *(None,) * (len(ctx.needs_input_grad) - 2)


def _map_shape(input: Tensor, settings: Any) -> list[int]:
    _, taps, *_, valid, _ = settings
    return map_shape(input, taps, valid)


def _no_second(ctx: Any, *grads: Tensor | None) -> tuple:
    raise NotImplementedError(_SECOND)


# ---- the loss, reduced ----


def _save_loss(ctx: Any, inputs: tuple, output: Any) -> None:
    ctx.beside, ctx.wanted = inputs[5:14], inputs[14:]
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:5], *(output[1:] if ctx.wanted else ()))


def _gradients_of_loss(ctx: Any, grad_value: Tensor | None, *of_gradients: Tensor | None) -> tuple:
    if any(grad is not None for grad in of_gradients):
        raise NotImplementedError(_SECOND)
    if grad_value is None:
        return by_images(ctx, (None, None))
    input, target, share, mask, coverage, *made = ctx.saved_tensors
    *settings, reduction, term_weights = ctx.beside
    needs = ctx.needs_input_grad[:2]
    shape = _map_shape(input, settings)
    if reduction == PLANE:
        grad_map = spread(grad_value / math.prod(shape[2:]), shape, share)
        grads = torch.ops.ssim_fused.loss_backward.default(
            grad_map, input, target, mask, coverage, *settings, *needs
        )
        return by_images(ctx, if_needed(needs, grads))
    if not made or any(needed and not had for needed, had in zip(needs, ctx.wanted)):
        _, *made = torch.ops.ssim_fused.loss_and_gradients.default(
            input, target, share, mask, coverage, *ctx.beside, *needs
        )
    if term_weights:
        grad_value = grad_value[0]  # of the sum alone
    if input.dtype == torch.float16 and reduction == MEAN:
        grad_value = grad_value * of_stored(math.prod(shape), term_weights)
    grads = (grad * grad_value.to(grad.dtype) for grad in made)
    return by_images(ctx, if_needed(needs, grads))


# ---- the map ----


def _save_map(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.settings = inputs[4:]
    ctx.save_for_backward(*inputs[:4])


def _gradients_of_map(ctx: Any, grad_map: Tensor) -> tuple:
    input, target, mask, coverage = ctx.saved_tensors
    needs = ctx.needs_input_grad[:2]
    grads = torch.ops.ssim_fused.loss_backward.default(
        grad_map.to(accumulate_dtype(input)), input, target, mask, coverage, *ctx.settings, *needs
    )
    return by_images(ctx, if_needed(needs, grads))


# ---- one scale of MS-SSIM ----


def _save_scale(ctx: Any, inputs: tuple, output: tuple) -> None:
    input, target, ctx.offset = inputs[:3]
    ctx.settings, ctx.wanted = inputs[3:-2], inputs[-2:]
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(input, target, *output[3:])


def _gradients_of_scale(ctx: Any, *grads: Tensor | None) -> tuple:
    grad_planes, *grad_halves = grads[:3]
    if any(grad is not None for grad in grads[3:]):
        raise NotImplementedError(_SECOND)
    input, target, *made = ctx.saved_tensors
    needs = ctx.needs_input_grad[:2]
    if is_half(input) or any(needed and not had for needed, had in zip(needs, ctx.wanted)):
        images = [image.to(accumulate_dtype(image)) for image in (input, target)]
        *_, grad_input, grad_target = torch.ops.ssim_fused.loss_and_pool.default(
            *images, ctx.offset, *ctx.settings, *needs
        )
        made = [grad_input, grad_target]
    if grad_planes is None:
        grad_planes = input.new_zeros(input.shape[:2], dtype=accumulate_dtype(input))
    found = tuple(
        torch.ops.ssim_fused.unpool.default(grad, grad_planes, half, ctx.offset).to(input.dtype)
        if needed
        else None
        for needed, grad, half in zip(needs, made, grad_halves)
    )
    return by_images(ctx, found)


def register_gradients() -> None:
    """Tell torch; once, when the operators are loaded."""
    for name, gradients, save in (
        ("loss", _gradients_of_loss, _save_loss),
        ("loss_and_gradients", _gradients_of_loss, _save_loss),
        ("loss_map", _gradients_of_map, _save_map),
        ("loss_and_pool", _gradients_of_scale, _save_scale),
        ("loss_backward", _no_second, None),
        ("unpool", _no_second, None),
    ):
        torch.library.register_autograd(f"ssim_fused::{name}", gradients, setup_context=save)
