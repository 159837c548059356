"""The native operators and their gradients."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import _distributed, reference
from ._gradients import by_images, if_needed, of_stored, spread
from ._paths import in_float32, why_reference
from ._request import (
    KINDS,
    PLANE,
    REDUCED_TO,
    SUM,
    Backend,
    Request,
    Settings,
    accumulate_dtype,
    can_be_read,
    is_captured,
    is_half,
)
from ._windows import single_window


def _is_spread(request: Request) -> bool:
    """Whether the images are DTensors, whose sums can be shared out, but not their means."""
    if type(request.input) is Tensor or not _distributed.is_spread(request.input):
        return False
    _distributed.register_operators()
    return True


def _to_float32(request: Request) -> Request:
    return request._replace(input=request.input.float(), target=request.target.float())


def reduced_loss(request: Request) -> Tensor:
    """1 - SSIM, reduced: native where it can be, plain PyTorch elsewhere."""
    if why_reference(request) is not None:
        return reference.reduced_loss(request)
    if in_float32(request):
        value = reduced_loss(_to_float32(request))
        is_map = request.settings.reduction == "none" and request.input.is_floating_point()
        return value.to(request.input.dtype) if is_map else value
    is_spread = _is_spread(request)
    if request.settings.reduction in ("mean", "sum"):
        if is_spread and request.settings.reduction == "mean" and request.share is None:
            total = request._replace(settings=request.settings._replace(reduction="sum"))
            return scalar_loss(total) / math.prod(request.map_shape())
        return scalar_loss(request)
    return _apply(_MapLoss, *request)


def image_terms(request: Request, term_weights: tuple[float, ...]) -> Tensor:
    """[4]: the weighted sum of SSIM loss, MSE and L1; and the three, unweighted."""
    one_pass = request.mask is None and request.axes() != 3
    if why_reference(request) is not None or not one_pass or _is_spread(request):
        return reference.separate_terms(reduced_loss, request, term_weights)
    return scalar_loss(_to_float32(request) if in_float32(request) else request, term_weights)


def _flat(settings: Settings, single: bool) -> tuple:
    """Settings as the operators take them, for float32 arithmetic or float64."""
    windows = tuple(map(single_window, settings.windows)) if single else settings.windows
    return (
        windows[0] if len(windows) == 1 else tuple(tap for window in windows for tap in window),
        tuple(map(len, windows)),
        settings.data_range,
        settings.k1,
        settings.k2,
        settings.padding == "valid",
        KINDS.index(settings.kind),
    )


_cached_flat = functools.lru_cache(maxsize=256)(_flat)


def _arguments(settings: Settings, image: Tensor) -> tuple:
    flat = _flat if torch.compiler.is_compiling() else _cached_flat
    return flat(settings, image.dtype != torch.float64)


# ---- gradients ----

_is_vmapped = torch._C._functorch.is_batchedtensor
_is_batched_gradient = torch._C._functorch.is_legacy_batchedtensor


def _wants_higher_order(*depends: Tensor | None) -> bool:
    """Whether gradients are wanted that are themselves differentiable by what they depend on."""
    # backward runs with gradients enabled only for create_graph=True; tracing for torch.compile
    # looks the same, but builds a first-order backward
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    # what a finished torch.func.grad has wrapped says that it requires a gradient, but cannot
    alive = (torch._C._functorch.unwrap_if_dead(v) for v in depends if v is not None)
    return any(value.requires_grad for value in alive)


def _is_batched(value: Tensor) -> bool:
    """Whether a value stands for many, of vmap or of autograd's is_grads_batched."""
    return _is_vmapped(value) or _is_batched_gradient(value)


def _is_one(grad_value: Tensor) -> bool:
    """Whether multiplying would change nothing, told without waiting for a device."""
    return can_be_read(grad_value) and grad_value.item() == 1.0


