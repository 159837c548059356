"""The native operators: loading them, their fake kernels, and their gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import reference
from ._checks import Settings

LIBRARY = Path(__file__).with_name("_C_cpu.so")
CUDA_LIBRARY = Path(__file__).with_name("_C_cuda.so")
CUDA_MOST_TAPS = 33  # kMostTaps of csrc/ssim_cuda_kernel.h


def _load(library: Path) -> str | None:
    """Load a library of operators; the reason where it cannot be had."""
    if not library.exists():
        why = library.with_suffix(".why")  # left by setup.py
        reason = why.read_text(encoding="utf-8").strip() if why.exists() else "reason unknown"
        return f"it was not built: {reason}"
    try:
        torch.ops.load_library(str(library))
        if library == LIBRARY:
            torch.ops.ssim_fused.cpu_isa()
    except (OSError, RuntimeError) as error:
        return f"it does not load: {str(error).strip().splitlines()[0]}"
    return None


def _load_cuda() -> str | None:
    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    if cpu_reason is not None:
        return f"the CPU library, which declares the operators, is missing: {cpu_reason}"
    return _load(CUDA_LIBRARY)


# None where the path is in use
cpu_reason = _load(LIBRARY)
cuda_reason = _load_cuda()


def serves(input: Tensor, settings: Settings) -> bool:
    """Whether a native kernel computes images like this one."""
    if input.device.type == "cuda":
        return cuda_reason is None and len(settings.window) <= CUDA_MOST_TAPS
    return input.device.type == "cpu" and cpu_reason is None


def reduced_loss(input: Tensor, target: Tensor, settings: Settings) -> Tensor:
    """1 - SSIM of (N, C, H, W) images, reduced: native where it can be, plain PyTorch elsewhere."""
    if not serves(input, settings):
        return reference.reduced_loss(input, target, settings)
    if settings.reduction in ("mean", "sum"):
        return _scalar_loss(input, target, settings)
    return _apply(_MapLoss, input, target, settings)


def _arguments(settings: Settings) -> tuple:
    return (
        settings.window,
        settings.data_range,
        settings.k1,
        settings.k2,
        settings.padding == "valid",
    )


def _is_half(image: Tensor) -> bool:
    return image.dtype in (torch.float16, torch.bfloat16)


def _windows(image: Tensor, settings: Settings) -> tuple[int, int]:
    """Height and width of the map."""
    shrink = len(settings.window) - 1 - 2 * settings.pad
    return image.shape[-2] - shrink, image.shape[-1] - shrink


def _wants_higher_order() -> bool:
    # backward runs with gradients enabled only for create_graph=True; tracing for torch.compile
    # looks the same, but builds a first-order backward
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


def _is_one(grad_value: Tensor) -> bool:
    """Whether multiplying would change nothing, told without waiting for a device."""
    if torch.compiler.is_compiling() or grad_value.device.type != "cpu":
        return False
    return type(grad_value) is Tensor and grad_value.item() == 1.0


def _is_last_backward() -> bool:
    """Whether what was saved is freed after this backward (no retain_graph)."""
    kept = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return kept is not None and not torch.compiler.is_compiling() and not kept()


def _reference_gradients(
    ctx: Any, grad_value: Tensor, input: Tensor, target: Tensor, settings: Settings
) -> tuple:
    """Gradients by way of the reference, themselves differentiable."""
    with torch.enable_grad():
        # fresh graph nodes: input and target may be one tensor, or derive from each other
        x, y = input.view_as(input), target.view_as(target)
        value = reference.reduced_loss(x, y, settings)
        wanted = [image for image, needed in zip((x, y), ctx.needs_input_grad) if needed]
        found = iter(
            torch.autograd.grad(value, wanted, grad_value.to(value.dtype), create_graph=True)
        )
    return tuple(next(found) if needed else None for needed in ctx.needs_input_grad[:2])


def _apply(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    """function.apply, without what it does for keyword arguments, which here are none.

    It binds the arguments by inspection at each call, which takes longer than a small picture's
    loss. Tracing and torch.func need the whole of it.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return function.apply(*arguments)
    return super(torch.autograd.Function, function).apply(*arguments)  # type: ignore[misc]


# ---- mean and sum: the gradient is made with the value, backward scales it ----


def _scalar_loss(input: Tensor, target: Tensor, settings: Settings) -> Tensor:
    enabled = torch.is_grad_enabled()
    need_input, need_target = enabled and input.requires_grad, enabled and target.requires_grad
    if need_input or need_target:
        return _apply(_ScalarLoss, input, target, settings, need_input, need_target)[0]
    return torch.ops.ssim_fused.loss.default(
        input, target, *_arguments(settings), settings.reduction, False, False
    )[0]


