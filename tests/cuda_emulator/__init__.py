"""The CUDA kernel on the CPU: building the emulator, calling it, and comparing with float64."""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import re
import secrets
import subprocess
import sysconfig
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tables import C1, C2, TOLERANCE, pictures, relative_error
from torch import Tensor

from ssim_fused._checks import gaussian_window

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CSRC = ROOT / "csrc"
CACHE = ROOT / ".cache" / "cuda_emulator"
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
TASKS = ["value", "map", "gradient", "gradients", "backward", "backwards"]


def kernel_headers(csrc: Path) -> list[Path]:
    """What the emulator compiles of `csrc`."""
    kernels = ["ssim_cuda*kernel.h", "ssim_cuda*geometry.h", "ssim_math.h", "dtypes.h"]
    return sorted(path for pattern in kernels for path in csrc.glob(pattern))


def digest(sources: list[Path], beside: str = "") -> str:
    """Of what sources say, comments apart."""
    text = "".join(path.read_text() for path in sources)
    return hashlib.sha256((re.sub(r"//.*|\s", "", text) + beside).encode()).hexdigest()


def build(source: str, flags: list[str], csrc: Path = CSRC) -> Path:
    """Compile a file of this folder against the kernel in `csrc`; what was built before is kept."""
    inputs = sorted([*HERE.glob("*.cpp"), *HERE.glob("*.h"), *kernel_headers(csrc)])
    text = b"".join(path.read_bytes() for path in inputs) + repr((source, flags)).encode()
    built = CACHE / f"{source.split('.')[0]}-{hashlib.sha256(text).hexdigest()[:16]}"
    if not built.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        command = ["c++", "-std=c++20", *WARNINGS, *flags, f"-I{csrc}", f"-I{HERE}"]
        scratch = built.with_suffix(f".{secrets.token_hex(4)}")  # many may build it at once
        subprocess.run([*command, str(HERE / source), "-o", str(scratch)], check=True)
        scratch.replace(built)
    return built


def load(
    csrc: Path = CSRC,
    flags: tuple[str, ...] = (),
    source: str = "module.cpp",
    name: str = "cuda_emulator_native",
):
    """The emulator as a Python module."""
    import pybind11

    includes = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"]
    shared = ["-O1", "-shared", "-fPIC", "-fvisibility=hidden", *flags, *includes]
    path = build(source, shared, csrc)
    loader = importlib.machinery.ExtensionFileLoader(name, str(path))
    spec = importlib.util.spec_from_loader(name, loader)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def _array(image: Tensor) -> np.ndarray:
    """The memory of a tensor, half precision as its bits."""
    image = image.detach()
    if image.dtype in (torch.float16, torch.bfloat16):
        return image.view(torch.int16).numpy()
    return image.numpy()


def _sides(window) -> tuple:
    """(size, sigma) along y and x; one stands for both."""
    return window if isinstance(window[0], tuple) else (window, window)


