"""What a changed import gains: `python -m benchmarks.switching`, about four minutes.

Each function that ssim_fused.compat stands in for is called as the original and as the stand-in, in
turns and in random order, after both are seen to give the same value. `python -m benchmarks readme`
puts the gains into the table of docs/switching.md. Libraries that run on a GPU alone are left out.
"""

from __future__ import annotations

import argparse
import functools
import re
import statistics
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import originals, results
from .engine import Workload, images
from .turns import take_turns, timed

IMAGES = (4, 3, 256, 256)
VOLUME = (1, 1, 32, 128, 128)
CLOSE = 1e-3  # that both values are of one metric; tests/test_compat.py has the promises


class Line(NamedTuple):
    """A name of a library, and how it is called."""

    library: str
    name: str
    settings: Mapping[str, Any] = MappingProxyType({})
    shape: tuple[int, ...] = IMAGES


RANGE = MappingProxyType({"data_range": 1.0})
LINES = [
    Line("pytorch_msssim", "ssim", RANGE),
    Line("pytorch_msssim", "ms_ssim", RANGE),
    Line("torchmetrics", "StructuralSimilarityIndexMeasure", RANGE),
    Line("torchmetrics", "structural_similarity_index_measure", RANGE),
    Line("piq", "ssim"),
    Line("piq", "multi_scale_ssim"),
    Line("kornia", "ssim_loss", {"window_size": 11}),
    Line("kornia", "ssim", {"window_size": 11}),
    Line("kornia", "ssim3d", {"window_size": 11}, VOLUME),
    Line("monai", "SSIMLoss", {"spatial_dims": 2}),
    Line("frame_analytics", "ssim", RANGE),
    Line("frame_analytics", "ms_ssim", RANGE),
    Line("skimage", "structural_similarity", {"channel_axis": -1, "data_range": 1.0}),
]


def _pictures(line: Line) -> tuple[Any, Any]:
    """What the library takes: (N, C, H, W), a volume, or for scikit-image an array (H, W, C)."""
    if len(line.shape) == 5:
        n, _, depth, *plane = line.shape
        x, y = images(Workload("value", (n, depth, *plane)))
        return x.view(line.shape), y.view(line.shape)
    x, y = images(Workload("value", line.shape))
    if line.library != "skimage":
        return x, y
    return tuple(t[0].movedim(0, -1).contiguous().numpy() for t in (x, y))


def _function(found: Any, settings: Mapping[str, Any]) -> Callable[..., Any]:
    return found(**settings) if isinstance(found, type) else functools.partial(found, **settings)


def _total(value: Any) -> Any:
    return value.mean() if isinstance(value, Tensor) else value


def _calls(line: Line, function: Callable[..., Any]) -> dict[str, Callable[[], object]]:
    """What is timed: the value, and where there is a gradient, the value with it."""
    x, y = _pictures(line)

    def value() -> object:
        with torch.no_grad():
            return _total(function(x, y))

    if not isinstance(x, Tensor) or getattr(function, "full_state_update", None) is not None:
        return {"value": value}  # an array, or a metric that keeps what it is given
    leaf = x.clone().requires_grad_()

    def step() -> None:
        leaf.grad = None
        _total(function(leaf, y)).backward()

    return {"value": value, "step": step}


def measure(line: Line, budget: float) -> list[dict[str, Any]]:
    """One row for value and one for step, of about `budget` seconds together.

    A metric is called as one: value of the batch, and added to its state. Compilers work at the
    first call, which is not counted.
    """
    sides = {"original": originals.load(line.library, line.name)}
    sides["stand-in"] = getattr(originals.shim(line.library), line.name)
    calls = {}
    for side, found in sides.items():
        for mode, call in _calls(line, _function(found, line.settings)).items():
            calls[side, mode] = call
            call()
    values = [float(calls[side, "value"]()) for side in sides]
    if abs(values[0] - values[1]) > CLOSE:
        raise RuntimeError(f"{line.library}.{line.name}: {values[0]}, the stand-in {values[1]}")
    times = take_turns({name: timed(call) for name, call in calls.items()}, 5, budget)
    rows = []
    for mode in dict.fromkeys(mode for _, mode in calls):
        old, new = times["original", mode], times["stand-in", mode]
        row = {"library": line.library, "name": line.name, "mode": mode, "runs": len(old)}
        row["shape"] = "x".join(map(str, line.shape))
        row |= {"original_ms": 1e3 * statistics.median(old), "original_least_ms": 1e3 * min(old)}
        row |= {"ours_ms": 1e3 * statistics.median(new), "ours_least_ms": 1e3 * min(new)}
        row["gain"] = row["original_ms"] / row["ours_ms"]
        rows.append(row | {"gain_of_least": row["original_least_ms"] / row["ours_least_ms"]})
    return rows


# ---- the page ----

_IMPORT = re.compile(r"`from (\w+)(?:\.[\w.]+)? import ([\w, ]+)`")


def gain(old_line: str, rows: list[dict[str, str]]) -> str:
    """What is measured of an import line's names, "`ssim` 12x, 34x; ...", or of its only one."""
    found = _IMPORT.search(old_line)
    if found is None:
        raise ValueError(f"{old_line!r} is no import line")
    cells, names = [], found[2].split(", ")
    for name in names:
        gains = {
            row["mode"]: f"{float(row['gain']):.2g}x"
            for row in rows
            if (row["library"], row["name"]) == (found[1], name)
        }
        if gains:
            both = f"{gains['value']}, {gains.get('step', 'no step')}"
            cells.append(f"`{name}` {both}" if len(names) > 1 else both)
    on_a_cpu = found[1] in {line.library for line in LINES}
    return "; ".join(cells) or ("not measured" if on_a_cpu else "not on a CPU")


def with_gains(table: str, rows: list[dict[str, str]]) -> str:
    """The table of docs/switching.md, its last column as measured."""
    lines = []
    present = (line for line in table.splitlines() if line.startswith("|"))
    for i, line in enumerate(present):
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if i > 1:
            cells[-1] = gain(cells[1], rows)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.switching", description=__doc__)
    parser.add_argument("--budget", type=float, default=12.0, help="seconds for each name")
    parser.add_argument("--only", nargs="+", metavar="LIBRARY", choices=list(originals.PINNED))
    parser.add_argument("--out", type=Path, default=results.RESULTS)
    args = parser.parse_args(argv)
    warnings.simplefilter("ignore")  # the originals'
    rows, absent = [], {}
    for line in LINES:
        if args.only and line.library not in args.only:
            continue
        if reason := originals.missing(line.library):
            print(f"left out: {line.library}: {reason}", file=sys.stderr)
            absent[line.library] = reason
            continue
        found = measure(line, args.budget)
        rows += found
        shown = ", ".join(f"{row['mode']} {row['gain']:.3g}x" for row in found)
        print(f"{line.library}.{line.name}: {shown}", flush=True)
    if not rows:
        return 1
    lacks = f"without {', '.join(absent)}" if absent else ""
    path = results.save(args.out, results.name_for("switching", parser, args, lacks), rows)
    print(f"saved in {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
