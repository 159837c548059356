"""Train a small network to double the size of pictures: once with MSE, once with MSE and MS-SSIM.

python examples/super_resolution.py                       about four minutes
python examples/super_resolution.py --weight 0.5          MS-SSIM counts for more
python examples/super_resolution.py --steps 3000          longer, better

Both networks start from the same weights and see the same patches of pictures that scikit-image and
scikit-learn bring along; two of the pictures are held out. Results: runs/super_resolution/
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from common import photos, plots
from common.files import save_json
from common.options import at_least, default_device, multiple_of, parser_of, usable_device
from common.scripts import exit_status
from torch import Tensor, nn
from tqdm import tqdm

from ssim_fused import MSSSIMLoss, ms_ssim, psnr, ssim

ROOT = Path(__file__).resolve().parent.parent
HELD_OUT = ("chelsea", "flower")
# where to look in them: top, left, of a square of CROP pixels
CROPS = {"chelsea": (85, 150), "flower": (150, 250)}
CROP = 96
FIGURES: dict[str, tuple[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "psnr": ("PSNR, dB", psnr),
    "ssim": ("SSIM", ssim),
    "ms_ssim": ("MS-SSIM", ms_ssim),
}
BETAS = (0.0448, 0.2856, 0.3001, 0.2363)  # four of the five scales: patches are small
WEIGHTS = tuple(beta / sum(BETAS) for beta in BETAS)

Loss = Callable[[Tensor, Tensor], Tensor]


class Doubler(nn.Module):
    """Pictures (N, 3, h, w) to (N, 3, 2h, 2w): bicubic, and what a few convolutions add to it."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(width, width, 3, padding=1),
            )
            for _ in range(blocks)
        )
        self.tail = nn.Sequential(nn.Conv2d(width, 12, 3, padding=1), nn.PixelShuffle(2))
        nn.init.zeros_(self.tail[0].weight)  # it starts as bicubic
        nn.init.zeros_(self.tail[0].bias)

    def forward(self, small: Tensor) -> Tensor:
        features = self.head(small)
        for block in self.blocks:
            features = features + block(features)
        return bicubic(small, 2) + self.tail(features)


def bicubic(picture: Tensor, scale: float) -> Tensor:
    """(N, 3, H, W), enlarged, or reduced without aliasing."""
    return F.interpolate(picture, scale_factor=scale, mode="bicubic", antialias=scale < 1)


def halved(picture: Tensor) -> Tensor:
    return bicubic(picture, 0.5).clamp(0, 1)


