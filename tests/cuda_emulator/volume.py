"""The CUDA kernel for volumes on the CPU: calling it, and comparing with float64.

``python -m cuda_emulator.volume CSRC``: exits with an error where the kernel in CSRC is wrong.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tables import TOLERANCE, relative_error
from torch import Tensor

from ssim_fused._checks import gaussian_window

from . import ROOT, TASKS, _array, accumulation, coverage_of, load, random_mask, true_map

KINDS = ["ssim", "contrast", "luminance", "nonnegative"]  # Kind of ssim_math.h
MOST_TAPS = 33


def load_volume(csrc: Path = ROOT / "csrc", flags: tuple[str, ...] = ()):
    """The emulator as a Python module."""
    return load(csrc, flags, "volume_module.cpp", "cuda_emulator_volume")


def volumes(shape, dtype=torch.float32, seed=0, noise=0.1) -> tuple[Tensor, Tensor]:
    """A smooth random volume with grain in [0, 1], and a noisy copy."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*size):
        return torch.rand(size, generator=generator, dtype=torch.float64)

    n, c, *size = shape
    coarse = rand(n, c, *(math.ceil(length / 12) + 1 for length in size))
    smooth = F.interpolate(coarse, size=size, mode="trilinear", align_corners=True)
    volume = (0.9 * smooth + 0.1 * rand(*shape)).clamp(0, 1)
    return volume.to(dtype), (volume + noise * (2 * rand(*shape) - 1)).to(dtype)


def sides_of(taps) -> tuple:
    """Size and sigma of a Gaussian along z, y and x: 1.5 wide at 11 taps."""
    return tuple((length, 1.5 * length / 11) for length in taps)


def run(
    native,
    task,
    x,
    y,
    taps,
    valid=False,
    *,
    kind="ssim",
    data_range=1.0,
    weight=None,
    mask=None,
    cut=None,
    sms=4,
):
    """One launch: (sums of each volume, map, gradients to x and y, geometry), as tensors."""
    map_dtype = x.dtype if x.dtype.is_floating_point else torch.float32
    size = [n - (k - 1 if valid else 0) for n, k in zip(x.shape[2:], taps)]
    out_map = torch.full((*x.shape[:2], *size), float("nan"), dtype=map_dtype)
    grads = [torch.empty_like(volume, dtype=map_dtype).fill_(float("nan")) for volume in (x, y)]
    windows = np.zeros((3, MOST_TAPS))
    for axis, side in enumerate(sides_of(taps)):
        windows[axis, : taps[axis]] = gaussian_window(*side)
    beside = [weight, mask, None]
    if mask is not None:
        beside[2] = coverage_of(mask, sides_of(taps), valid).to(mask.dtype)
    geometry = native.run(
        str(x.dtype).removeprefix("torch."),
        task,
        _array(x),
        _array(y),
        windows,
        tuple(taps),
        KINDS.index(kind),
        valid,
        data_range,
        sms,
        *(None if value is None else value.numpy() for value in beside),
        _array(out_map),
        *(_array(grad) for grad in grads),
        cut,
    )
    sums = geometry.pop("sums", None)
    sums = None if sums is None else torch.from_numpy(np.array(sums)).view(x.shape[:2])
    return sums, out_map, *grads, geometry


