"""Which code computes a call, in words."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _paths
from ._call import prepare
from ._checks import BORDERS, FLOATING, SETTINGS, check_names


def _kind_of(device: str | torch.device) -> str:
    """The kind of a device, without its number, or a clear error."""
    try:
        return torch.device(device).type
    except (RuntimeError, TypeError):
        raise ValueError(
            f'device must be one of PyTorch\'s, such as "cpu" or "cuda", got {device!r}'
        ) from None


def explain(
    input: Tensor,
    target: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    mask_threshold: float = 0.5,
    weight: Tensor | None = None,
    device: str | torch.device | None = None,
    **settings: Any,
) -> str:
    """Say which code computes :func:`ssim_fused.ssim_loss` of such a call, and why.

    It is about that function alone, not about :func:`ssim_fused.ms_ssim_loss` or
    :func:`ssim_fused.image_loss`.

    Args:
        input, target, mask, mask_threshold, weight, settings: as in :func:`ssim_fused.ssim_loss`;
            one image is enough. Wrong ones raise what it raises.
        device: such as ``"cpu"`` or ``"cuda"``, to ask for another than the images are on.

    Returns:
        In one line, which path serves the call, and what is done before ("native, ..." or
        "fallback (plain PyTorch): why").

    Example:
        >>> explain(torch.rand(1, 3, 64, 64), padding="reflect")
        'native, avx512; float32; border "reflect" as a copy with more pixels around it'
    """
    check_names(explain, settings, (*SETTINGS, "mask", "mask_threshold", "weight", "device"))
    target = input if target is None else target
    request, _ = prepare(
        input, target, **settings, mask=mask, mask_threshold=mask_threshold, weight=weight
    )
    device = request.input.device.type if device is None else _kind_of(device)
    reason = _paths.why_reference(request, device)
    dtype = str(input.dtype).removeprefix("torch.")
    if reason is not None:
        path = f"fallback (plain PyTorch): {reason}"
        converts = input.dtype not in (torch.float32, torch.float64)
    else:
        path = f"native, {torch.ops.ssim_fused.cpu_isa() if device == 'cpu' else 'CUDA'}"
        converts = _paths.in_float32(request, device)
    parts = [path, f"{dtype}, converted to float32 first" if converts else dtype]
    if (padding := settings.get("padding")) in BORDERS:
        parts.append(f'border "{padding}" as a copy with more pixels around it')
    if reason is None and input.dtype in FLOATING and device == "cpu" and request.axes() == 3:
        parts.append("gradients in two passes")
    return "; ".join(parts)
