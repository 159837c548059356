"""What is native, where, and how fast: `python -m benchmarks.breadth`.

Every feature is timed in turns, in random order, with the plain SSIM loss of the same images, and
with pytorch-msssim where that has the same, after both are seen to give the same value.
`python -m benchmarks readme` puts the table into README.
"""

from __future__ import annotations

import argparse
import functools
import math
import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

import ssim_fused
from ssim_fused import _paths
from ssim_fused._call import prepare

from . import results
from .turns import take_turns, timed

Loss = Callable[[Tensor, Tensor], Tensor]

IMAGES = (4, 3, 256, 256)
LARGE = (1, 3, 1080, 1920)
VOLUME = (1, 1, 32, 128, 128)
SIGNALS = (16, 8, 8192)
CLOSE = 1e-4  # relative difference of values that are the same but for rounding


class Feature(NamedTuple):
    """One line of the table."""

    name: str
    settings: Mapping[str, Any] = MappingProxyType({})
    shape: tuple[int, ...] = IMAGES
    function: Callable[..., Tensor] = ssim_fused.ssim_loss
    mask: bool = False
    weight: bool = False
    dtype: torch.dtype = torch.float32
    rival: str | None = None  # a function of pytorch-msssim that computes the same


def _photometric(x: Tensor, y: Tensor, **settings: Any) -> Tensor:
    return ssim_fused.image_loss(x, y, ssim=0.2, l1=0.8, **settings)  # type: ignore[return-value]


FEATURES = [
    Feature("SSIM, 11 x 11 Gaussian"),
    Feature("the same", shape=LARGE),
    Feature('padding "valid"', {"padding": "valid"}, rival="ssim"),
    Feature('padding "reflect"', {"padding": "reflect"}),
    Feature('padding "replicate"', {"padding": "replicate"}),
    Feature('padding "circular"', {"padding": "circular"}),
    Feature("window 7 x 7, uniform", {"window_size": 7, "window": "uniform"}),
    Feature("window 11 x 5", {"window_size": (11, 5)}),
    Feature("window 33 x 33", {"window_size": 33, "sigma": 5.0}),
    Feature("one mean per image", {"reduction": "image"}),
    Feature("one mean per channel", {"reduction": "channel"}),
    Feature("the map", {"reduction": "none"}),
    Feature("contrast-structure term", {"term": "contrast_structure"}),
    Feature("luminance term", {"term": "luminance"}),
    Feature("nonnegative_ssim", {"nonnegative_ssim": True}),
    Feature("sample_covariance", {"sample_covariance": True}),
    Feature("weight of each window", weight=True),
    Feature("mask", mask=True),
    Feature("SSIM + L1 (PhotometricLoss)", function=_photometric, shape=LARGE),
    Feature("bfloat16", dtype=torch.bfloat16, shape=LARGE),
    Feature("float16", dtype=torch.float16, shape=LARGE),
    Feature("float64", dtype=torch.float64),
    Feature("uint8, value alone", dtype=torch.uint8),
    Feature("signals (1-D)", {"spatial_dims": 1}, shape=SIGNALS),
    Feature("volumes (3-D)", {"padding": "valid"}, shape=VOLUME, rival="ssim"),
    Feature("MS-SSIM, five scales", function=ssim_fused.ms_ssim_loss, rival="ms_ssim"),
    Feature("the same", shape=LARGE, function=ssim_fused.ms_ssim_loss, rival="ms_ssim"),
]


def _images(feature: Feature) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.rand(feature.shape, generator=generator) for _ in range(2))
    if not feature.dtype.is_floating_point:
        x, y = x * 255, y * 255
    return x.to(feature.dtype), y.to(feature.dtype)


def _beside(feature: Feature) -> dict[str, Tensor]:
    n, _, h, w = feature.shape if feature.mask or feature.weight else (0, 0, 0, 0)
    generator = torch.Generator().manual_seed(1)
    beside = {}
    if feature.mask:
        beside["mask"] = torch.rand(n, 1, h, w, generator=generator) > 0.2
    if feature.weight:
        beside["weight"] = torch.rand(n, 1, h, w, generator=generator)
    return beside