def _blur(image: Tensor, window, valid: bool) -> Tensor:
    """Windowed means of each plane; a window: (size, sigma), one or one for each axis."""
    axes = image.dim() - 2
    sides = window if isinstance(window[0], tuple) else (window,) * axes
    convolve = F.conv2d if axes == 2 else F.conv3d
    blurred = image.flatten(0, 1)[:, None]
    for axis, side in enumerate(sides):  # one after another: in float64 nothing is lost by it
        taps = torch.tensor(gaussian_window(*side), dtype=image.dtype)
        along = [len(taps) if i == axis else 1 for i in range(axes)]
        padding = [0 if valid else length // 2 for length in along]
        blurred = convolve(blurred, taps.view(1, 1, *along), padding=padding)
    return blurred.view(*image.shape[:2], *blurred.shape[2:])


def coverage_of(mask: Tensor, window, valid: bool) -> Tensor:
    """1 / how much of the mask a window sees, in float64; 0 where that is half or less."""
    seen = _blur(mask.double(), window, valid)
    return torch.where(seen > 0.5, 1 / seen, 0.0)


def true_map(
    x: Tensor, y: Tensor, window, valid: bool, kind: str, data_range: float = 1.0, mask=None
) -> Tensor:
    """1 minus the similarity map of a kind, by the textbook, in float64: five convolutions."""
    coverage = None if mask is None else coverage_of(mask, window, valid)

    def blur(image: Tensor) -> Tensor:
        if mask is None:
            return _blur(image, window, valid)
        return _blur(mask.double() * image, window, valid) * coverage

    if mask is not None:  # what masked pixels hold has no say
        x, y = (torch.where(mask > 0, image, 0.0) for image in (x, y))
    c1, c2 = C1 * data_range**2, C2 * data_range**2
    mu_x, mu_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mu_x**2, blur(y * y) - mu_y**2
    luminance = (2 * mu_x * mu_y + c1) / (mu_x**2 + mu_y**2 + c1)
    contrast = (2 * (blur(x * y) - mu_x * mu_y) + c2) / (var_x + var_y + c2)
    ssim = luminance * contrast
    of = {"ssim": ssim, "contrast": contrast, "luminance": luminance}
    loss = 1 - (of[kind] if kind in of else ssim.clamp(min=0))
    return loss if mask is None else torch.where(coverage > 0, loss, 0.0)


def random_mask(shape, dtype=torch.float32) -> Tensor:
    """A mask of 0, 1 and what lies between, whose upper right corner is 0."""
    generator = torch.Generator().manual_seed(7)
    mask = (1.5 * torch.rand(shape, generator=generator) - 0.2).clamp(0, 1)
    mask[..., : shape[-2] // 2, shape[-1] // 2 :] = 0
    return mask.to(dtype)


def accumulation(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def run(
    native,
    task,
    x,
    y,
    window=(11, 1.5),
    valid=False,
    *,
    kind="ssim",
    data_range=1.0,
    weight=None,
    term_weights=None,
    pool_offset=None,
    mask=None,
    cut=None,
    sms=4,
):
    """One launch: (sums per plane, map, gradient to x, gradient to y, geometry), as tensors.

    With pool_offset, geometry has the halved images as "pooled".
    """
    nan = float("nan")
    sides = _sides(window)
    shrink = [size - 1 if valid else 0 for size, _ in sides]
    n, c, h, w = x.shape
    integer = not x.dtype.is_floating_point
    map_dtype = torch.float32 if integer else x.dtype
    out_map = torch.full((n, c, h - shrink[0], w - shrink[1]), nan, dtype=map_dtype)
    grads = [torch.empty_like(image, dtype=map_dtype).fill_(nan) for image in (x, y)]
    settings = {
        "dtype": str(x.dtype).removeprefix("torch."),
        "task": task,
        "kind": kind,
        "window_y": np.array(gaussian_window(*sides[0])),
        "window_x": np.array(gaussian_window(*sides[1])),
        "data_range": data_range,
        "k1": 0.01,
        "k2": 0.03,
        "valid": valid,
        "multiprocessors": sms,
        "input": _array(x),
        "target": _array(y),
        "weight": None if weight is None else weight.numpy(),
        "map": _array(out_map),
        "grad_input": _array(grads[0]),
        "grad_target": _array(grads[1]),
        "term_weights": term_weights,
        "multiplied": out_map.numel() if x.dtype == torch.float16 else 1.0,
        "pool_offset": pool_offset,
        "mask": None if mask is None else mask.numpy(),
        "cut": cut,
    }
    if mask is not None:
        settings["coverage"] = coverage_of(mask, sides, valid).to(mask.dtype).numpy()
    pooled = []
    if pool_offset is not None:
        half = [(length + before) // 2 for length, before in zip((h, w), pool_offset)]
        pooled = [torch.full((n, c, *half), nan, dtype=accumulation(x.dtype)) for _ in range(2)]
        settings["pooled_input"], settings["pooled_target"] = (half.numpy() for half in pooled)
    geometry = native.run(settings)
    geometry["pooled"] = pooled
    sums = geometry.pop("sums", None)
    sums = None if sums is None else torch.from_numpy(np.array(sums))
    return sums, out_map, *grads, geometry


def true_half(image: Tensor, offset) -> Tensor:
    """Means of 2 x 2 pixels, in float64; the first begins `offset` before the image, with zero."""
    padded = F.pad(image.double(), (offset[1], 0, offset[0], 0))
    if min(padded.shape[2:]) < 2:  # no mean of 2 x 2
        return padded[..., : padded.shape[2] // 2, : padded.shape[3] // 2]
    return F.avg_pool2d(padded, 2)


def check(native, task, x, y, window=(11, 1.5), valid=False, **how) -> dict:
    """One launch against the textbook formula in float64; the geometry that it had.

    A backward task without a `weight` gets a random one.
    """
    true_x, true_y = (t.detach().double().requires_grad_() for t in (x, y))
    kind, data_range = how.get("kind", "ssim"), how.get("data_range", 1.0)
    true = true_map(true_x, true_y, window, valid, kind, data_range, how.get("mask"))
    accumulate = accumulation(x.dtype)
    if task.startswith("backward") and how.get("weight") is None:
        how["weight"] = (torch.rand(true.shape) + 0.5).to(accumulate)
    weighted = true if how.get("weight") is None else true * how["weight"].double()
    total = weighted.sum()
    difference = true_x - true_y
    terms = (weighted.mean(), difference.square().mean(), difference.abs().mean())
    weights = how.get("term_weights")
    if weights is not None:
        total = sum(share * term for share, term in zip(weights, terms))
    true_grads = torch.autograd.grad(total, (true_x, true_y))
    if weights is not None and x.dtype == torch.float16:  # as the launcher does with means
        true_grads = [grad * true.numel() for grad in true_grads]

    sums, out_map, *grads, geometry = run(native, task, x, y, window, valid, **how)
    value_tolerance, _ = TOLERANCE[accumulate]
    _, grad_tolerance = TOLERANCE[out_map.dtype]

    def near(found, expected, tolerance: float, name: str) -> None:
        error = relative_error(torch.as_tensor(found, dtype=torch.float64), expected.detach())
        assert error <= tolerance, f"{name}: {error:.1e}"

    if task in ("value", "gradient", "gradients"):
        near(sums, weighted.sum(dim=(2, 3)), value_tolerance, "sums")
        near(geometry["total"], total, value_tolerance, "total")
        for i in range(3 if weights else 0):
            if weights[i] == 0:
                assert geometry["terms"][i] == 0.0
            else:
                near(geometry["terms"][i], terms[i], value_tolerance, f"term {i}")
        assert geometry["arrived"] == 0, "the next launch would miscount its blocks"
        for image, half in zip((x, y), geometry["pooled"]):
            if half.numel():
                near(half, true_half(image, how["pool_offset"]), value_tolerance, "half")
    if task == "map":
        # a pixel keeps the rounding that a sum averages out, see MAP_TOLERANCE
        near(out_map, true, max(10 * value_tolerance, grad_tolerance), "map")
    if task in ("gradient", "gradients", "backward", "backwards"):
        near(grads[0], true_grads[0], grad_tolerance, "gradient to x")
    if task in ("gradients", "backwards"):
        near(grads[1], true_grads[1], grad_tolerance, "gradient to y")
    return geometry


def correlated_and_not(shape, dtype=torch.float32) -> tuple[Tensor, Tensor]:
    """Pictures of which the right half is the negative of its copy: SSIM is below 0 there."""
    x, y = pictures(shape, torch.float64)
    half = shape[3] // 2
    y[..., half:] = 1 - y[..., half:]
    return x.to(dtype), y.to(dtype)


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
QUICK_WINDOWS = [((11, 1.5), (11, 2.5)), ((7, 1.5), (5, 1.0))]
TERMS = (0.7, 20.0, 0.5)  # each has a share in value and gradient that no tolerance hides


HIGHLIGHT_CUTS = [("streaming", 1, 1, 1), ("tile", 2, 1, 1), ("any", 1, 1, 1)]


def check_highlight(native, cut) -> None:
    """It is no pivot: all others would lose their digits to it, also where all are far out.

    Nor is a bright spot on dark ground.
    """
    for offset in (0, 10):
        x, y = (offset + image for image in pictures((1, 1, 32, 40)))
        x[0, 0, 16, 10::10] = 1000  # the centres, also of two tiles
        check(native, "gradient", x, y, (11, 1.5), cut=cut)
        x[0, 0, 4, [2, 5, 22]] = 1000  # the median of three, too
        check(native, "gradient", x, y, (11, 1.5), cut=cut)
    x, y = (0.01 * image for image in pictures((1, 1, 32, 40)))
    x[0, 0, 16, 10::10] = 1
    check(native, "gradient", x, y, (11, 1.5), cut=cut)


def check_unpool(native, shape, offset, dtype=torch.float32, in_place=False) -> None:
    """The way back through a halving, against float64; without a gradient of the half, too."""
    n, c, h, w = shape
    grad = torch.randn(n, h, w, c, dtype=dtype).permute(0, 3, 1, 2)
    factor = torch.randn(c, n, dtype=dtype).mT
    pooled = torch.randn(n, c, (h + offset[0]) // 2, (w + offset[1]) // 2, dtype=dtype)
    image = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    (true_half(image, offset) * pooled.double()).sum().backward()
    scaled = factor.double()[..., None, None] * grad.double()
    unpool = getattr(native, f"unpool_{str(dtype).removeprefix('torch.')}")
    for half in (pooled, None):
        out = grad.clone() if in_place else torch.full(shape, float("nan"), dtype=dtype)
        given = out if in_place else grad
        carried = None if half is None else half.numpy()
        unpool(given.numpy(), factor.numpy(), carried, out.numpy(), offset)
        error = relative_error(out, scaled if half is None else scaled + image.grad)
        assert error <= TOLERANCE[dtype][0], f"unpooled: {error:.1e}"


def quick_checks(native) -> None:
    """What every task must pass; short enough to run after each mutation."""
    for task in TASKS:
        for shape, cut in QUICK:
            for window in QUICK_WINDOWS:
                x, y = pictures(shape)
                wide = torch.zeros((*shape[:3], 2 * shape[3]))
                wide[..., ::2] = y
                how = ("any", *cut[1:]) if cut and window[0][0] != 11 else cut
                check(native, task, x, wide[..., ::2], window, cut=how)
                if task == "gradient" and min(shape[2:]) >= 11:
                    check(native, task, x, y, window, True, cut=how)
    for cut in HIGHLIGHT_CUTS:
        check_highlight(native, cut)
    quick_extra_checks(native)
    for offset in ((0, 0), (1, 1)):
        check_unpool(native, (2, 2, 5, 7), offset)
    check_unpool(native, (1, 1, 2, 263), (0, 1))


def quick_extra_checks(native) -> None:
    """The same for what is compiled apart."""
    for task in TASKS:
        sums = task in ("value", "gradient", "gradients")
        for kind in ("contrast", "luminance", "nonnegative"):
            for shape, cut in QUICK[1:4]:
                check(native, task, *correlated_and_not(shape), kind=kind, cut=cut)
        for shape, cut in QUICK[1:5]:
            mask = random_mask((shape[0], 1, *shape[2:])).expand(shape)
            x, y = pictures(shape)
            for window in QUICK_WINDOWS:
                check(native, task, x, y, window, mask=mask, cut=cut and ("any", *cut[1:]))
        if not sums:
            continue
        empty_tiles = ((1, 1, 17, 20), ("streaming", 6, 5, 1))
        for shape, cut in [*QUICK[1:4], empty_tiles]:
            valid = min(shape[2:]) >= 11
            for window in QUICK_WINDOWS:
                how = {"cut": ("any", *cut[1:]) if window[0][0] != 11 else cut}
                x, y = pictures(shape)
                check(native, task, x, y, window, valid, term_weights=TERMS, **how)
                for offset in ((0, 0), (1, 1)):
                    check(native, task, x, y, window, valid, pool_offset=offset, **how)
                if not valid:
                    continue
                columns = torch.rand(1, 1, 1, shape[3] - window[1][0] + 1)
                weight = columns.expand(*shape[:2], shape[2] - window[0][0] + 1, -1)
                check(native, task, x, y, window, valid, weight=weight, **how)
