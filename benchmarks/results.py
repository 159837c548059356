"""Results on disk, CSV and JSON with the machine that made them, and as tables and pictures."""

from __future__ import annotations

import argparse
import csv
import datetime
import importlib.metadata
import json
import os
import platform
import sys
from pathlib import Path

import torch

import ssim_fused
from examples.common.files import save_json, write_atomically
from release import tables
from ssim_fused import _paths

from . import ceilings
from .providers import PROVIDERS

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
ISA_NAMES = {
    "avx512": "AVX-512",
    "avx2": "AVX2",
    "baseline": "baseline instructions",
    "none": "no native kernel",
}


def processor() -> str:
    """The CPU's model name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _instruction_sets() -> list[str]:
    """Those that matter here, as the kernel names them."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return []
    flags = set(next((line for line in text.splitlines() if line.startswith("flags")), "").split())
    known = ("sse4_2", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl")
    return [flag for flag in known if flag in flags]


def _installed() -> dict[str, str]:
    found = {}
    for provider in PROVIDERS:
        if provider.package and provider.missing() is None:
            found[provider.package] = importlib.metadata.version(provider.package)
    return found


def machine() -> dict:
    """Where and with what the figures were made."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": tables.commit(),
        "cpu": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instruction_sets": _instruction_sets(),
        "isa": torch.ops.ssim_fused.cpu_isa() if _paths.cpu_reason is None else "none",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "ssim_fused": ssim_fused.__version__,
        "installed": _installed(),
    }


# options that leave no part of a benchmark out
_HARMLESS = {"command", "file", "quick", "full", "name", "out", "runs"}


def name_for(
    name: str, parser: argparse.ArgumentParser, args: argparse.Namespace, lacks: str = ""
) -> str:
    """`name`; name-partial for what would replace committed results by a part of them.

    That is a run that `lacks` something, in words, or whose options are not those of the committed
    results. Another name (--name) or folder (--out) is the caller's own.
    """
    if args.out is not None and args.out.resolve() != RESULTS.resolve():
        return name
    others = [
        f"--{option}"
        for option, value in vars(args).items()
        if option not in _HARMLESS and value != parser.get_default(option)
    ]
    if others and not getattr(args, "name", None):
        lacks = lacks or f"run with {', '.join(others)}"
    if not lacks:
        return name
    print(f"{name}.csv is left as it is: saved as {name}-partial ({lacks})", file=sys.stderr)
    return f"{name}-partial"


def save(folder: Path, name: str, rows: list[dict]) -> Path:
    """name.csv with the rows, name.json with the machine; each is whole, or as it was."""
    path = folder / f"{name}.csv"
    if not rows:
        raise ValueError(f"no rows for {path}: it is left as it is")
    made = machine()
    folder.mkdir(parents=True, exist_ok=True)

    def write(scratch: Path) -> None:
        with scratch.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    write_atomically(path, write)
    save_json(path.with_suffix(".json"), made)
    return path


def origin(path: Path) -> str:
    """One line on where results were made; none for counts, which need no machine."""
    file = path.with_suffix(".json")
    if not file.exists():
        return ""
    made = json.loads(file.read_text())
    threads = f"{made['threads']} thread{'s' if made['threads'] > 1 else ''}"
    return (
        f"*{made['cpu']}, {threads}, {ISA_NAMES[made['isa']]}; torch {made['torch']}; "
        f"commit {made['commit']} of {made['date'][:10]}*"
    )


def load(path: Path) -> list[dict[str, str]]:
    """Rows as written; every value is text, an empty one stands for nothing."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# ---- tables ----


def _cell(row: dict[str, str]) -> str:
    if row["peak_bytes"]:
        return f"{int(row['peak_bytes']) / 2**20:.0f} MiB ({float(row['ratio_to_ours']):.3g}x)"
    if not row["median_us"]:
        return row["problem"].split("(")[0].strip() or "none"
    nanoseconds, ratio = float(row["ns_per_pixel"]), float(row["ratio_to_ours"] or "nan")
    mark = "" if row["agrees"] == "True" else " (another value)"
    if "timed once" in row["problem"]:
        mark += " (timed once)"
    return f"{nanoseconds:.3g} ({ratio:.3g}x){mark}"


def markdown(rows: list[dict[str, str]]) -> str:
    """Providers down, workloads across: ns a pixel and channel, and the time relative to ours.

    A memory workload shows the peak of a step's extra memory instead.
    """
    columns = list(dict.fromkeys((r["mode"], r["shape"], r["dtype"], r["device"]) for r in rows))
    cells = {(r["provider"], r["mode"], r["shape"], r["dtype"], r["device"]): r for r in rows}
    titles = [
        f"{mode} {shape}" + ("" if dtype == "float32" else f" {dtype}")
        for mode, shape, dtype, _ in columns
    ]
    lines = [["", *titles]]
    for provider in dict.fromkeys(row["provider"] for row in rows):
        found = [cells.get((provider, *column)) for column in columns]
        if all(row is None or not (row["median_us"] or row["peak_bytes"]) for row in found):
            continue
        lines.append([provider, *(_cell(r) if r else "" for r in found)])
    return tables.markdown(lines)


def show(rows: list[dict[str, str]]) -> None:
    """The same as a table on the terminal."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        print(markdown(rows))
        return
    lines = [line.strip("|").split("|") for line in markdown(rows).splitlines()]
    table = Table(row_styles=["", "dim"])
    for title in lines[0]:
        table.add_column(title.strip(), justify="right" if title.strip() else "left")
    for line in lines[2:]:
        table.add_row(*(cell.strip() for cell in line))
    Console(width=None if Console().is_terminal else 200).print(table)


# ---- pictures ----

OURS, OTHERS = "#d1603d", "#9db4cf"


def _pyplot():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9})
    return plt


def _save(figure, path: Path) -> bool:
    figure.savefig(path, dpi=120)
    _pyplot().close(figure)
    return True


def _pixels(row: dict[str, str]) -> int:
    pixels = 1
    for size in row["shape"].split("x"):
        pixels *= int(size)
    return pixels


def _bars(rows: list[dict[str, str]], title: str, path: Path) -> bool:
    """Bars of ratio_to_ours, one panel a workload."""
    columns = list(dict.fromkeys((r["mode"], r["shape"], r["dtype"]) for r in rows))
    if not columns:
        return False
    plt = _pyplot()
    across = min(3, len(columns))
    down = -(-len(columns) // across)
    most = max(sum((r["mode"], r["shape"], r["dtype"]) == c for r in rows) for c in columns)
    figure, axes = plt.subplots(
        down,
        across,
        figsize=(5.6 * across, (0.8 + 0.24 * most) * down),
        layout="constrained",
        squeeze=False,
    )
    for ax in axes.flat[len(columns) :]:
        ax.set_visible(False)
    for ax, column in zip(axes.flat, columns):
        shown = [r for r in rows if (r["mode"], r["shape"], r["dtype"]) == column]
        shown.sort(key=lambda row: -float(row["ratio_to_ours"]))
        ratios = [float(row["ratio_to_ours"]) for row in shown]
        colours = [OURS if r["provider"] == "ssim_fused" else OTHERS for r in shown]
        bars = ax.barh([row["provider"] for row in shown], ratios, color=colours)
        ax.bar_label(bars, [f"{ratio:.3g}x" for ratio in ratios], padding=3, fontsize=8)
        ax.set_xscale("log")
        ax.set_xlim(min(0.5, *ratios), 4 * max(ratios))
        ax.set_title(" ".join(column), fontsize=10)
    figure.suptitle(title)
    return _save(figure, path)


def plot(rows: list[dict[str, str]], path: Path) -> bool:
    """Time relative to ours."""
    timed = [row for row in rows if row["median_us"] and row["ratio_to_ours"]]
    return _bars(timed, "Time relative to ssim_fused", path)


def plot_memory(rows: list[dict[str, str]], path: Path) -> bool:
    """Peak extra memory of a step relative to ours."""
    found = [row for row in rows if row["peak_bytes"] and row["ratio_to_ours"]]
    return _bars(found, "Peak extra memory of a step relative to ssim_fused", path)


def plot_sizes(rows: list[dict[str, str]], path: Path) -> bool:
    """ns a pixel and channel against the number of pixels, one panel a mode."""
    timed = [r for r in rows if r["ns_per_pixel"] and r["dtype"] == "float32"]
    modes = [mode for mode in ("value", "step") if any(r["mode"] == mode for r in timed)]
    if not modes:
        return False
    plt = _pyplot()
    figure, axes = plt.subplots(
        1, len(modes), figsize=(6.4 * len(modes), 4.6), layout="constrained", squeeze=False
    )
    colours = plt.get_cmap("tab20").colors
    names = list(dict.fromkeys(r["provider"] for r in timed))
    for ax, mode in zip(axes.flat, modes):
        for i, name in enumerate(names):
            points = sorted(
                (_pixels(r), float(r["ns_per_pixel"]))
                for r in timed
                if r["provider"] == name and r["mode"] == mode
            )
            if not points:
                continue
            ours = name == "ssim_fused"
            colour = OURS if ours else colours[i % len(colours)]
            ax.plot(*zip(*points), "o-", label=name, color=colour, lw=2.5 if ours else 1, ms=4)
        ax.set(xscale="log", yscale="log", title=mode, xlabel="pixels and channels in the batch")
        ax.set_ylabel("ns a pixel and channel")
        ax.grid(alpha=0.3)
    # the first panel has them all: some libraries have no step
    handles, labels = axes.flat[0].get_legend_handles_labels()
    axes.flat[-1].legend(handles, labels, fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    return _save(figure, path)


def plot_accuracy(rows: list[dict[str, str]], path: Path) -> bool:
    """Relative error of the value by family of pictures."""
    families = list(dict.fromkeys(row["family"] for row in rows))
    plt = _pyplot()
    figure, ax = plt.subplots(figsize=(9, 4.6), layout="constrained")
    colours = plt.get_cmap("tab20").colors
    for i, name in enumerate(dict.fromkeys(row["provider"] for row in rows)):
        errors = {r["family"]: r["value_error"] for r in rows if r["provider"] == name}
        values = [max(float(errors[f]), 1e-9) if errors.get(f) else None for f in families]
        ours = name == "ssim_fused"
        colour = OURS if ours else colours[i % len(colours)]
        values = [float("nan") if value is None else value for value in values]
        ax.plot(families, values, "o-", label=name, color=colour, lw=2.5 if ours else 1, ms=4)
    ax.set(yscale="log", ylabel="relative error of the float32 loss")
    ax.tick_params(axis="x", rotation=20)
    ax.grid(alpha=0.3)
    ax.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    return _save(figure, path)


def plot_roofline(rows: list[dict[str, str]], path: Path) -> bool:
    """Each provider's useful arithmetic a second under this machine's measured ceilings."""
    file = RESULTS / "ceilings.csv"
    shown = ("1x3x1080x1920", "float32", "True")
    timed = [
        r for r in rows if r["ns_per_pixel"] and (r["shape"], r["dtype"], r["agrees"]) == shown
    ]
    if not file.exists() or not timed:
        return False
    ceiling = {k: float(v) for k, v in load(file)[-1].items()}
    plt = _pyplot()
    figure, ax = plt.subplots(figsize=(7.5, 4.8), layout="constrained")
    intensity = [2**k for k in range(-2, 9)]
    for name, label in (("memory_gb_s", "memory"), ("cache_gb_s", "cache")):
        roof = [min(ceiling["gflops"], ceiling[name] * i) for i in intensity]
        ax.plot(intensity, roof, color="#555555", ls="-" if label == "memory" else ":")
        ax.annotate(
            f"{label}: {ceiling[name]:.0f} GB/s",
            (intensity[2], roof[2]),
            fontsize=8,
            xytext=(6, -10),
            textcoords="offset points",
        )
    ax.annotate(
        f"{ceiling['gflops']:.0f} GFLOP/s",
        (intensity[-3], ceiling["gflops"]),
        fontsize=8,
        xytext=(0, 4),
        textcoords="offset points",
    )
    for row in timed:
        value = row["mode"] == "value"
        flops, size = (
            (ceilings.VALUE_FLOPS, ceilings.VALUE_BYTES)
            if value
            else (ceilings.STEP_FLOPS, ceilings.STEP_BYTES)
        )
        ours = row["provider"] == "ssim_fused"
        point = (flops / size, flops / float(row["ns_per_pixel"]))
        ax.plot(*point, "o" if value else "s", color=OURS if ours else OTHERS, ms=8 if ours else 5)
        if ours:
            ax.annotate(
                row["mode"], point, xytext=(8, 4 if value else -12), textcoords="offset points"
            )
    ax.set(xscale="log", yscale="log", xlabel="multiply-adds' flops a byte that must move")
    ax.set_ylabel("GFLOP/s of the filters alone")
    ax.set_title("1x3x1080x1920, float32: ssim_fused, and the others in blue", fontsize=10)
    return _save(figure, path)