def _code_paths(feature: Feature) -> tuple[str, str]:
    """Which code computes it on a CPU and on a GPU, by the package's own word."""
    x, y = _images(feature)
    request, _ = prepare(x, y, **feature.settings, **_beside(feature))
    words = []
    for device in ("cpu", "cuda"):
        reason = _paths.no_kernel(request, device)
        word = "native" if reason is None else "plain PyTorch"
        if reason is None and _paths.in_float32(request, device):
            word += ", as float32"
        words.append(word)
    return words[0], words[1]


def _rival(feature: Feature) -> Loss | None:
    try:
        import pytorch_msssim
    except ImportError:
        return None
    function = getattr(pytorch_msssim, feature.rival or "", None)
    return None if function is None else lambda x, y: 1 - function(x, y, data_range=1.0)


def _check_same(feature: Feature, loss: Loss, rival: Loss, x: Tensor, y: Tensor) -> None:
    ours, theirs = loss(x, y).item(), rival(x, y).item()
    if not abs(ours - theirs) <= CLOSE * abs(ours):
        raise RuntimeError(f"{feature.name}: {ours}, pytorch-msssim's {feature.rival} {theirs}")


def _call(loss: Loss, mode: str, x: Tensor, y: Tensor) -> Callable[[], object]:
    if mode == "value":
        return functools.partial(loss, x, y)
    leaf = x.clone().requires_grad_()

    def step() -> None:
        leaf.grad = None
        loss(leaf, y).sum().backward()

    return step


def measure(feature: Feature, rounds: int) -> dict[str, Any]:
    """Medians of calls that take turns in random order; one row of the table."""
    x, y = _images(feature)
    loss = functools.partial(feature.function, **feature.settings, **_beside(feature))
    plain = x.float(), y.float()
    steps = feature.dtype.is_floating_point
    calls = {("ours", "value"): _call(loss, "value", x, y)}
    if steps:
        calls["ours", "step"] = _call(loss, "step", x, y)
    if x.dim() == 4:
        calls["plain", "value"] = _call(ssim_fused.ssim_loss, "value", *plain)
        calls["plain", "step"] = _call(ssim_fused.ssim_loss, "step", *plain)
    if (rival := _rival(feature)) is not None:
        _check_same(feature, loss, rival, x, y)
        calls["rival", "step"] = _call(rival, "step", x, y)
    for call in calls.values():
        call()
    times = take_turns({name: timed(call) for name, call in calls.items()}, rounds)
    median = {name: statistics.median(found) for name, found in times.items()}
    pixels = math.prod(feature.shape)

    def ratio(of: str, by: str, mode: str) -> float | str:
        of_key, by_key = (of, mode), (by, mode)
        return median[of_key] / median[by_key] if {of_key, by_key} <= set(median) else ""

    cpu, cuda = _code_paths(feature)
    return {
        "feature": feature.name,
        "shape": "x".join(map(str, feature.shape)),
        "cpu": cpu,
        "cuda": cuda,
        "value_ns": 1e9 * median["ours", "value"] / pixels,
        "step_ns": 1e9 * median["ours", "step"] / pixels if steps else "",
        "value_to_plain": ratio("ours", "plain", "value"),
        "step_to_plain": ratio("ours", "plain", "step"),
        "pytorch_msssim_step": ratio("rival", "ours", "step"),
    }


def markdown(rows: list[dict[str, str]]) -> str:
    """The table of README."""

    def number(text: str, unit: str = "") -> str:
        return f"{float(text):.3g}{unit}" if text else ""

    lines = [
        "| | images | CPU | CUDA | value | step | step, relative to SSIM | pytorch-msssim's step |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [
            row["feature"],
            row["shape"],
            row["cpu"],
            row["cuda"],
            number(row["value_ns"]),
            number(row["step_ns"]),
            number(row["step_to_plain"], "x"),
            number(row["pytorch_msssim_step"], "x"),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.breadth", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=results.RESULTS)
    args = parser.parse_args(argv)
    rows = []
    for feature in FEATURES:
        rows.append(measure(feature, args.rounds))
        print(markdown([{k: str(v) for k, v in rows[-1].items()}]).splitlines()[-1], flush=True)
    path = results.save(args.out, results.name_for("breadth", parser, args), rows)
    print(f"saved in {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
