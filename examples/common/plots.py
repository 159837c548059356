"""How the plots of the examples look."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

import matplotlib
from torch import Tensor

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLOURS = ["#3b6fb6", "#d1603d", "#5a9367"]
STYLE = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
}
DPI = 130


@contextmanager
def figure_in(path: Path, rows: int, columns: int, size: tuple[float, float]):
    """Axes (rows, columns) to draw on; what was drawn is saved in `path` at the end."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            rows, columns, figsize=size, layout="constrained", squeeze=False
        )
        yield axes
        figure.savefig(path, dpi=DPI)
        plt.close(figure)


def show(axes, picture: Tensor, title: str = "") -> None:
    """A picture (C, H, W), C 1 or 3, in [0, 1]."""
    pixels = picture.detach().cpu().clamp(0, 1).permute(1, 2, 0).squeeze(2)
    axes.imshow(pixels.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(title, fontsize=10)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    axes.spines[:].set_visible(False)