def _is_hooked() -> bool:
    """Whether what is saved now goes through torch.autograd.graph.saved_tensors_hooks."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._autograd._top_saved_tensors_default_hooks(False) is not None


def _may_write_to_saved(ctx: Any, *grads: Tensor | None) -> bool:
    """Whether nobody asks again for what was saved: no retain_graph, no hook, one gradient, and no
    CUDA graph of the backward alone, as make_graphed_callables records it, which is replayed."""
    kept = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    if kept is None or torch.compiler.is_compiling() or kept() or ctx.is_hooked:
        return False
    return not any(_is_batched(grad) or is_captured(grad) for grad in grads if grad is not None)


def _differentiable_gradients(
    needs: tuple[bool, ...],
    grads: tuple[Tensor, ...],
    request: Request,
    compute: Callable[[Request], tuple[Tensor, ...]],
) -> tuple:
    """Gradients by way of the reference, themselves differentiable."""
    # torch.func's wrappers, whose transform has ended, require no gradient any more
    pair = (request.input, request.target)
    images = [torch._C._functorch.unwrap_if_dead(image) for image in pair]
    wanted = [image for image, needed in zip(images, needs) if needed]

    def values_of(*wanted: Tensor) -> tuple[Tensor, ...]:
        given = iter(wanted)
        x, y = (next(given) if needed else image for image, needed in zip(images, needs))
        values = compute(request._replace(input=x, target=y))
        return tuple(value for value, grad in zip(values, grads) if grad is not None)

    given = [grad for grad in grads if grad is not None]
    with torch.enable_grad():
        if torch._C._are_functorch_transforms_active() or not all(w.requires_grad for w in wanted):
            values, pull_back, *_ = torch.func.vjp(values_of, *wanted)
            found = pull_back(tuple(grad.to(value.dtype) for value, grad in zip(values, given)))
        else:
            # fresh graph nodes: input and target may be one tensor, or derive from each other
            wanted = [image.view_as(image) for image in wanted]
            # a pooled target does not depend on the input
            pairs = [pair for pair in zip(values_of(*wanted), given) if pair[0].requires_grad]
            values = tuple(value for value, _ in pairs)
            given = [grad.to(value.dtype) for value, grad in pairs]
            found = torch.autograd.grad(values, wanted, given, create_graph=True)
    made = iter(found)
    return tuple(next(made) if needed else None for needed in needs[:2])


def _apply(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    """function.apply, without what it does for keyword arguments, which here are none.

    It binds the arguments by inspection at each call, which takes longer than a small picture's
    loss. torch.compile and torch.func need the whole of it.
    """
    if _is_recorded():
        return function.forward(*arguments)
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return function.apply(*arguments)
    return super(torch.autograd.Function, function).apply(*arguments)  # type: ignore[misc]


# ---- mean and sum: the gradient is made with the value, backward scales it ----


def _loss_arguments(request: Request, reduced_to: int | None = None) -> tuple:
    input, target, settings, *beside = request
    if reduced_to is None:
        # what a window's share is in what the loss is reduced to, it is in the sum
        has_share = request.share is not None
        reduced_to = SUM if has_share else REDUCED_TO.index(settings.reduction)
    return (input, target, *beside, *_arguments(settings, input), reduced_to)


def _is_recorded() -> bool:
    """Whether a program is made by torch.export or torch.jit.trace.

    It is to hold the operators, whose own gradients (_gradients.py) are found when it runs.
    """
    if torch.compiler.is_compiling():
        return torch.compiler.is_exporting()
    return torch._C._get_tracing_state() is not None


def _call(operator: Callable, *arguments: Any) -> Any:
    """An operator without the Python of its own gradient: it costs microseconds, and a trace would
    hold it.
    """
    if torch.compiler.is_compiling():
        return operator(*arguments)
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*arguments)


def _needed(request: Request) -> list[bool]:
    """Which images get a gradient that is made with the value."""
    if _is_recorded():
        return [False, False]
    images = (request.input, request.target)
    if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        # the innermost transform does not see what the others around it ask for
        return [image.is_floating_point() for image in images]
    enabled = torch.is_grad_enabled()
    return [enabled and image.requires_grad for image in images]


def scalar_loss(request: Request, term_weights: tuple[float, ...] = ()) -> Tensor:
    """The loss as one number; with term_weights, [4]: their sum and the unweighted terms."""
    needed = _needed(request)
    if any(needed):
        return _apply(_ScalarLoss, *request, term_weights, *needed)[0]
    return _call(torch.ops.ssim_fused.loss.default, *_loss_arguments(request), term_weights)


class _ScalarLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        input, target, settings, share, mask, coverage, term_weights, need_input, need_target
    ):
        request = Request(input, target, settings, share, mask, coverage)
        value, *gradients = _call(
            torch.ops.ssim_fused.loss_and_gradients.default,
            *_loss_arguments(request),
            term_weights,
            need_input,
            need_target,
        )
        return value, *if_needed((need_input, need_target), gradients)

    @staticmethod
    def setup_context(ctx, inputs, output):
        input, target, ctx.settings, share, mask, coverage, ctx.term_weights, *_ = inputs
        gradients = output[1:]
        ctx.mark_non_differentiable(*(made for made in gradients if made is not None))
        ctx.set_materialize_grads(False)
        # all but the gradients are references, kept for double backward alone
        ctx.is_hooked = _is_hooked()
        ctx.save_for_backward(input, target, *gradients, share, mask, coverage)

    @staticmethod
    def backward(ctx, grad_value, *_):
        if grad_value is None:
            return by_images(ctx, (None, None))
        input, target, grad_input, grad_target, *beside = ctx.saved_tensors
        settings = ctx.settings
        if _wants_higher_order(input, target, grad_value):
            request, term_weights = Request(input, target, settings, *beside), ctx.term_weights

            def compute(request: Request) -> tuple[Tensor]:
                if term_weights:
                    return (reference.image_terms(request, term_weights),)
                return (reference.reduced_loss(request),)

            gradients = _differentiable_gradients(
                ctx.needs_input_grad, (grad_value,), request, compute
            )
            return by_images(ctx, gradients)
        if ctx.term_weights:
            grad_value = grad_value[0]  # of the sum alone
        if input.dtype == torch.float16 and settings.reduction == "mean":
            windows = math.prod(Request(input, target, settings).map_shape())
            grad_value = grad_value * of_stored(windows, ctx.term_weights)
        # what was saved is handed out, scaled in its place, only where nobody asks for it again
        last = _may_write_to_saved(ctx, grad_value)
        gradients = (grad_input, grad_target)
        if last and _is_one(grad_value):
            return by_images(ctx, gradients)
        multiply = torch.Tensor.mul_ if last else torch.mul
        scaled = tuple(None if made is None else multiply(made, grad_value) for made in gradients)
        return by_images(ctx, scaled)


# ---- per plane, per image and map: forward keeps the images alone, backward recomputes ----


def _per_plane(request: Request) -> Tensor:
    """[N, C]: means of the planes, or the sums of their windows' shares."""
    planes = _call(torch.ops.ssim_fused.loss.default, *_loss_arguments(request, PLANE), ())
    return planes if request.share is None else planes * math.prod(request.map_shape()[2:])


