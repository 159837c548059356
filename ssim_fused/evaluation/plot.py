"""The course of a video's SSIM as a picture."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from .outputs import OutputsError, replaced
from .video import Course
from .writers import escaped


def check_plot(path: Path) -> None:
    """The suffix names a kind of file that can be drawn.

    Raises:
        OutputsError: it does not.
    """
    kinds = Figure().canvas.get_supported_filetypes()
    if path.suffix[1:].lower() not in kinds:
        raise OutputsError(
            f"{path}: must end with one of {', '.join(f'.{kind}' for kind in kinds)}"
        )


def plot_course(path: Path, course: Course, title: str) -> None:
    """SSIM against time, with the worst frames marked; the suffix says which kind of file.

    Raises:
        OSError: it cannot be written.
    """
    figure = Figure(figsize=(10, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(course.times, course.similarities, linewidth=1)
    worst = [number for number, _ in course.worst()]
    for place, number in enumerate(worst):
        point = course.times[number], course.similarities[number]
        axes.plot(*point, "o", color="tab:red", label="the worst frames" if place == 0 else None)
        axes.annotate(f" {number}", point, fontsize=8)
    axes.set(xlabel="seconds", ylabel="SSIM")
    axes.set_title(escaped(title), parse_math=False)  # a name may hold dollars
    axes.grid(alpha=0.3)
    if worst:
        axes.legend()
    with replaced(path) as new:
        figure.savefig(new, dpi=120, format=path.suffix[1:])
