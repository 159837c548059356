"""The figures of docs/mathematics.md and docs/choosing.md: `make figures`, a few seconds."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import ssim_fused
from ssim_fused._windows import gaussian_window

matplotlib.use("Agg")
import matplotlib.pyplot as plt

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
C1, C2 = 0.01**2, 0.03**2
OURS, USUAL, BETWEEN = "#d1603d", "#3b6fb6", "#5a9367"
STYLE = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}


def photo() -> Tensor:
    """(1, 1, 220, 300) in [0, 1], float64: a part of scikit-learn's photograph, in grey."""
    from sklearn.datasets import load_sample_image

    colours = torch.from_numpy(np.array(load_sample_image("china.jpg"))).double() / 255
    return colours.mean(dim=-1)[60:280, 170:470][None, None]


def noise(like: Tensor, seed: int = 0) -> Tensor:
    """Standard normal."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(like.shape, generator=generator, dtype=like.dtype)


def blur(image: Tensor) -> Tensor:
    """Gaussian means of 11 x 11 pixels, zeros outside."""
    taps = torch.tensor(gaussian_window(11, 1.5), dtype=image.dtype)
    across = F.conv2d(image, taps.view(1, 1, 1, -1), padding=(0, 5))
    return F.conv2d(across, taps.view(1, 1, -1, 1), padding=(5, 0))


def soft(image: Tensor) -> Tensor:
    """Blurred, without a dark edge."""
    return blur(F.pad(image, (5, 5, 5, 5), mode="reflect"))[..., 5:-5, 5:-5]


def usual(x: Tensor, y: Tensor) -> Tensor:
    """1 - mean SSIM, as it is mostly written: five filters, then a subtraction."""
    mu_x, mu_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mu_x * mu_x, blur(y * y) - mu_y * mu_y
    cov = blur(x * y) - mu_x * mu_y
    above = (2 * mu_x * mu_y + C1) * (2 * cov + C2)
    return 1 - (above / ((mu_x**2 + mu_y**2 + C1) * (var_x + var_y + C2))).mean()


def sum_and_difference(x: Tensor, y: Tensor) -> Tensor:
    """The loss as a sum of terms of one sign, without a pivot."""
    u, v = x + y, x - y
    m_u, m_v = blur(u), blur(v)
    var_u, var_v = blur(u * u) - m_u * m_u, blur(v * v) - m_v * m_v
    a, p = m_u * m_u / 2 + C1, m_v * m_v
    b, q = var_u / 2 + C2, var_v
    return ((a * q + p * b) / ((a + p / 2) * (b + q / 2))).mean()


WAYS: list[tuple[str, Callable[[Tensor, Tensor], Tensor], str]] = [
    ("1 - SSIM, five filters", usual, USUAL),
    ("sum and difference", sum_and_difference, BETWEEN),
    ("ssim_fused: with a pivot, too", ssim_fused.ssim_loss, OURS),
]


def _errors(pairs: list[tuple[Tensor, Tensor]], way: Callable[[Tensor, Tensor], Tensor]) -> list:
    """Relative errors of the float32 loss; one that is exact is shown at 1e-9."""
    found = []
    for x, y in pairs:
        x, y = x.float(), y.float()
        true = ssim_fused.reference.ssim_loss(x.double(), y.double()).item()
        found.append(max(abs(way(x, y).item() - true) / true, 1e-9))
    return found


def _image(ax: plt.Axes, picture: Tensor, title: str, **settings: object) -> None:
    shown = ax.imshow(picture[0, 0].detach().numpy(), interpolation="nearest", **settings)
    ax.set_title(title, fontsize=10)
    ax.set_axis_off()
    if settings.get("cmap") != "gray":
        ax.figure.colorbar(shown, ax=ax, fraction=0.035, pad=0.02)


def maps() -> plt.Figure:
    """Two pictures, their sum and difference, and the four maps that the loss needs."""
    x = photo()
    y = (0.85 * soft(x) + 0.1 + 0.02 * noise(x)).clamp(0, 1)
    u, v = x + y, x - y
    m_u, m_v = blur(u), blur(v)
    figure, axes = plt.subplots(2, 4, figsize=(12, 4.4), layout="constrained")
    grey = {"cmap": "gray"}
    panels = [(x, "x", grey), (y, "y: blurred, paler, noisy", grey), (u, "u = x + y", {})]
    panels += [(v, "v = x - y", {}), (m_u, "mean of u", {}), (m_v, "mean of v", {})]
    panels += [(blur(u * u) - m_u**2, "variance of u", {})]
    panels += [(blur(v * v) - m_v**2, "variance of v", {})]
    for ax, (picture, title, settings) in zip(axes.flat, panels):
        _image(ax, picture, title, **settings)
    return figure


def cancellation() -> plt.Figure:
    """Digits that are left when pictures grow alike, and when they grow bright."""
    x = photo()
    strengths = [10 ** (-k / 2) for k in range(2, 11)]
    alike = [(x, x + strength * noise(x)) for strength in strengths]
    offsets = [0.0, *(10 ** (k / 2) for k in range(-2, 7))]
    bright = [(x + offset, x + offset + 0.05 * noise(x)) for offset in offsets]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained", sharey=True)
    for name, way, colour in WAYS:
        left.loglog(strengths, _errors(alike, way), "o-", ms=4, color=colour, label=name)
        right.plot(offsets, _errors(bright, way), "o-", ms=4, color=colour, label=name)
    left.invert_xaxis()
    left.set(xlabel="noise between the two pictures", ylabel="relative error of the float32 loss")
    right.set_xscale("symlog", linthresh=0.1)
    right.set(xlabel="number added to all pixels of both", xlim=(-0.02, 2e3))
    right.legend()
    for ax in (left, right):
        ax.grid(alpha=0.3)
        ax.set_ylim(5e-10, 1e3)
    return figure


def gradient() -> plt.Figure:
    """Where the loss is, and what its gradient asks for."""
    x = photo()
    y = x.clone()
    y[..., 60:160, 40:140] = blur(x)[..., 60:160, 40:140]
    y[..., 60:160, 160:260] += 0.08
    y = y.requires_grad_()
    loss = ssim_fused.ssim_loss(y, x, reduction="none")
    (slope,) = torch.autograd.grad(loss.mean(), y)
    (slope_mse,) = torch.autograd.grad((y - x).square().mean(), y)
    figure, axes = plt.subplots(1, 4, figsize=(12, 2.4), layout="constrained")
    _image(axes[0], y, "blurred, and brighter", cmap="gray")
    _image(axes[1], loss, "1 - SSIM of each window", cmap="viridis")
    for ax, found, name in ((axes[2], slope, "SSIM loss"), (axes[3], slope_mse, "MSE")):
        found = found / found.abs().max()
        _image(ax, found, f"gradient of the {name}", cmap="RdBu", vmin=-1, vmax=1)
    return figure


def same_mse() -> plt.Figure:
    """Five changes of the same mean squared error; SSIM tells them apart."""
    x = photo()
    blocks = F.avg_pool2d(x, 4).repeat_interleave(4, -2).repeat_interleave(4, -1)
    changes = {
        "brighter": torch.ones_like(x),
        "more contrast": x - x.mean(),
        "noise": noise(x),
        "blurred": soft(soft(soft(x))) - x,
        "blocks": blocks - x,
    }
    figure, axes = plt.subplots(2, 3, figsize=(11, 5.8), layout="constrained")
    _image(axes.flat[0], x, "the original", cmap="gray", vmin=0, vmax=1)
    for ax, (name, change) in zip(axes.flat[1:], changes.items()):
        y = x + change * (0.002 / change.square().mean()).sqrt()  # no clamping: one MSE for all
        mse, similarity = (y - x).square().mean().item(), ssim_fused.ssim(y, x).item()
        title = f"{name}: MSE {mse:.4f}, SSIM {similarity:.2f}"
        _image(ax, y, title, cmap="gray", vmin=0, vmax=1)
    return figure


FIGURES = {
    "math_maps": maps,
    "math_cancellation": cancellation,
    "math_gradient": gradient,
    "same_mse": same_mse,
}


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m docs_tools.figures", description=__doc__)
    parser.add_argument("--out", type=Path, default=IMAGES, metavar="DIR")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    with plt.rc_context(STYLE):
        for name, draw in FIGURES.items():
            figure = draw()
            figure.savefig(args.out / f"{name}.png", dpi=90)
            plt.close(figure)
            print(args.out / f"{name}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