def check(native, task, x, y, taps=(11, 11, 11), valid=False, **how) -> dict:
    """One launch against the textbook formula in float64; the geometry that it had.

    A backward task without a `weight` gets a random one.
    """
    accumulate = accumulation(x.dtype)
    true_x, true_y = (t.detach().double().requires_grad_() for t in (x, y))
    kind, data_range = how.get("kind", "ssim"), how.get("data_range", 1.0)
    given = (sides_of(taps), valid, kind, data_range, how.get("mask"))
    true = true_map(true_x, true_y, *given)
    if task.startswith("backward") and how.get("weight") is None:
        weight = (torch.rand(true.shape) + 0.5).to(accumulate)
        # a view of other strides
        how["weight"] = weight.transpose(2, 4).contiguous().transpose(2, 4)
    weighted = true if how.get("weight") is None else true * how["weight"].double()
    sums, out_map, *grads, geometry = run(native, task, x, y, taps, valid, **how)
    value_tolerance, _ = TOLERANCE[accumulate]
    _, grad_tolerance = TOLERANCE[out_map.dtype]
    if task in ("value", "gradient", "gradients"):
        error = relative_error(sums, weighted.detach().sum(dim=(2, 3, 4)))
        assert error <= value_tolerance, f"sums: {error:.1e}"
        total = torch.tensor(geometry["total"], dtype=torch.float64)
        error = relative_error(total, weighted.detach().sum())
        assert error <= value_tolerance, f"total: {error:.1e}"
        assert geometry["arrived"] == 0, "the next launch would miscount its blocks"
    if task == "map":
        error = relative_error(out_map, true.detach())
        # a voxel keeps the rounding that a sum averages out, see MAP_TOLERANCE
        assert error <= max(10 * value_tolerance, grad_tolerance), f"map: {error:.1e}"
    if task not in ("value", "map"):
        true_grads = torch.autograd.grad(weighted.sum(), (true_x, true_y))
        error = relative_error(grads[0], true_grads[0])
        assert error <= grad_tolerance, f"gradient to x: {error:.1e}"
        if task.endswith("s"):
            error = relative_error(grads[1], true_grads[1])
            assert error <= grad_tolerance, f"gradient to y: {error:.1e}"
    return geometry


# One voxel; smaller than the windows; two volumes of two blocks along each axis, the last not full
QUICK = [
    ((1, 1, 1, 1, 1), None),
    ((1, 2, 5, 7, 9), None),
    ((2, 1, 12, 18, 20), (2, 2, 2)),
]


def quick_checks(native) -> None:
    """What every task must pass; short enough to run after each mutation."""
    for task in TASKS:
        for shape, cut in QUICK:
            for taps in ((11, 11, 11), (3, 5, 7)):
                x, y = volumes(shape)
                x = (x + 2).transpose(2, 3).contiguous().transpose(2, 3)
                y = y + 2
                wide = torch.zeros((*shape[:4], 2 * shape[4]))
                wide[..., ::2] = y
                blocks = (2, 3, 3) if cut and taps[0] != 11 else cut
                valid = cut is not None and task == "gradients"
                check(native, task, x, wide[..., ::2], taps, valid, cut=blocks)
        quick_extra_checks(native, task)
    check_highlight(native)


def check_highlight(native) -> None:
    """It is no pivot: all other voxels would lose their digits to it. Nor is a bright spot."""
    x, y = volumes((1, 1, 16, 16, 16))
    x[0, 0, :, 8, 8] = 1000  # the centres of all tiles
    check(native, "gradients", x, y)
    x[0, 0, :, 2, 2] = 1000  # the median of three, too
    check(native, "gradients", x, y)
    x, y = (0.01 * volume for volume in volumes((1, 1, 16, 16, 16)))
    x[0, 0, :, 8, 8] = 1
    check(native, "gradients", x, y)


def quick_extra_checks(native, task) -> None:
    """The same for what few calls ask for."""
    for shape, cut in QUICK[1:]:
        for taps in ((11, 11, 11), (3, 5, 7)):
            x, y = volumes(shape)
            for expanded in (False, True):
                mask = random_mask((*shape[:1], 1, *shape[2:]) if expanded else shape)
                weight = (torch.rand(1, 1, 1, 1, shape[4]) + 0.5).expand(shape)
                how = {"mask": mask.expand(shape), "weight": weight}
                check(native, task, x, y, taps, cut=cut and (2, 3, 3), **how)


if __name__ == "__main__":
    quick_checks(load_volume(Path(sys.argv[1]), ("-DSSIM_EMULATOR_FLOAT_ONLY",)))
