"""Arbitrary calls of the native operators: what must hold whatever they are given.

An operator refuses with an error of its own, or computes: then on every number of threads the same,
and for sane arguments what the reference computes. Nothing may crash; under sanitizers nothing may
be read or written that is not the call's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from tables import TOLERANCE, relative_error
from torch import Tensor

from ssim_fused import reference
from ssim_fused._checks import check_settings
from ssim_fused._request import KINDS, MEAN, Request, accumulate_dtype
from ssim_fused._windows import gaussian_window

OPERATORS = [
    *("loss", "loss_and_gradients", "loss_map", "loss_backward", "loss_and_pool", "unpool"),
    "unpool_",
]
LAYOUTS = [
    *("contiguous", "channels_last", "transposed", "expanded", "every second", "inside another"),
    *("overlapping", "flipped axes"),
]
VALUES = ["uniform", "zeros", "huge", "denormal", "nan", "infinite", "mixed"]
DTYPES = [
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8, torch.uint16),
    *(torch.int32, torch.bool, torch.complex64),
]
# IndexError: what the fake kernels make of wrong offsets and taps; they touch no memory
ERRORS = (RuntimeError, NotImplementedError, TypeError, ValueError, IndexError)


@dataclass(frozen=True)
class Image:
    """How to make a tensor; `like`: instead, the first image itself ("same") or a view of it."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    layout: str = "contiguous"
    values: str = "uniform"
    seed: int = 0
    device: str = "cpu"
    like: str = ""


@dataclass(frozen=True)
class Case:
    """One call of an operator."""

    operator: str
    input: Image
    target: Image
    weight: Image | None = (
        None  # loss_backward's grad_map and the factor of unpool and unpool_, too
    )
    mask: Image | None = None  # their grad_pooled, too
    coverage: Image | None = None
    window: tuple[float, ...] = tuple(gaussian_window(11, 1.5))
    taps: tuple[int, ...] = (11,)
    data_range: float = 1.0
    k1: float = 0.01
    k2: float = 0.03
    valid: bool = False
    kind: int = 0
    reduction: int = MEAN
    term_weights: tuple[float, ...] = ()
    offset: tuple[int, ...] = (0, 0)
    grads: tuple[bool, bool] = (True, True)


def _numbers(image: Image) -> Tensor:
    generator = torch.Generator().manual_seed(image.seed)
    value = torch.rand(image.shape, generator=generator, dtype=torch.float64)
    if not image.dtype.is_floating_point:
        return (value * 255).to(image.dtype)
    spoiled = torch.rand(image.shape, generator=generator) < 0.1
    most = torch.finfo(image.dtype).max
    if image.values == "zeros":
        value = torch.zeros_like(value)
    elif image.values == "huge":
        value = value * most
    elif image.values == "denormal":
        value = value * torch.finfo(image.dtype).tiny
    elif image.values == "nan":
        value[spoiled] = math.nan
    elif image.values == "infinite":
        value[spoiled] = math.inf
    elif image.values == "mixed":
        value = (value - 0.5) * torch.where(spoiled, value.new_tensor(most), 1e-30)
    return value.to(image.dtype)


def _laid_out(value: Tensor, layout: str) -> Tensor:
    """The same numbers in another layout; some layouts repeat a few of them."""
    if value.dim() == 0 or value.numel() == 0:
        return value
    if layout == "channels_last" and value.dim() in (4, 5):
        last = torch.channels_last if value.dim() == 4 else torch.channels_last_3d
        return value.contiguous(memory_format=last)
    if layout == "transposed" and value.dim() > 1:
        return value.mT.contiguous().mT
    if layout == "expanded":
        return value[:1].expand(value.shape) if value.dim() % 2 else value[..., :1].expand_as(value)
    if layout == "every second":
        return torch.stack((value, value), dim=-1)[..., 0]
    if layout == "inside another":
        around = torch.zeros([length + 3 for length in value.shape], dtype=value.dtype)
        for axis, length in enumerate(value.shape):
            around = around.narrow(axis, 2, length)
        return around.copy_(value)
    if layout == "overlapping":
        flat = value.flatten()
        strides = [1] * value.dim()
        return flat.as_strided(value.shape, strides) if _fits(value.shape, flat) else value
    if layout == "flipped axes":
        order = list(range(value.dim()))[::-1]
        return value.permute(order).contiguous().permute(order)
    return value