class _MapLoss(torch.autograd.Function):
    @staticmethod
    def forward(input, target, settings, share, mask, coverage):
        request = Request(input, target, settings, share, mask, coverage)
        if settings.reduction == "none":
            return _call(
                torch.ops.ssim_fused.loss_map.default,
                input,
                target,
                mask,
                coverage,
                *_arguments(settings, input),
            )
        planes = _per_plane(request)
        if settings.reduction == "channel":
            return planes
        return planes.mean(1) if share is None else planes.sum(1)

    @staticmethod
    def setup_context(ctx, inputs, output):
        input, target, ctx.settings, *beside = inputs
        ctx.save_for_backward(input, target, *beside)

    @staticmethod
    def backward(ctx, grad_value):
        input, target, *beside = ctx.saved_tensors
        request = Request(input, target, ctx.settings, *beside)
        if _wants_higher_order(input, target, grad_value):
            gradients = _differentiable_gradients(
                ctx.needs_input_grad, (grad_value,), request, lambda r: (reference.reduced_loss(r),)
            )
            return by_images(ctx, gradients)
        grad_map = grad_value.to(accumulate_dtype(input))
        if ctx.settings.reduction != "none":
            shape, of_images = request.map_shape(), ctx.settings.reduction == "image"
            if of_images:
                grad_map = grad_map[:, None]
            if request.share is None:
                grad_map = grad_map / math.prod(shape[1 if of_images else 2 :])
            grad_map = spread(grad_map, shape, request.share)
        needs = ctx.needs_input_grad[:2]
        gradients = _call(
            torch.ops.ssim_fused.loss_backward.default,
            grad_map,
            input,
            target,
            *beside[1:],
            *_arguments(ctx.settings, input),
            *needs,
        )
        return by_images(ctx, if_needed(needs, gradients))


