"""What a whole training step gains: `python -m benchmarks.train_step`.

Three small trainings: a conditional VAE, a super-resolution network, and a picture fitted at 1080p,
its pixels from a coarse grid of colours (rendering is cheap there, as it is on the GPU of those who
fit radiance fields). Steps with the loss of the usual code and with ours are interleaved. The share
of the loss is its own time, value and gradient, within the same step.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ssim_fused
from examples.cvae.model import CVAE
from release import tables

from . import article, results
from .engine import Workload, images
from .turns import take_turns

Loss = Callable[[Tensor, Tensor], Tensor]
# a step: network or parameters to a picture, and what it is compared with
Step = tuple[nn.Module, Callable[[], tuple[Tensor, Tensor]]]


def _usual(x: Tensor, y: Tensor) -> Tensor:
    return article.SSIMLoss()(x.flatten(0, 1).unsqueeze(1), y.flatten(0, 1).unsqueeze(1))


LOSSES: dict[str, Loss] = {"usual code": _usual, "ssim_fused": ssim_fused.ssim_loss}


def cvae() -> Step:
    model = CVAE(32, classes=10, latent=16)
    x, _ = images(Workload("step", (128, 1, 32, 32)))
    labels = torch.arange(128) % 10
    generator = torch.Generator().manual_seed(0)
    noise = (len(x), model.latent)
    return model, lambda: (model(x, labels, torch.randn(noise, generator=generator))[0], x)


def super_resolution() -> Step:
    layers = [nn.Conv2d(3, 32, 5, padding=2), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Conv2d(32, 12, 3, padding=1), nn.PixelShuffle(2))
    target, _ = images(Workload("step", (8, 3, 128, 128)))
    small = F.avg_pool2d(target, 2)
    return model, lambda: (model(small), target)


class _Grid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.colours = nn.Parameter(torch.rand(1, 3, 68, 120))

    def forward(self) -> Tensor:
        return F.interpolate(self.colours, size=(1080, 1920), mode="bilinear")


def picture_fit() -> Step:
    model = _Grid()
    target, _ = images(Workload("step", (1, 3, 1080, 1920)))
    return model, lambda: (model(), target)


TASKS = {
    "CVAE, 128x1x32x32": cvae,
    "super-resolution, 8x3x128x128": super_resolution,
    "picture fit, 1x3x1080x1920": picture_fit,
}


def one_step(task: Step, loss: Loss, optimizer: torch.optim.Optimizer) -> tuple[float, float]:
    """Seconds of a step, and of the loss with its gradient to the picture in it."""
    start = time.perf_counter()
    optimizer.zero_grad()
    made, target = task[1]()
    picture = made.detach().requires_grad_()
    before = time.perf_counter()
    loss(picture, target).backward()
    in_loss = time.perf_counter() - before
    made.backward(picture.grad)
    optimizer.step()
    return time.perf_counter() - start, in_loss


def measure(budget: float) -> list[dict]:
    """One row for each task and loss; `budget` seconds each task."""
    rows = []
    for name, make in TASKS.items():
        torch.manual_seed(0)
        task = make()
        optimizer = torch.optim.Adam(task[0].parameters(), lr=1e-3)
        steps = {
            which: functools.partial(one_step, task, loss, optimizer)
            for which, loss in LOSSES.items()
        }
        for step in steps.values():
            step()
        times = take_turns(steps, 3, budget)
        for which, found in times.items():
            step, in_loss = (statistics.median(column) for column in zip(*found))
            row = {"task": name, "loss": which, "runs": len(found), "step_ms": 1e3 * step}
            rows.append(row | {"loss_ms": 1e3 * in_loss, "share": in_loss / step})
    return rows


def markdown(rows: list[dict]) -> str:
    """Tasks down; the step with the usual code and with ours."""
    lines = [["", "step, usual code", "in its loss", "step, ssim_fused", "in its loss", "gain"]]
    for name in dict.fromkeys(row["task"] for row in rows):
        usual, ours = (
            next(r for r in rows if (r["task"], r["loss"]) == (name, loss)) for loss in LOSSES
        )
        cells = [
            cell
            for row in (usual, ours)
            for cell in (f"{float(row['step_ms']):.3g} ms", f"{float(row['share']):.0%}")
        ]
        gain = float(usual["step_ms"]) / float(ours["step_ms"])
        lines.append([name, *cells, f"{gain:.3g}x"])
    return tables.markdown(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_step", description=__doc__)
    parser.add_argument("--budget", type=float, default=20.0, help="seconds for each task")
    parser.add_argument("--out", type=Path, default=results.RESULTS)
    args = parser.parse_args(argv)
    rows = measure(args.budget)
    path = results.save(args.out, results.name_for("train_step", parser, args), rows)
    print(markdown(rows), f"\nsaved in {path}", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
