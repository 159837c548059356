"""Borders that continue an image beyond its edge, and their exact adjoint.

The kernels know zeros outside the image, or no outside at all. A reflected, replicated or circular
border is a copy of the image with more pixels around it, over which windows run as over any image;
gradients by those pixels are folded back to where they came from, always in the same order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ._autocast import full_precision


def _outside(length: int, pad: int, mode: str) -> tuple[int, int]:
    """The first of the pixels that stand in front of an axis, and of those behind it."""
    if mode == "reflect":  # d c b | a b c d | c b a
        return 1, length - 1 - pad
    return length - pad, 0  # circular


def _extend(image: Tensor, axis: int, pad: int, mode: str) -> Tensor:
    length = image.shape[axis]
    if mode == "replicate":
        first = image.narrow(axis, 0, 1)
        last = image.narrow(axis, length - 1, 1)
        shape = list(image.shape)
        shape[axis] = pad
        return torch.cat((first.expand(shape), image, last.expand(shape)), dim=axis)
    before, behind = (image.narrow(axis, at, pad) for at in _outside(length, pad, mode))
    if mode == "reflect":
        before, behind = before.flip(axis), behind.flip(axis)
    return torch.cat((before, image, behind), dim=axis)


def _fold(grad: Tensor, axis: int, pad: int, mode: str) -> Tensor:
    """The adjoint of _extend."""
    length = grad.shape[axis] - 2 * pad
    before = grad.narrow(axis, 0, pad)
    behind = grad.narrow(axis, length + pad, pad)
    inside = grad.narrow(axis, pad, length).clone()
    if mode == "replicate":
        inside.narrow(axis, 0, 1).add_(before.sum(axis, keepdim=True))
        inside.narrow(axis, length - 1, 1).add_(behind.sum(axis, keepdim=True))
        return inside
    if mode == "reflect":
        before, behind = before.flip(axis), behind.flip(axis)
    for part, at in zip((before, behind), _outside(length, pad, mode)):
        inside.narrow(axis, at, pad).add_(part)
    return inside


@dataclass(frozen=True)
class _Border:
    """What surrounds an image; no tuple, which torch.func takes for several arguments."""

    pads: tuple[int, ...]  # on both sides of each of the last axes
    mode: str


def _extend_all(image: Tensor, border: _Border) -> Tensor:
    for axis, pad in enumerate(border.pads, start=image.dim() - len(border.pads)):
        image = _extend(image, axis, pad, border.mode) if pad else image
    return image


def _fold_all(grad: Tensor, border: _Border) -> Tensor:
    for axis, pad in reversed(list(enumerate(border.pads, start=grad.dim() - len(border.pads)))):
        grad = _fold(grad, axis, pad, border.mode) if pad else grad
    return grad


class _Extend(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(image: Tensor, border: _Border) -> Tensor:
        return _extend_all(image, border)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _, ctx.border = inputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        return _FoldBack.apply(grad, ctx.border), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        return _extend_all(tangent, ctx.border)


class _FoldBack(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(grad: Tensor, border: _Border) -> Tensor:
        return _fold_all(grad, border)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _, ctx.border = inputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        return _Extend.apply(grad, ctx.border), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        return _fold_all(tangent, ctx.border)


def extend(image: Tensor, pads: list[int], mode: str) -> Tensor:
    """``image`` with ``pads`` more pixels on both sides of each of its last axes.

    mode: "reflect" (d c b | a b c d | c b a), "replicate" (a a a | a b c d | d d d) or "circular"
    (b c d | a b c d | a b c).
    """
    if not any(pads):
        return image
    if image.dtype == torch.uint16:  # which torch does not flip
        return extend(image.view(torch.int16), pads, mode).view(torch.uint16)
    border = _Border(tuple(pads), mode)
    with full_precision(image):
        if torch.compiler.is_compiling():  # Dynamo traces no function with a jvp, and needs none
            return _extend_all(image, border)
        return _Extend.apply(image, border)