# ---- one scale of MS-SSIM: the loss of each plane, and both images at half their size ----


class _ScaleLoss(torch.autograd.Function):
    @staticmethod
    def forward(input, target, settings, offset, need_input, need_target):
        planes, half_input, half_target, *gradients = _call(
            torch.ops.ssim_fused.loss_and_pool.default,
            input,
            target,
            offset,
            *_arguments(settings, input),
            need_input,
            need_target,
        )
        return planes, half_input, half_target, *if_needed((need_input, need_target), gradients)

    @staticmethod
    def setup_context(ctx, inputs, output):
        input, target, ctx.settings, ctx.offset, *needed = inputs
        _, *pooled, grad_input, grad_target = output
        # half of an image that needs no gradient needs none either
        constants = [half for half, needs in zip(pooled, needed) if not needs]
        made = [grad for grad in (grad_input, grad_target) if grad is not None]
        ctx.mark_non_differentiable(*constants, *made)
        ctx.set_materialize_grads(False)
        ctx.is_hooked = _is_hooked()
        ctx.save_for_backward(input, target, grad_input, grad_target)

    @staticmethod
    def backward(ctx, *grads):
        input, target, *made = ctx.saved_tensors
        grads = grads[:3]
        if _wants_higher_order(input, target, *grads):
            gradients = _differentiable_gradients(
                ctx.needs_input_grad,
                grads,
                Request(input, target, ctx.settings),
                lambda request: reference.scale(request, ctx.offset),
            )
            return by_images(ctx, gradients)
        grad_planes, *grad_pooled = grads
        if grad_planes is None:
            grad_planes = input.new_zeros(input.shape[:2])
        last = _may_write_to_saved(ctx, *grads)
        gradients = tuple(
            None if grad is None else _unpool(grad, grad_planes, from_half, ctx.offset, last)
            for grad, from_half in zip(made, grad_pooled)
        )
        return by_images(ctx, gradients)


def _unpool(
    grad: Tensor, factor: Tensor, grad_pooled: Tensor | None, offset: tuple[int, ...], last: bool
) -> Tensor:
    # as in _ScalarLoss: what was saved is handed out where nobody asks for it again
    if last and type(grad) is Tensor:
        _call(torch.ops.ssim_fused.unpool_.default, grad, factor, grad_pooled, offset)
        return grad
    return _call(torch.ops.ssim_fused.unpool.default, grad, factor, grad_pooled, offset)


def scale(request: Request, offset: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of each plane, [N, C], and both images at half their size, in the type of sums.

    offset: for each spatial axis, 1 where the first mean of two pixels begins one pixel before the
    image, with zero.
    """
    if why_reference(request) is not None or request.axes() != 2:
        return reference.pooled_scale(reduced_loss, request, offset)
    needed = _needed(request)
    # a half-precision gradient would be rounded at each scale
    if in_float32(request) or (any(needed) and is_half(request.input)):
        request = _to_float32(request)
    return _apply(_ScaleLoss, *request[:3], offset, *needed)[:3]


BACKEND = Backend(reduced_loss, image_terms, scale)
