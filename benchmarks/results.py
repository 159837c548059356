"""Results on disk, CSV and JSON with the machine that made them, and as tables and pictures."""

from __future__ import annotations

import csv
import datetime
import importlib.metadata
import json
import platform
import subprocess
from pathlib import Path

import torch

import ssim_fused
from ssim_fused import _ops

from .providers import PROVIDERS

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"


def processor() -> str:
    """The CPU's model name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _commit() -> str:
    command = ["git", "-C", str(HERE), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"


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
        "commit": _commit(),
        "cpu": processor(),
        "threads": torch.get_num_threads(),
        "isa": torch.ops.ssim_fused.cpu_isa() if _ops.cpu_reason is None else "none",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "ssim_fused": ssim_fused.__version__,
        "installed": _installed(),
    }


def save(folder: Path, name: str, rows: list[dict]) -> Path:
    """name.csv with the rows, name.json with the machine."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    text = json.dumps(machine(), indent=2) + "\n"
    path.with_suffix(".json").write_text(text)
    return path


def load(path: Path) -> list[dict[str, str]]:
    """Rows as written; every value is text, an empty one stands for nothing."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# ---- tables ----


def _cell(row: dict[str, str]) -> str:
    if not row["median_us"]:
        return row["problem"].split("(")[0].strip() or "none"
    nanoseconds, ratio = float(row["ns_per_pixel"]), float(row["ratio_to_ours"] or "nan")
    mark = "" if row["agrees"] == "True" else " (another value)"
    return f"{nanoseconds:.3g} ({ratio:.3g}x){mark}"


def markdown(rows: list[dict[str, str]]) -> str:
    """Providers down, workloads across: ns a pixel and channel, and the time relative to ours."""
    columns = list(dict.fromkeys((r["mode"], r["shape"], r["dtype"], r["device"]) for r in rows))
    cells = {(r["provider"], r["mode"], r["shape"], r["dtype"], r["device"]): r for r in rows}
    titles = [
        f"{mode} {shape}" + ("" if dtype == "float32" else f" {dtype}")
        for mode, shape, dtype, _ in columns
    ]
    lines = ["| | " + " | ".join(titles) + " |", "|---" * (len(columns) + 1) + "|"]
    for provider in dict.fromkeys(row["provider"] for row in rows):
        found = [cells.get((provider, *column)) for column in columns]
        if all(row is None or not row["median_us"] for row in found):
            continue
        lines.append(f"| {provider} | " + " | ".join(_cell(r) if r else "" for r in found) + " |")
    return "\n".join(lines)


def plot(rows: list[dict[str, str]], path: Path) -> None:
    """Bars of the time relative to ours, one panel a workload."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    timed = [row for row in rows if row["ratio_to_ours"]]
    columns = list(dict.fromkeys((r["mode"], r["shape"], r["dtype"]) for r in timed))
    across = min(4, len(columns))
    down = -(-len(columns) // across)
    figure, axes = plt.subplots(
        down, across, figsize=(4.6 * across, 3.2 * down), layout="constrained", squeeze=False
    )
    for ax in axes.flat[len(columns) :]:
        ax.set_visible(False)
    for ax, column in zip(axes.flat, columns):
        shown = [r for r in timed if (r["mode"], r["shape"], r["dtype"]) == column]
        shown.sort(key=lambda row: -float(row["median_us"]))
        ratios = [float(row["ratio_to_ours"]) for row in shown]
        colours = ["#d1603d" if r["provider"] == "ssim_fused" else "#9db4cf" for r in shown]
        bars = ax.barh([row["provider"] for row in shown], ratios, color=colours)
        ax.bar_label(bars, [f"{ratio:.3g}x" for ratio in ratios], padding=3, fontsize=8)
        ax.set_xscale("log")
        ax.set_xlim(min(0.5, *ratios), 4 * max(ratios))
        ax.set_title(" ".join(column), fontsize=10)
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8)
    figure.suptitle("Time relative to ssim_fused")
    figure.savefig(path, dpi=120)
    plt.close(figure)