def even(picture: Tensor) -> Tensor:
    """Without the last row or column where there is an odd number of them."""
    h, w = (side // 2 * 2 for side in picture.shape[-2:])
    return picture[..., :h, :w]


class Patches:
    """Random squares of pictures, turned and mirrored; the same ones for the same seed."""

    def __init__(self, pictures: list[Tensor], side: int, count: int, seed: int) -> None:
        self.pictures, self.side, self.count = pictures, side, count
        self.generator = torch.Generator().manual_seed(seed)
        areas = [float(p.shape[1] * p.shape[2]) for p in pictures]
        self.areas = torch.tensor(areas)

    def _below(self, end: int) -> int:
        return int(torch.randint(end, (), generator=self.generator))

    def draw(self) -> Tensor:
        """(count, 3, side, side)."""
        chosen = torch.multinomial(self.areas, self.count, True, generator=self.generator)
        patches = []
        for index in chosen.tolist():
            picture = self.pictures[index]
            top, left = (self._below(side - self.side + 1) for side in picture.shape[1:])
            patch = picture[:, top : top + self.side, left : left + self.side]
            patch = torch.rot90(patch, self._below(4), dims=(1, 2))
            patches.append(patch.flip(2) if self._below(2) else patch)
        return torch.stack(patches)


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = parser_of(__doc__)
    add = parser.add_argument
    add("--steps", type=at_least(1), default=600, help="of each training")
    add("--batch-size", type=at_least(1), default=8, help="patches a step")
    # four scales of an 11 x 11 window: 88 pixels, halved three times, are 11
    add("--patch", type=multiple_of(2, low=88), default=96, help="side of a patch; even")
    add("--width", type=at_least(1), default=24, help="channels of the network")
    add("--blocks", type=at_least(0), default=3, help="residual blocks of the network")
    add("--lr", type=at_least(0, float), default=2e-3, help="learning rate; falls to 0")
    add("--weight", type=at_least(0, float), default=0.1, help="of 1 - MS-SSIM beside MSE")
    add("--seed", type=at_least(0), default=0, help="of weights and patches")
    add("--device", type=usable_device, default=default_device(), help="cpu, cuda, ...")
    out = ROOT / "runs" / "super_resolution"
    add("--out", type=Path, default=out, metavar="DIR", help="results")
    args = parser.parse_args(argv)
    smallest = min(min(photos.photo(name).shape[1:]) for name in training_names())
    if args.patch > smallest:
        parser.error(f"--patch {args.patch} is more than the smallest picture's {smallest} pixels")
    return args


def training_names() -> list[str]:
    return [name for name in photos.NAMES if name not in HELD_OUT]


def losses_of(weight: float) -> dict[str, Loss]:
    similarity = MSSSIMLoss(betas=WEIGHTS)
    return {
        "MSE": F.mse_loss,
        "MSE + MS-SSIM": lambda x, y: F.mse_loss(x, y) + weight * similarity(x, y),
    }


def train(name: str, loss: Loss, args: argparse.Namespace) -> nn.Module:
    """The same weights at the start and the same patches, whatever the loss."""
    torch.manual_seed(args.seed)
    model = Doubler(args.width, args.blocks).to(args.device)
    pictures = [photos.photo(name) for name in training_names()]
    patches = Patches(pictures, args.patch, args.batch_size, args.seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.steps)
    for _ in (progress := tqdm(range(args.steps), desc=name, unit="step", dynamic_ncols=True)):
        target = patches.draw().to(args.device)
        optimizer.zero_grad()
        found = loss(model(halved(target)), target)
        found.backward()
        optimizer.step()
        schedule.step()
        progress.set_postfix(loss=f"{found.item():.5f}", refresh=False)
    return model


@torch.no_grad()
def enlarged(methods: dict[str, Callable[[Tensor], Tensor]], target: Tensor) -> dict[str, Tensor]:
    """What each method makes of the halved picture (1, 3, H, W)."""
    small = halved(target)
    return {name: method(small).clamp(0, 1) for name, method in methods.items()}


def figures_of(made: dict[str, Tensor], target: Tensor) -> dict[str, dict[str, float]]:
    return {
        name: {key: measure(x, target).item() for key, (_, measure) in FIGURES.items()}
        for name, x in made.items()
    }


def draw_crops(
    path: Path, made: dict[str, dict[str, Tensor]], originals: dict[str, Tensor]
) -> None:
    """A row for each held-out picture: a crop of what each method makes of it, and the original."""
    across = len(next(iter(made.values()))) + 1
    with plots.figure_in(path, len(made), across, (2.6 * across, 2.75 * len(made))) as axes:
        for row, (picture, by_method) in zip(axes, made.items()):
            top, left = CROPS[picture]
            target = originals[picture]
            for place, (name, x) in zip(row, {**by_method, "original": target}.items()):
                title = name
                if name != "original":
                    title += f"\nSSIM {ssim(x, target):.4f}, {psnr(x, target):.2f} dB"
                plots.show(place, x[0, :, top : top + CROP, left : left + CROP], title)


def who_is_ahead(mean: dict[str, dict[str, float]]) -> list[str]:
    """One sentence for each figure: the training that is ahead, and by how much."""
    (plain, a), (similar, b) = list(mean.items())[-2:]
    sentences = []
    for key, (title, _) in FIGURES.items():
        if not math.isfinite(b[key] - a[key]):
            sentences.append(f"{title}: no comparison, a training diverged")
            continue
        if a[key] == b[key]:
            sentences.append(f"{title}: neither is ahead")
            continue
        ahead, by = (similar, b[key] - a[key]) if b[key] > a[key] else (plain, a[key] - b[key])
        sentences.append(f"{title}: {ahead} is ahead by {by:.3g}")
    return sentences


def run(args: argparse.Namespace) -> None:
    args.out.mkdir(parents=True, exist_ok=True)
    methods: dict[str, Callable[[Tensor], Tensor]] = {"bicubic": lambda small: bicubic(small, 2)}
    methods |= {name: train(name, loss, args) for name, loss in losses_of(args.weight).items()}
    originals = {name: even(photos.photo(name))[None].to(args.device) for name in HELD_OUT}
    made = {name: enlarged(methods, target) for name, target in originals.items()}
    draw_crops(args.out / "crops.png", made, originals)
    by_picture = {name: figures_of(made[name], originals[name]) for name in HELD_OUT}
    mean = {
        method: {
            key: sum(by_picture[name][method][key] for name in HELD_OUT) / len(HELD_OUT)
            for key in FIGURES
        }
        for method in methods
    }
    save_json(args.out / "figures.json", {"mean": mean, **by_picture})
    print(f"{'mean of held out':<18}" + "".join(f"{title:>10}" for title, _ in FIGURES.values()))
    for method, row in mean.items():
        print(f"{method:<18}{row['psnr']:>10.2f}{row['ssim']:>10.4f}{row['ms_ssim']:>10.4f}")
    print(*who_is_ahead(mean), f"pictures and figures: {args.out}", sep="\n")


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    return exit_status("super_resolution.py", lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