class _ScalarLoss(torch.autograd.Function):
    @staticmethod
    def forward(input, target, settings, need_input, need_target):
        return torch.ops.ssim_fused.loss.default(
            input, target, *_arguments(settings), settings.reduction, need_input, need_target
        )

    @staticmethod
    def setup_context(ctx, inputs, output):
        input, target, settings, need_input, need_target = inputs
        _, grad_input, grad_target = output
        ctx.mark_non_differentiable(grad_input, grad_target)
        ctx.set_materialize_grads(False)
        # input and target are references, kept for double backward alone
        ctx.save_for_backward(input, target, grad_input, grad_target)
        ctx.settings = settings
        ctx.needed = (need_input, need_target)

    @staticmethod
    def backward(ctx, grad_value, *_):
        if grad_value is None:
            return None, None, None, None, None
        input, target, grad_input, grad_target = ctx.saved_tensors
        settings = ctx.settings
        if _wants_higher_order():
            gradients = _reference_gradients(ctx, grad_value, input, target, settings)
            return *gradients, None, None, None
        if input.dtype == torch.float16 and settings.reduction == "mean":
            # float16's gradients are stored for the sum, see csrc/ssim_cpu.cpp
            h, w = _windows(input, settings)
            grad_value = grad_value / (input.shape[0] * input.shape[1] * h * w)
        # what was saved is handed out, scaled in its place, only where nobody asks for it again
        last = _is_last_backward()
        if not (last and _is_one(grad_value)):
            scale = torch.Tensor.mul_ if last else torch.mul
            grad_input, grad_target = scale(grad_input, grad_value), scale(grad_target, grad_value)
        need_input, need_target = ctx.needed
        return (
            grad_input if need_input else None,
            grad_target if need_target else None,
            None,
            None,
            None,
        )


# ---- per image and map: forward keeps the images alone, backward recomputes ----


class _MapLoss(torch.autograd.Function):
    @staticmethod
    def forward(input, target, settings):
        arguments = _arguments(settings)
        if settings.reduction == "none":
            return torch.ops.ssim_fused.loss_map.default(input, target, *arguments)
        return torch.ops.ssim_fused.loss.default(input, target, *arguments, "image", False, False)[
            0
        ]

    @staticmethod
    def setup_context(ctx, inputs, output):
        input, target, settings = inputs
        ctx.save_for_backward(input, target)
        ctx.settings = settings

    @staticmethod
    def backward(ctx, grad_value):
        input, target = ctx.saved_tensors
        settings = ctx.settings
        if _wants_higher_order():
            return *_reference_gradients(ctx, grad_value, input, target, settings), None
        grad_map = grad_value.to(torch.float32) if _is_half(input) else grad_value
        if settings.reduction == "image":
            h, w = _windows(input, settings)
            share = grad_map / (input.shape[1] * h * w)
            grad_map = share.view(-1, 1, 1, 1).expand(*input.shape[:2], h, w)
        need_input, need_target = ctx.needs_input_grad[:2]
        grad_input, grad_target = torch.ops.ssim_fused.loss_backward.default(
            grad_map, input, target, *_arguments(settings), need_input, need_target
        )
        return grad_input if need_input else None, grad_target if need_target else None, None


# ---- fake kernels: shapes and dtypes for torch.compile and meta tensors ----


def _accumulate_dtype(image: Tensor) -> torch.dtype:
    return torch.float32 if _is_half(image) else image.dtype


def _fake_gradient(image: Tensor, wanted: bool) -> Tensor:
    return torch.empty_like(image) if wanted else image.new_empty((0,))


def _fake_loss(
    input, target, window, data_range, k1, k2, valid, reduction, grad_input, grad_target
):
    shape = (input.shape[0],) if reduction == "image" else ()
    return (
        input.new_empty(shape, dtype=_accumulate_dtype(input)),
        _fake_gradient(input, grad_input),
        _fake_gradient(target, grad_target),
    )


def _fake_loss_map(input, target, window, data_range, k1, k2, valid):
    shrink = len(window) - 1 if valid else 0
    n, c, h, w = input.shape
    return input.new_empty((n, c, h - shrink, w - shrink))


def _fake_loss_backward(
    grad_map, input, target, window, data_range, k1, k2, valid, grad_input, grad_target
):
    return _fake_gradient(input, grad_input), _fake_gradient(target, grad_target)


if cpu_reason is None:
    torch.library.register_fake("ssim_fused::loss", _fake_loss)
    torch.library.register_fake("ssim_fused::loss_map", _fake_loss_map)
    torch.library.register_fake("ssim_fused::loss_backward", _fake_loss_backward)
