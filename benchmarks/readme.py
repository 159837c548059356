"""Tables and pictures of README and docs/ from the committed results: `python -m benchmarks readme`

A table stands between <!-- NAME --> and <!-- end -->; the text around it is nobody's but ours.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from release import tables

from . import (
    accuracy,
    breadth,
    evaluating,
    gpu_cost,
    many_pairs,
    results,
    switching,
    train_step,
    vae_losses,
)

ROOT = Path(__file__).resolve().parent.parent
SHOWN = ("16x3x256x256", "1x3x1080x1920")


Rows = list[dict[str, str]]


def shown_shapes(rows: Rows) -> str:
    """The two large shapes, in float32."""
    rows = [row for row in rows if row["shape"] in SHOWN and row["dtype"] == "float32"]
    return results.markdown([row for row in rows if row["mode"] != "memory"])


def memory_table(rows: Rows) -> str:
    return results.markdown([row for row in rows if row["mode"] == "memory"])


def value_error_table(rows: Rows) -> str:
    return accuracy.markdown(rows, "value_error")


def gradient_error_table(rows: Rows) -> str:
    return accuracy.markdown(rows, "gradient_error")


def accuracy_table(rows: Rows) -> str:
    """Errors of the value, and of the gradient for one kind of pictures."""
    value = value_error_table(rows).splitlines()
    gradient = gradient_error_table(rows).splitlines()
    column = gradient[0].split("|").index(" noise 1e-4 ")
    value[0] += " gradient, noise 1e-4 |"
    value[1] += "---|"
    last = {line.split("|")[1]: line.split("|")[column] for line in gradient[2:]}
    return "\n".join(
        value[:2] + [f"{line}{last.get(line.split('|')[1], '  ')}|" for line in value[2:]]
    )


def gpu_cost_table(rows: Rows) -> str:
    shown = ["task", "shape", "layout", "multiply-adds", "shared loads", "bytes", "instructions"]
    return gpu_cost.markdown([{name: row[name] for name in shown} for row in rows])


def installs_table(rows: Rows) -> str:
    """What `make install-matrix` has tried; its results are not a benchmark's."""
    return tables.markdown([list(rows[0]), *(list(row.values()) for row in rows)])


# a table's results, and what makes it of them
TABLES: dict[str, tuple[str, Callable[[Rows], str]]] = {
    "speed": ("quick.csv", shown_shapes),
    "train_step": ("train_step.csv", train_step.markdown),
    "accuracy": ("accuracy.csv", accuracy_table),
    "gpu_cost": ("gpu_cost.csv", gpu_cost_table),
    "breadth": ("breadth.csv", breadth.markdown),
    "full": ("full.csv", shown_shapes),
    "memory": ("full.csv", memory_table),
    "value_error": ("accuracy.csv", value_error_table),
    "gradient_error": ("accuracy.csv", gradient_error_table),
    "vae_losses": ("vae_losses.csv", vae_losses.markdown),
    "evaluating": ("evaluating.csv", evaluating.markdown),
    "many_pairs": ("many_pairs.csv", many_pairs.markdown),
    "installs": (str(ROOT / "release" / "installs.csv"), installs_table),
}
# which tables a page must have
PAGES = {
    "README.md": ("speed", "train_step", "accuracy", "gpu_cost", "breadth"),
    "docs/switching.md": ("switching",),
    "docs/choosing.md": ("vae_losses",),
    "docs/evaluating.md": ("evaluating", "many_pairs"),
    "docs/accuracy.md": ("value_error", "gradient_error"),
    "docs/performance.md": ("full", "memory", "train_step", "breadth"),
    "docs/gpu.md": ("gpu_cost",),
    "docs/installing.md": ("installs",),
}


def _made(name: str, present: str, folder: Path) -> str:
    """A table as the results have it, and below it where they come from."""
    if name == "switching":  # has columns of its own
        path = folder / "switching.csv"
        table = switching.with_gains(present, results.load(path))
    else:
        file, make = TABLES[name]
        path = folder / file
        table = make(results.load(path))
    made_by = results.origin(path)
    return f"{table}\n\n{made_by}" if made_by else table


def with_tables(text: str, page: str = "README.md", folder: Path = results.RESULTS) -> str:
    """A page's text with every table as the results have it."""
    for name in PAGES[page]:

        def made(present: str, name: str = name) -> str:
            return _made(name, present, folder)

        text = tables.placed(text, name, made)
    return text


def update() -> list[Path]:
    """Rewrite the pages that have tables, and their pictures; what was written."""
    written = [ROOT / page for page in PAGES]
    for path, page in zip(written, PAGES):
        path.write_text(with_tables(path.read_text(), page))
    images = ROOT / "docs" / "images"
    name = "full" if (results.RESULTS / "full.csv").exists() else "quick"
    rows = results.load(results.RESULTS / f"{name}.csv")
    errors = results.load(results.RESULTS / "accuracy.csv")
    for draw, data in (
        (results.plot, rows),
        (results.plot_sizes, rows),
        (results.plot_memory, rows),
        (results.plot_accuracy, errors),
        (results.plot_roofline, rows),
    ):
        path = images / f"{draw.__name__.replace('plot', 'benchmark')}.png"
        if draw(data, path):
            written.append(path)
    return written
