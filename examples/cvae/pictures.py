"""What a run leaves to look at."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import torch
from torch import Tensor

from .data import Pictures
from .model import CVAE

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLOURS = ["#3b6fb6", "#d1603d", "#5a9367", "#8d6a9f"]
STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.titlesize": 11,
    "figure.facecolor": "white",
}


def montage(rows: Tensor, gap: int = 2) -> Tensor:
    """(rows, columns, 1, H, W) to one picture, white gaps between."""
    count, across, _, h, w = rows.shape
    sheet = torch.ones(count * (h + gap) + gap, across * (w + gap) + gap)
    for i in range(count):
        for j in range(across):
            y, x = gap + i * (h + gap), gap + j * (w + gap)
            sheet[y : y + h, x : x + w] = rows[i, j, 0]
    return sheet


def save_montage(path: Path, rows: Tensor, title: str, row_labels: list[str] | None = None) -> None:
    rows = rows.detach().float().cpu()
    count, across, _, h, w = rows.shape
    sheet = montage(rows)
    scale = 0.55
    figure, axes = plt.subplots(figsize=(across * scale + 1.1, count * scale + 0.6))
    axes.imshow(sheet, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(title, fontsize=11)
    axes.set_xticks([])
    axes.set_yticks([])
    if row_labels:
        axes.set_yticks([2 + i * (h + 2) + h / 2 for i in range(count)], row_labels)
        axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    figure.savefig(path, dpi=130, bbox_inches="tight")
    plt.close(figure)


def one_of_each(pictures: Pictures, columns: int) -> Tensor:
    """Indices of held-out pictures, the classes in turn."""
    by_class = [
        torch.nonzero(pictures.held_out_labels == label).flatten()
        for label in range(len(pictures.classes))
    ]
    found = []
    for turn in range(max(len(indices) for indices in by_class)):
        found += [indices[turn] for indices in by_class if turn < len(indices)]
    return torch.stack(found[:columns])


@torch.no_grad()
def reconstructions(path: Path, models: dict[str, CVAE], pictures: Pictures) -> None:
    """Held-out originals, and below them what each model makes of them."""
    chosen = one_of_each(pictures, 20)
    x, labels = pictures.held_out[chosen], pictures.held_out_labels[chosen]
    rows = [x]
    for model in models.values():
        device = next(model.parameters()).device
        inputs = x.to(device), labels.to(device)
        rows.append(model.decode(model.encode(*inputs)[0], inputs[1]).cpu())
    names = ["original", *models]
    save_montage(path, torch.stack(rows), "Held-out pictures and their reconstructions", names)


@torch.no_grad()
def samples(path: Path, model: CVAE, classes: tuple[str, ...], seed: int) -> None:
    """Ten draws from the prior for each class; a column shares its latent."""
    device = next(model.parameters()).device
    z = torch.randn((10, model.latent), generator=torch.Generator().manual_seed(seed)).to(device)
    shown = classes[:20]
    rows = [model.decode(z, torch.full((10,), i, device=device)) for i in range(len(shown))]
    save_montage(path, torch.stack(rows), "Samples, one row a class", list(shown))


@torch.no_grad()
def sweep(path: Path, model: CVAE, pictures: Pictures) -> None:
    """The two latent directions that the encoder uses most, walked for one class each row pair."""
    device = next(model.parameters()).device
    mu, _ = model.encode(pictures.held_out.to(device), pictures.held_out_labels.to(device))
    used = mu.std(dim=0).argsort(descending=True)[:2]
    walk = torch.linspace(-2.5, 2.5, 11)
    rows, names = [], []
    for label in range(min(len(pictures.classes), 5)):
        for axis, name in zip(used, ("first", "second")):
            z = torch.zeros(len(walk), model.latent, device=device)
            z[:, axis] = walk.to(device)
            rows.append(model.decode(z, torch.full((len(walk),), label, device=device)))
            names.append(f"{pictures.classes[label]}, {name}")
    save_montage(path, torch.stack(rows), "Along the two most used latent directions", names)


def curves(path: Path, runs: dict[str, list[dict]]) -> None:
    """The terms of the loss and the held-out SSIM by epoch."""
    panels = {
        "mse": "MSE",
        "ssim": "SSIM loss",
        "kl": "KL divergence",
        "held_out_ssim": "Held-out SSIM",
    }
    with plt.rc_context(STYLE):
        figure, all_axes = plt.subplots(1, 4, figsize=(13, 3), layout="constrained")
        for axes, (column, title) in zip(all_axes, panels.items()):
            for colour, (name, rows) in zip(COLOURS, runs.items()):
                values = [row[column] for row in rows]
                if column == "ssim" and not any(values):
                    continue  # a loss without this term
                axes.plot([row["epoch"] for row in rows], values, color=colour, label=name)
            axes.set_title(title)
            axes.set_xlabel("epoch")
        if len(runs) > 1:
            all_axes[-1].legend(frameon=False, fontsize=9)
        figure.savefig(path, dpi=130)
        plt.close(figure)


def comparison(path: Path, table: dict[str, dict[str, float]]) -> None:
    """Bars: time of the loss, of the whole step, held-out SSIM."""
    panels = {
        "loss_ms": ("Loss and its gradient, ms a step", "{:.2f}"),
        "step_ms": ("Whole training step, ms", "{:.1f}"),
        "held_out_ssim": ("Held-out SSIM (more is better)", "{:.3f}"),
    }
    names = list(table)
    with plt.rc_context(STYLE | {"axes.grid": False}):
        figure, all_axes = plt.subplots(1, 3, figsize=(12, 3), layout="constrained")
        for axes, (column, (title, form)) in zip(all_axes, panels.items()):
            values = [table[name][column] for name in names]
            bars = axes.barh(names[::-1], values[::-1], color=COLOURS[: len(names)][::-1])
            axes.bar_label(bars, [form.format(v) for v in values[::-1]], padding=4)
            axes.set_title(title)
            axes.set_xlim(0, 1.18 * max(values))
            axes.tick_params(left=False)
        figure.savefig(path, dpi=130)
        plt.close(figure)
