"""The CUDA kernel for volumes on the CPU: calling it, comparing with float64, and planted faults.

``python -m cuda_emulator.volume CSRC``: exits with an error where the kernel in CSRC is wrong.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tables import C1, C2, TOLERANCE, relative_error
from torch import Tensor

from ssim_fused._checks import gaussian_window

from . import ROOT, TASKS, _array, load
from .mutations import Mutation

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


def windows_of(taps) -> list[tuple[float, ...]]:
    """A Gaussian along z, y and x: 1.5 wide at 11 taps."""
    return [gaussian_window(length, 1.5 * length / 11) for length in taps]


def oracle_loss(x: Tensor, y: Tensor, taps, valid=False, kind="ssim") -> Tensor:
    """1 minus the map by the textbook: a 3-D window, five convolutions; meant for float64."""
    z, rows, columns = (torch.tensor(window, dtype=x.dtype) for window in windows_of(taps))
    kernel = (z[:, None, None] * rows[:, None] * columns)[None, None]
    padding = [0 if valid else length // 2 for length in taps]

    def blur(volume: Tensor) -> Tensor:
        out = F.conv3d(volume.reshape(-1, 1, *volume.shape[-3:]), kernel, padding=padding)
        return out.view(*volume.shape[:2], *out.shape[-3:])

    mu_x, mu_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mu_x**2, blur(y * y) - mu_y**2
    cov = blur(x * y) - mu_x * mu_y
    luminance = (2 * mu_x * mu_y + C1) / (mu_x**2 + mu_y**2 + C1)
    contrast = (2 * cov + C2) / (var_x + var_y + C2)
    ssim = luminance * contrast
    return 1 - {
        "ssim": ssim,
        "contrast": contrast,
        "luminance": luminance,
        "nonnegative": ssim.clamp(min=0),
    }.get(kind)


def run(native, task, x, y, taps, valid=False, *, kind="ssim", weight=None, cut=None, sms=4):
    """One launch: (sums of each volume, map, gradients to x and y, geometry), as tensors."""
    half = x.dtype in (torch.float16, torch.bfloat16)
    accumulate = torch.float32 if half else x.dtype
    size = [n - (k - 1 if valid else 0) for n, k in zip(x.shape[2:], taps)]
    out_map = torch.full((*x.shape[:2], *size), float("nan"), dtype=x.dtype)
    grads = [torch.empty_like(volume).fill_(float("nan")) for volume in (x, y)]
    weight = torch.zeros((1,) * 5, dtype=accumulate) if weight is None else weight
    windows = np.zeros((3, MOST_TAPS))
    for axis, window in enumerate(windows_of(taps)):
        windows[axis, : len(window)] = window
    geometry = native.run(
        str(x.dtype).removeprefix("torch."),
        task,
        _array(x),
        _array(y),
        windows,
        tuple(taps),
        KINDS.index(kind),
        valid,
        sms,
        weight.numpy(),
        _array(out_map),
        *(_array(grad) for grad in grads),
        cut,
    )
    sums = geometry.pop("sums", None)
    sums = None if sums is None else torch.from_numpy(np.array(sums)).view(x.shape[:2])
    return sums, out_map, *grads, geometry


def check(native, task, x, y, taps=(11, 11, 11), valid=False, *, kind="ssim", **how) -> dict:
    """One launch against the textbook formula in float64; the geometry that it had."""
    half = x.dtype in (torch.float16, torch.bfloat16)
    accumulate = torch.float32 if half else x.dtype
    true_x, true_y = (t.detach().double().requires_grad_() for t in (x, y))
    true = oracle_loss(true_x, true_y, taps, valid, kind)
    weight, weights = None, torch.ones_like(true)
    if task.startswith("backward"):
        weight = (torch.rand(true.shape) + 0.5).to(accumulate)
        # a view of other strides
        weight = weight.transpose(2, 4).contiguous().transpose(2, 4)
        weights = weight.double()
    sums, out_map, *grads, geometry = run(
        native, task, x, y, taps, valid, kind=kind, weight=weight, **how
    )
    value_tolerance, _ = TOLERANCE[accumulate]
    _, grad_tolerance = TOLERANCE[x.dtype]
    if task in ("value", "gradient", "gradients"):
        error = relative_error(sums, true.detach().sum(dim=(2, 3, 4)))
        assert error <= value_tolerance, f"sums: {error:.1e}"
        total = torch.tensor(geometry["total"], dtype=torch.float64)
        error = relative_error(total, true.detach().sum())
        assert error <= value_tolerance, f"total: {error:.1e}"
        assert geometry["arrived"] == 0, "the next launch would miscount its blocks"
    if task == "map":
        error = relative_error(out_map, true.detach())
        # a voxel keeps the rounding that a sum averages out, see MAP_TOLERANCE
        assert error <= max(10 * value_tolerance, grad_tolerance), f"map: {error:.1e}"
    if task not in ("value", "map"):
        true_grads = torch.autograd.grad(true, (true_x, true_y), weights)
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


MUTATIONS = {
    "no barrier after the pixels": Mutation(
        "      leave_pixels();\n      __syncthreads();\n", "      leave_pixels();\n", "thread"
    ),
    "no barrier before the filter down": Mutation(
        "      filter_pixels_across();\n      __syncthreads();\n",
        "      filter_pixels_across();\n",
        "thread",
    ),
    "no barrier before the derivatives' filter": Mutation(
        "        if (any) {\n          __syncthreads();\n",
        "        if (any) {\n",
        "thread",
    ),
    "no barrier before the gradient": Mutation(
        "          filter_derivatives_across();\n          __syncthreads();\n",
        "          filter_derivatives_across();\n",
        "thread",
    ),
    "no barrier before the sums": Mutation(
        "    __syncthreads();  // slice and across are read no more\n", "", "thread"
    ),
    "no barrier within the sum of parts": Mutation(
        "      sums[thread] = mine;\n    }\n    __syncthreads();\n",
        "      sums[thread] = mine;\n    }\n",
        "thread",
    ),
    "no barrier after where the block works": Mutation(
        "    start();\n    __syncthreads();\n    const int first = place_",
        "    start();\n    const int first = place_",
        "thread",
    ),
    "no barrier with other windows": Mutation(
        "          filter_along_z(z - g_.pad[kZ]);\n          __syncthreads();\n",
        "          filter_along_z(z - g_.pad[kZ]);\n",
        "thread",
    ),
    "a barrier that some threads miss": Mutation(
        "          filter_derivatives_across();\n          __syncthreads();\n",
        "          filter_derivatives_across();\n          if (thread() % 2) __syncthreads();\n",
    ),
    "halo of windows one short": Mutation(
        "to.last[axis] = least(to.end[axis] + (kMaps > 0 ? g_.pad[axis] : 0), g_.out[axis]);",
        "to.last[axis] = least(to.end[axis] + (kMaps > 0 ? g_.pad[axis] - 1 : 0), g_.out[axis]);",
    ),
    "halo of pixels one short": Mutation(
        "y < place_->last[kY] - g_.pad[kY] + kHalo", "y < place_->last[kY] - g_.pad[kY] + kHalo - 1"
    ),
    "unfinished windows off by one": Mutation(
        "tap<kAdjoint>(kZ, kHalo - 1 - i) * x", "tap<kAdjoint>(kZ, kHalo - i) * x"
    ),
    "unfinished windows forgotten": Mutation(
        "unfinished[i] = unfinished[i + 1] + ", "unfinished[i] = "
    ),
    "unfinished gradients off by one": Mutation(
        "(k > 0 ? unfinished[stride] : A(0)) + tap<true>(kZ, k) * x",
        "(k > 0 ? unfinished[stride] : A(0)) + tap<true>(kZ, k + 1) * x",
    ),
    "one slice too few before the first window": Mutation(
        "for (int z = first - kHalo; z < end; ++z) {",
        "for (int z = first - kHalo + (kFast ? 1 : 0); z < end; ++z) {",
    ),
    "pad along z missing": Mutation(
        "m.of[map] = advance<false>(unfinished_[j][map], x[j].of[map])",
        "m.of[map] = advance<false>(unfinished_[j][map], is_inside ? x[j].of[map] : A(0))",
    ),
    "gradients of the last slices missing": Mutation(
        "const int end = kMaps > 0 ? place_->end[kZ] + g_.pad[kZ] : last;", "const int end = last;"
    ),
    "pivot not added back": Mutation(
        "terms<A>(m, pivot_u(), pivot_v(), p_.c1", "terms<A>(m, A(0), pivot_v(), p_.c1"
    ),
    "a window counted twice": Mutation(
        "return i >= place_->begin[axis] && i < place_->end[axis];",
        "return i >= place_->begin[axis] && i <= place_->end[axis];",
    ),
    "taps of another axis": Mutation(
        "out[j].of[map] += tap<false>(kY, i - j)", "out[j].of[map] += tap<false>(kY, i - j + 1)"
    ),
    "strides swapped": Mutation(
        "z * stride[2] + y * stride[3] +", "z * stride[3] + y * stride[2] +"
    ),
    "a tile writes beyond itself": Mutation(
        "if (!is_own(kZ, z) || y >= place_->end[kY] || x >= place_->end[kX]) return;",
        "if (!is_own(kZ, z) || x >= place_->end[kX]) return;",
        "address",
    ),
    "windows beside the map count": Mutation(
        "if (y >= 0 && y < place_->last[kY] && x >= 0 &&", "if (y >= 0 && y < place_->last[kY] &&"
    ),
    "parts added up too soon": Mutation("arrived == g_.parts() ?", "arrived + 1 == g_.parts() ?"),
    "parts counted on from the last launch": Mutation("      p_.arrived[0] = 0;\n", ""),
    "shared memory too small": Mutation(
        "g.across = round_up_4(most(g.across, 2 * g.threads));",
        "g.across = round_up_4(g.across - 64);",
        "address",
    ),
    "offset of 32 bits": Mutation(
        "to.input = n * p_.input_stride[0]",
        "to.input = static_cast<signed char>(n * p_.input_stride[0])",
    ),
}


if __name__ == "__main__":
    quick_checks(load_volume(Path(sys.argv[1]), ("-DSSIM_EMULATOR_FLOAT_ONLY",)))