def _fits(shape: torch.Size, flat: Tensor) -> bool:
    return sum(length - 1 for length in shape) < flat.numel()


def make(image: Image | None, first: Tensor | None = None) -> Tensor | None:
    """The tensor that an `Image` describes."""
    if image is None:
        return None
    if image.like and first is not None:
        return first if image.like == "same" else first.view_as(first)
    if image.device == "meta":
        return torch.empty(image.shape, dtype=image.dtype, device="meta")
    return _laid_out(_numbers(image), image.layout)


def _arguments(case: Case) -> tuple:
    input = make(case.input)
    target = make(case.target, input)
    weight, mask, coverage = (make(of, input) for of in (case.weight, case.mask, case.coverage))
    settings = (
        *(list(case.window), list(case.taps), case.data_range, case.k1, case.k2, case.valid),
        case.kind,
    )
    if case.operator in ("loss", "loss_and_gradients"):
        extra = (case.reduction, list(case.term_weights))
        grads = case.grads if case.operator == "loss_and_gradients" else ()
        return (input, target, weight, mask, coverage, *settings, *extra, *grads)
    if case.operator == "loss_map":
        return (input, target, mask, coverage, *settings)
    if case.operator == "loss_backward":
        grad_map = torch.ones(()) if weight is None else weight
        return (grad_map, input, target, mask, coverage, *settings, *case.grads)
    if case.operator == "loss_and_pool":
        return (input, target, list(case.offset), *settings, *case.grads)
    factor = torch.ones(()) if weight is None else weight
    return (input, factor, mask, list(case.offset))


def _is_sane(case: Case) -> bool:
    """Whether the reference computes the same to float precision."""
    return (
        case.operator in ("loss", "loss_and_gradients")
        and (case.weight or case.mask or case.coverage) is None
        and all(image.values == "uniform" for image in (case.input, case.target))
        and case.input.dtype in (torch.float32, torch.float64)
        and case.window == Case.window
        and case.data_range == 1.0
        and (case.k1, case.k2) == (0.01, 0.03)
        and case.reduction == MEAN
        and not case.term_weights
    )


def _check_value(case: Case, arguments: tuple, value: Tensor) -> None:
    settings = check_settings(padding="valid" if case.valid else "same")
    images = [image.double() for image in arguments[:2]]
    expected = reference.reduced_loss(Request(*images, settings._replace(kind=KINDS[case.kind])))
    tolerance, _ = TOLERANCE[accumulate_dtype(arguments[0])]
    assert relative_error(value.double(), expected) <= tolerance


def _same(a: Tensor, b: Tensor) -> bool:
    """Equal, where NaN equals NaN."""
    if not (a.is_floating_point() or a.is_complex()):
        return torch.equal(a, b)
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


def run(case: Case) -> str:
    """Make one call; "refused" or "computed", or an AssertionError."""
    arguments = _arguments(case)
    call = getattr(torch.ops.ssim_fused, case.operator).default
    untouched = [a.clone() if isinstance(a, Tensor) and not a.is_meta else a for a in arguments]
    in_place = case.operator.endswith("_")

    def results() -> tuple[Tensor, ...]:
        if not in_place:
            found = call(*arguments)
            return found if isinstance(found, tuple) else (found,)
        written = arguments[0].clone()
        call(written, *arguments[1:])
        return (written,)

    try:
        found = results()
    except ERRORS as error:
        if not str(error):
            raise AssertionError("an error without a word") from error
        return "refused"
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3 - min(threads, 2))
        again = results()
    finally:
        torch.set_num_threads(threads)
    for a, b in zip(found, again):
        assert (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)
        assert a.is_meta or _same(a, b), "threads change the result"
    for before, after in zip(untouched, arguments):
        if isinstance(after, Tensor) and not after.is_meta:
            assert _same(before, after), "an argument was written to"
    if _is_sane(case) and not found[0].is_meta:
        _check_value(case, arguments, found[0])
    return "computed"
