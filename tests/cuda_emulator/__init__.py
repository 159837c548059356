"""The CUDA kernel on the CPU: building the emulator, calling it, and comparing with float64."""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import subprocess
import sysconfig
from pathlib import Path

import numpy as np
import torch
from tables import TOLERANCE, oracle_map, pictures, relative_error
from torch import Tensor

from ssim_fused._checks import gaussian_window

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CACHE = ROOT / ".cache" / "cuda_emulator"
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
TASKS = ["value", "map", "gradient", "gradients", "backward", "backwards"]


def build(source: str, flags: list[str], csrc: Path = ROOT / "csrc") -> Path:
    """Compile a file of this folder against the kernel in `csrc`; what was built before is kept."""
    inputs = sorted([*HERE.glob("*.cpp"), *HERE.glob("*.h"), *csrc.glob("*.h")])
    text = b"".join(path.read_bytes() for path in inputs) + repr((source, flags)).encode()
    built = CACHE / f"{source.split('.')[0]}-{hashlib.sha256(text).hexdigest()[:16]}"
    if not built.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        command = ["c++", "-std=c++20", "-g", *WARNINGS, *flags, f"-I{csrc}", f"-I{HERE}"]
        scratch = built.with_suffix(f".{hashlib.sha256(str(csrc).encode()).hexdigest()[:8]}")
        subprocess.run([*command, str(HERE / source), "-o", str(scratch)], check=True)
        scratch.replace(built)
    return built


def load(csrc: Path = ROOT / "csrc", flags: tuple[str, ...] = ()):
    """The emulator as a Python module."""
    import pybind11

    includes = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"]
    shared = ["-O1", "-shared", "-fPIC", "-fvisibility=hidden", *flags, *includes]
    path = build("module.cpp", shared, csrc)
    loader = importlib.machinery.ExtensionFileLoader("cuda_emulator_native", str(path))
    spec = importlib.util.spec_from_loader("cuda_emulator_native", loader)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def _array(image: Tensor) -> np.ndarray:
    """The memory of a tensor, half precision as its bits."""
    image = image.detach()
    if image.dtype in (torch.float16, torch.bfloat16):
        return image.view(torch.int16).numpy()
    return image.numpy()


def run(native, task, x, y, window=(11, 1.5), valid=False, *, weight=None, cut=None, sms=4):
    """One launch: (sums per image, map, gradient to x, gradient to y, geometry), as tensors."""
    half = x.dtype in (torch.float16, torch.bfloat16)
    accumulate = torch.float32 if half else x.dtype
    nan = float("nan")
    shrink = window[0] - 1 if valid else 0
    n, c, h, w = x.shape
    out_map = torch.full((n, c, h - shrink, w - shrink), nan, dtype=x.dtype)
    grads = [torch.empty_like(image).fill_(nan) for image in (x, y)]
    weight = torch.zeros((1, 1, 1, 1), dtype=accumulate) if weight is None else weight
    geometry = native.run(
        str(x.dtype).removeprefix("torch."),
        task,
        _array(x),
        _array(y),
        np.array(gaussian_window(*window)),
        1.0,
        0.01,
        0.03,
        valid,
        sms,
        weight.numpy(),
        _array(out_map),
        *(_array(grad) for grad in grads),
        cut,
    )
    sums = geometry.pop("sums", None)
    sums = None if sums is None else torch.from_numpy(np.array(sums))
    return sums, out_map, *grads, geometry


def check(native, task, x, y, window=(11, 1.5), valid=False, **how) -> dict:
    """One launch against the textbook formula in float64; the geometry that it had."""
    true_x, true_y = (t.detach().double().requires_grad_() for t in (x, y))
    true = 1 - oracle_map(true_x, true_y, window, "valid" if valid else "same")
    half = x.dtype in (torch.float16, torch.bfloat16)
    weight = None
    weights = torch.ones_like(true)
    if task.startswith("backward"):
        weight = (torch.rand(true.shape) + 0.5).to(torch.float32 if half else x.dtype)
        weights = weight.double()
    true_grads = torch.autograd.grad(true, (true_x, true_y), weights)

    sums, out_map, *grads, geometry = run(native, task, x, y, window, valid, weight=weight, **how)
    accumulate = torch.float32 if half else x.dtype
    value_tolerance, _ = TOLERANCE[accumulate]
    _, grad_tolerance = TOLERANCE[x.dtype]
    if task in ("value", "gradient", "gradients"):
        error = relative_error(sums, true.detach().sum(dim=(1, 2, 3)))
        assert error <= value_tolerance, f"sums: {error:.1e}"
        total = torch.tensor(geometry["total"], dtype=torch.float64)
        error = relative_error(total, true.detach().sum())
        assert error <= value_tolerance, f"total: {error:.1e}"
        assert geometry["arrived"] == 0, "the next launch would miscount its blocks"
    if task == "map":
        error = relative_error(out_map, true.detach())
        # a pixel keeps the rounding that a sum averages out, see MAP_TOLERANCE
        assert error <= max(10 * value_tolerance, grad_tolerance), f"map: {error:.1e}"
    if task in ("gradient", "gradients", "backward", "backwards"):
        error = relative_error(grads[0], true_grads[0])
        assert error <= grad_tolerance, f"gradient to x: {error:.1e}"
    if task in ("gradients", "backwards"):
        error = relative_error(grads[1], true_grads[1])
        assert error <= grad_tolerance, f"gradient to y: {error:.1e}"
    return geometry


# One pixel; smaller than the window; several planes a block, the last block not full; several bands
# and tiles, the last ones not full; one past a tile. With windows of other sizes, `any` takes the
# place of the layouts for 11 taps.
QUICK = [
    ((1, 1, 1, 1), None),
    ((3, 1, 9, 8), ("tile", 1, 1, 2)),
    ((1, 1, 29, 83), ("streaming", 3, 2, 1)),
    ((1, 1, 29, 43), ("tile", 2, 3, 1)),
    ((1, 2, 3, 5), None),
    ((1, 1, 40, 129), ("streaming", 2, 1, 1)),
]


def quick_checks(native) -> None:
    """What every task must pass; short enough to run after each mutation."""
    for task in TASKS:
        for shape, cut in QUICK:
            for window in ((11, 1.5), (7, 1.5)):
                x, y = pictures(shape)
                wide = torch.zeros((*shape[:3], 2 * shape[3]))
                wide[..., ::2] = y
                how = ("any", *cut[1:]) if cut and window[0] != 11 else cut
                check(native, task, x, wide[..., ::2], window, cut=how)
