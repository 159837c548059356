"""Fit 2-D Gaussians to a picture, as radiance fields are fitted: once with L1, once with SSIM, too.

python examples/fit_image.py                        scikit-image's cat, about three minutes
python examples/fit_image.py --picture mine.jpg     a picture of your own, or another of the names
python examples/fit_image.py --gaussians 2000 --size 256 --steps 2000

Both fits start from the same Gaussians and take the same steps. Results: runs/fit_image/
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from common import photos, plots
from common.files import save_json
from common.options import at_least, default_device, parser_of, usable_device
from common.scripts import exit_status
from splats import Gaussians
from torch import Tensor
from tqdm import tqdm

from ssim_fused import PhotometricLoss, psnr, ssim

ROOT = Path(__file__).resolve().parent.parent
FIGURES = {"ssim": "SSIM", "psnr": "PSNR, dB"}
STRIP = (0.0, 0.02, 0.08, 0.3, 1.0)  # parts of the way that the strip shows
LAST_RATE = 0.1  # of the first one

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass
class Fit:
    """What came of one loss."""

    steps: list[int] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)
    psnr: list[float] = field(default_factory=list)
    frames: dict[int, Tensor] = field(default_factory=dict)  # by step, (3, H, W) on the CPU

    def record(self, step: int, drawn: Tensor, target: Tensor) -> None:
        shown = drawn.clamp(0, 1)[None], target[None]
        self.steps.append(step)
        self.ssim.append(ssim(*shown).item())
        self.psnr.append(psnr(*shown).item())


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = parser_of(__doc__)
    add = parser.add_argument
    add("--picture", default="chelsea", help=f"a file, or one of {', '.join(photos.NAMES)}")
    # torch.multinomial chooses among 2^24 pixels at most
    add("--size", type=at_least(32, high=4096), default=128, help="side of the picture, pixels")
    add("--gaussians", type=at_least(1), default=600, help="how many")
    add("--steps", type=at_least(1), default=600, help="of each fit")
    add("--rate", type=at_least(0, float), default=0.015, help="of a colour; falls to a tenth")
    add(
        "--lambda-dssim",
        type=at_least(0, float, high=1),
        default=0.2,
        help="weight of DSSIM beside L1, 0 to 1",
    )
    add("--seed", type=at_least(0), default=0, help="of the first Gaussians")
    add("--device", type=usable_device, default=default_device(), help="cpu, cuda, ...")
    add("--out", type=Path, default=ROOT / "runs" / "fit_image", metavar="DIR", help="results")
    args = parser.parse_args(argv)
    if args.gaussians > args.size**2:
        parser.error(f"--gaussians {args.gaussians} are more than the picture has pixels")
    return args


def fit(target: Tensor, loss: Loss, name: str, args: argparse.Namespace) -> Fit:
    """`args.steps` steps of Adam from the same start, whatever the loss."""
    model = Gaussians(target.cpu(), args.gaussians, args.seed).to(target.device)
    optimizer = torch.optim.Adam(model.parameter_groups(args.rate))
    decay = LAST_RATE ** (1 / args.steps)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, decay)
    found, strip = Fit(), {round(part * args.steps) for part in STRIP}
    every = max(1, args.steps // 100)
    progress = tqdm(range(args.steps + 1), desc=name, unit="step", dynamic_ncols=True)
    for step in progress:
        drawn = model()
        with torch.no_grad():
            if step % every == 0 or step in strip:
                found.record(step, drawn, target)
                progress.set_postfix(ssim=f"{found.ssim[-1]:.4f}", psnr=f"{found.psnr[-1]:.2f}")
            if step in strip:
                found.frames[step] = drawn.cpu().clamp(0, 1)
        if step < args.steps:
            optimizer.zero_grad()
            loss(drawn[None], target[None]).backward()
            optimizer.step()
            schedule.step()
    return found


def draw_progress(path: Path, fits: dict[str, Fit], target: Tensor) -> None:
    """A row for each fit: the picture on its way, and the original."""
    across = len(next(iter(fits.values())).frames) + 1
    size = (2.0 * across, 2.15 * len(fits))
    with plots.figure_in(path, len(fits), across, size) as axes:
        for row, (name, found) in zip(axes, fits.items()):
            for place, (step, frame) in zip(row, found.frames.items()):
                i = found.steps.index(step)
                figures = f"SSIM {found.ssim[i]:.3f}, {found.psnr[i]:.1f} dB"
                plots.show(place, frame, f"step {step}\n{figures}")
            row[0].set_ylabel(name)
            plots.show(row[-1], target, "original\n")


def draw_curves(path: Path, fits: dict[str, Fit]) -> None:
    with plots.figure_in(path, 1, len(FIGURES), (9, 3.2)) as axes:
        for place, (figure, title) in zip(axes[0], FIGURES.items()):
            for (name, found), colour in zip(fits.items(), plots.COLOURS):
                values = getattr(found, figure)
                place.plot(found.steps, values, color=colour, label=f"{name}: {values[-1]:.4g}")
            place.set_title(title)
            place.set_xlabel("step")
            place.legend(frameon=False, loc="lower right")


def run(args: argparse.Namespace) -> None:
    target = photos.squared(photos.photo_or_file(args.picture), args.size).to(args.device)
    args.out.mkdir(parents=True, exist_ok=True)
    dssim = args.lambda_dssim
    losses: dict[str, Loss] = {
        "L1": F.l1_loss,
        f"{1 - dssim:g} L1 + {dssim:g} DSSIM": PhotometricLoss(lambda_dssim=dssim),
    }
    fits = {name: fit(target, loss, name, args) for name, loss in losses.items()}
    draw_progress(args.out / "progress.png", fits, target)
    draw_curves(args.out / "curves.png", fits)
    last = {name: {f: getattr(found, f)[-1] for f in FIGURES} for name, found in fits.items()}
    save_json(args.out / "figures.json", last)
    print(f"{'fitted with':<18}{'SSIM':>8}{'PSNR, dB':>10}")
    for name, row in last.items():
        print(f"{name:<18}{row['ssim']:>8.4f}{row['psnr']:>10.2f}")
    print(f"pictures and figures: {args.out}")


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    return exit_status("fit_image.py", lambda: run(args), photos.PhotoError)


if __name__ == "__main__":
    sys.exit(main())
