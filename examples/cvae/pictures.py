"""What a run leaves to look at."""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from common.plots import COLOURS, DPI, STYLE, figure_in, plt
from torch import Tensor

from .data import Pictures
from .model import CVAE

GAP = 2  # white pixels between the pictures of a montage
MOST_CLASSES = 20  # of a montage


def montage(rows: Tensor) -> Tensor:
    """(rows, columns, 1, H, W) to one picture, white gaps between."""
    count, across, _, h, w = rows.shape
    framed = F.pad(rows[:, :, 0], (GAP, 0, GAP, 0), value=1.0)
    sheet = framed.permute(0, 2, 1, 3).reshape(count * (h + GAP), across * (w + GAP))
    return F.pad(sheet, (0, GAP, 0, GAP), value=1.0)


def save_montage(
    path: Path,
    rows: Tensor,
    title: str,
    row_labels: list[str],
    column_labels: list[str] | None = None,
    xlabel: str = "",
) -> None:
    count, across, _, h, w = rows.shape
    inches = 0.55  # a picture's side
    figure, axes = plt.subplots(figsize=(across * inches + 1.1, count * inches + 0.6))
    sheet = montage(rows.float().cpu())
    axes.imshow(sheet.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(title, fontsize=11)
    # folders' names may hold dollars, and bytes that are not UTF-8
    labels = [label.encode(errors="backslashreplace").decode() for label in row_labels]
    places = [GAP + i * (h + GAP) + h / 2 for i in range(count)]
    axes.set_yticks(places, labels, parse_math=False)
    places = [GAP + j * (w + GAP) + w / 2 for j in range(across)]
    axes.set_xticks(places if column_labels else [], column_labels)
    axes.set_xlabel(xlabel)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.savefig(path, dpi=DPI, bbox_inches="tight")
    plt.close(figure)


def classes_in_turn(labels: Tensor, classes: int, count: int) -> Tensor:
    """Indices of `count` pictures: the first of each class, the second of each, and so on."""
    by_class = [torch.nonzero(labels == label).flatten().tolist() for label in range(classes)]
    most = max(len(indices) for indices in by_class)
    turns = [indices[i] for i in range(most) for indices in by_class if i < len(indices)]
    return torch.tensor(turns[:count])


def decode(model: CVAE, z: Tensor, labels: Tensor) -> Tensor:
    """Latents and labels from anywhere to pictures on the CPU."""
    device = next(model.parameters()).device
    return model.decode(z.to(device), labels.to(device)).cpu()


def encode(model: CVAE, x: Tensor, labels: Tensor) -> Tensor:
    """The means of the latents, on the CPU."""
    device = next(model.parameters()).device
    return model.encode(x.to(device), labels.to(device))[0].cpu()


@torch.no_grad()
def reconstructions(path: Path, models: dict[str, CVAE], pictures: Pictures) -> None:
    """Held-out originals, and below them what each model makes of them."""
    chosen = classes_in_turn(pictures.held_out_labels, len(pictures.classes), 20)
    x, labels = pictures.held_out[chosen], pictures.held_out_labels[chosen]
    rows = [x, *(decode(model, encode(model, x, labels), labels) for model in models.values())]
    title = "Held-out pictures and their reconstructions"
    save_montage(path, torch.stack(rows), title, ["original", *models])


@torch.no_grad()
def samples(path: Path, model: CVAE, classes: tuple[str, ...], seed: int) -> None:
    """Ten draws from the prior for each class; a column shares its latent."""
    z = torch.randn((10, model.latent), generator=torch.Generator().manual_seed(seed))
    shown = classes[:MOST_CLASSES]
    rows = [decode(model, z, torch.full((len(z),), label)) for label in range(len(shown))]
    save_montage(path, torch.stack(rows), "Samples, a row for each class", list(shown))


@torch.no_grad()
def sweep(path: Path, model: CVAE, pictures: Pictures) -> None:
    """The latent direction that the encoder uses most, walked for each class."""
    mu = encode(model, pictures.held_out, pictures.held_out_labels)
    walk = torch.linspace(-2.5, 2.5, 11)
    z = torch.zeros(len(walk), model.latent)
    z[:, mu.var(dim=0, correction=0).argmax()] = walk
    shown = pictures.classes[:MOST_CLASSES]
    rows = [decode(model, z, torch.full((len(z),), label)) for label in range(len(shown))]
    save_montage(
        path,
        torch.stack(rows),
        "Along the latent direction that is used most",
        list(shown),
        [f"{place:g}" for place in walk.tolist()],
        "standard deviations of the prior",
    )


def curves(path: Path, rows: list[dict]) -> None:
    """The terms of the loss by epoch, for training and held-out pictures."""
    panels = {"loss": "Loss", "mse": "MSE", "ssim_loss": "SSIM loss", "kl": "KL divergence"}
    epochs = [row["epoch"] for row in rows]
    with figure_in(path, 1, len(panels), (13, 3)) as rows_of_axes:
        all_axes = rows_of_axes[0]
        for axes, (column, title) in zip(all_axes, panels.items()):
            train = [row[column] for row in rows]
            if any(train):  # else a term of weight 0, which training does not compute
                axes.plot(epochs, train, color=COLOURS[0], label="training")
            held_out = [row[f"held_out_{column}"] for row in rows]
            axes.plot(epochs, held_out, color=COLOURS[1], label="held out")
            axes.set_title(title)
            axes.set_xlabel("epoch")
            if column != "kl":
                axes.set_yscale("log")
        all_axes[0].legend(frameon=False)


def comparison(path: Path, table: dict[str, dict[str, float]]) -> None:
    """Bars: time of the loss, of the whole step, held-out SSIM."""
    panels = {
        "loss_ms": ("Loss and its gradient, ms a step", "{:.2f}"),
        "step_ms": ("Whole training step, ms", "{:.1f}"),
        "held_out_ssim": ("Held-out SSIM (more is better)", "{:.3f}"),
    }
    names = list(table)
    with plt.rc_context(STYLE | {"axes.grid": False, "axes.spines.bottom": False}):
        figure, all_axes = plt.subplots(1, 3, figsize=(12, 2.2), layout="constrained", sharey=True)
        for axes, (column, (title, form)) in zip(all_axes, panels.items()):
            values = [table[name][column] for name in names]
            lengths = [value if math.isfinite(value) else 0 for value in values]  # of a divergence
            bars = axes.barh(names, lengths, color=COLOURS, height=0.65)
            axes.bar_label(bars, [form.format(value) for value in values], padding=4)
            axes.set_title(title, loc="left")
            axes.set_xlim(0, 1.18 * max(lengths) or 1)
            axes.set_xticks([])
            axes.tick_params(length=0)
        all_axes[0].invert_yaxis()
        figure.savefig(path, dpi=DPI)
        plt.close(figure)
