"""Tables and pictures of README and docs/ from the committed results: `python -m benchmarks readme`

A table stands between <!-- NAME --> and <!-- end -->; the text around it is nobody's but ours.
"""

from __future__ import annotations

from pathlib import Path

from release import tables

from . import accuracy, breadth, evaluating, gpu_cost, results, switching, train_step, vae_losses

ROOT = Path(__file__).resolve().parent.parent
SHOWN = ("16x3x256x256", "1x3x1080x1920")


def speed_table(folder: Path) -> str:
    rows = results.load(folder / "quick.csv")
    return results.markdown([row for row in rows if row["shape"] in SHOWN])


def accuracy_table(folder: Path) -> str:
    rows = results.load(folder / "accuracy.csv")
    value = accuracy.markdown(rows, "value_error").splitlines()
    gradient = accuracy.markdown(rows, "gradient_error").splitlines()
    column = gradient[0].split("|").index(" noise 1e-4 ")
    value[0] += " gradient, noise 1e-4 |"
    value[1] += "---|"
    last = {line.split("|")[1]: line.split("|")[column] for line in gradient[2:]}
    return "\n".join(
        value[:2] + [f"{line}{last.get(line.split('|')[1], '  ')}|" for line in value[2:]]
    )


def train_step_table(folder: Path) -> str:
    return train_step.markdown(results.load(folder / "train_step.csv"))


def gpu_cost_table(folder: Path) -> str:
    rows = results.load(folder / "gpu_cost.csv")
    shown = ["task", "shape", "layout", "multiply-adds", "shared loads", "bytes", "instructions"]
    return gpu_cost.markdown([{name: row[name] for name in shown} for row in rows])


def breadth_table(folder: Path) -> str:
    return breadth.markdown(results.load(folder / "breadth.csv"))


def full_table(folder: Path) -> str:
    """Every library at the shapes that all of them were timed at, in float32."""
    rows = results.load(folder / "full.csv")
    return results.markdown(
        [row for row in rows if row["shape"] in SHOWN and row["mode"] != "memory"]
    )


def memory_table(folder: Path) -> str:
    rows = results.load(folder / "full.csv")
    return results.markdown([row for row in rows if row["mode"] == "memory"])


def value_error_table(folder: Path) -> str:
    return accuracy.markdown(results.load(folder / "accuracy.csv"), "value_error")


def gradient_error_table(folder: Path) -> str:
    return accuracy.markdown(results.load(folder / "accuracy.csv"), "gradient_error")


def vae_losses_table(folder: Path) -> str:
    return vae_losses.markdown(results.load(folder / "vae_losses.csv"))


def evaluating_table(folder: Path) -> str:
    return evaluating.markdown(results.load(folder / "evaluating.csv"))


def installs_table(folder: Path) -> str:
    """What `make install-matrix` has tried; its results are not a benchmark's."""
    rows = results.load(ROOT / "release" / "installs.csv")
    return tables.markdown([list(rows[0]), *(list(row.values()) for row in rows)])


TABLES = {
    "speed": speed_table,
    "train_step": train_step_table,
    "accuracy": accuracy_table,
    "gpu_cost": gpu_cost_table,
    "breadth": breadth_table,
    "full": full_table,
    "memory": memory_table,
    "value_error": value_error_table,
    "gradient_error": gradient_error_table,
    "vae_losses": vae_losses_table,
    "evaluating": evaluating_table,
    "installs": installs_table,
}
# which tables a page must have
PAGES = {
    "README.md": ("speed", "train_step", "accuracy", "gpu_cost", "breadth"),
    "docs/switching.md": ("switching",),
    "docs/choosing.md": ("vae_losses",),
    "docs/evaluating.md": ("evaluating",),
    "docs/accuracy.md": ("value_error", "gradient_error"),
    "docs/performance.md": ("full", "memory", "train_step", "breadth"),
    "docs/gpu.md": ("gpu_cost",),
    "docs/installing.md": ("installs",),
}


def _made(name: str, present: str, folder: Path) -> str:
    """A table as the results have it; docs/switching.md's has columns of its own."""
    if name == "switching":
        return switching.with_gains(present, results.load(folder / "switching.csv"))
    return TABLES[name](folder)


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
