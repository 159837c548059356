"""README's figures and pictures from the committed results: `python -m benchmarks readme`.

Each table stands between <!-- NAME --> and <!-- end -->; the text around it is nobody's but ours.
"""

from __future__ import annotations

import re
from pathlib import Path

from . import accuracy, gpu_cost, results, train_step

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


TABLES = {
    "speed": speed_table,
    "train_step": train_step_table,
    "accuracy": accuracy_table,
    "gpu_cost": gpu_cost_table,
}


def with_tables(text: str, folder: Path = results.RESULTS) -> str:
    """README's text with every table as the results have it."""
    for name, table in TABLES.items():
        block = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not block.search(text):
            raise ValueError(f"README has no place for the table {name!r}")
        made = table(folder)
        text = block.sub(lambda found, made=made: f"{found[1]}{made}\n{found[2]}", text)
    return text


def update() -> list[Path]:
    """Rewrite README and its pictures; what was written."""
    readme = ROOT / "README.md"
    readme.write_text(with_tables(readme.read_text()))
    images = ROOT / "docs" / "images"
    written = [readme]
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
