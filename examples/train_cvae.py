"""Train a conditional VAE with ssim_fused's loss, and leave pictures of it in runs/NAME/.

python examples/train_cvae.py                       scikit-learn's digits, about a minute and a half
python examples/train_cvae.py --data DIR            one folder of pictures for each class
python examples/train_cvae.py --compare             beside MSE alone, and beside the usual SSIM code
python examples/train_cvae.py --name mine --resume  go on where a killed run stopped
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # for benchmarks.article

from cvae import data, pictures  # noqa: E402
from cvae.training import Result, ResumeError, Settings, Trainer, save_json  # noqa: E402

from benchmarks import article  # noqa: E402
from ssim_fused import CVAELoss  # noqa: E402

OURS, MSE_ONLY, ARTICLE = "ssim_fused", "MSE only", "usual code"
FOLDERS = {OURS: ".", MSE_ONLY: "mse_only", ARTICLE: "usual_code"}
WARM_UP = 5  # steps left out of the times


def at_least(low: float, kind: type = int):
    """For argparse: numbers from `low` on."""

    def convert(text: str):
        value = kind(text)
        if not low <= value < 2**63:
            raise argparse.ArgumentTypeError(f"must be at least {low}, got {text}")
        return value

    convert.__name__ = kind.__name__  # argparse says "invalid int value"
    return convert


def picture_size(text: str) -> int:
    size = at_least(8)(text)
    if size % 8:
        raise argparse.ArgumentTypeError(f"must be a multiple of 8, got {text}")
    return size


def usable_device(text: str) -> torch.device:
    try:
        return torch.empty(0, device=text).device
    except (RuntimeError, AssertionError) as error:  # AssertionError: a torch without CUDA
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(f"cannot use {text!r}: {reason}") from None


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--name", default="cvae", help="the run's folder in --runs")
    add("--runs", type=Path, default=ROOT / "runs", metavar="DIR")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--dataset", choices=["digits", "mnist", "fashion"], default="digits")
    source.add_argument("--data", type=Path, metavar="DIR", help="one folder of pictures a class")
    add("--download-to", type=Path, default=ROOT / "runs" / "data", metavar="DIR")
    add("--size", type=picture_size, default=32, help="of a picture; a multiple of 8")
    add("--epochs", type=at_least(1), default=60)
    add("--batch-size", type=at_least(1), default=64)
    add("--lr", type=at_least(0, float), default=4e-3)
    add("--latent", type=at_least(1), default=10)
    add("--alpha", type=at_least(0, float), default=0.5, help="weight of the SSIM loss")
    add("--beta", type=at_least(0, float), default=6e-3, help="weight of the KL divergence")
    add("--seed", type=at_least(0), default=0)
    add("--device", type=usable_device, default="cuda" if torch.cuda.is_available() else "cpu")
    add("--amp", action="store_true", help="mixed precision (torch.autocast)")
    add("--checkpoint-every", type=at_least(1), default=1, metavar="EPOCHS")
    add("--resume", action="store_true", help="go on from the last checkpoint")
    add("--compare", action="store_true", help="train with two other losses, too")
    return parser.parse_args(argv)


def load(args: argparse.Namespace) -> data.Pictures:
    if args.data is not None:
        return data.folder(args.data, args.size)
    if args.dataset == "digits":
        return data.digits(args.size)
    return data.from_torchvision(args.dataset, args.download_to, args.size)


class ArticleLoss(article.MSE_SSIM_KL_Loss):
    """The usual code, which does not tell its terms."""

    def forward(self, recon_x, raw_x, mu, logvar):
        loss = super().forward(recon_x, raw_x, mu, logvar)
        untold = loss.new_full((), math.nan)
        return loss, untold, untold, untold


def criterion_of(name: str, args: argparse.Namespace):
    if name == ARTICLE:
        return ArticleLoss(args.alpha, args.beta)
    return CVAELoss(args.alpha if name == OURS else 0, args.beta, return_terms=True)


def trainer_of(name: str, args: argparse.Namespace, found: data.Pictures) -> Trainer:
    """A trainer, ready to start or to go on."""
    settings = Settings(
        criterion=name,
        size=args.size,
        epochs=args.epochs,
        batch_size=args.batch_size,
        lr=args.lr,
        latent=args.latent,
        alpha=args.alpha,
        beta=args.beta,
        seed=args.seed,
        amp=args.amp,
        data=found.fingerprint(),
    )
    folder = args.runs / args.name / FOLDERS[name]
    trainer = Trainer(settings, criterion_of(name, args), found, folder, args.device)
    # a run may be resumed with --compare though it was started without
    if args.resume and (name == OURS or trainer.checkpoint.exists()):
        trainer.resume()
    else:
        trainer.start()
    return trainer


def summary(result: Result) -> dict[str, float]:
    """Medians over the steps; scores of the last epoch."""
    last = result.rows[-1]
    return {
        "loss_ms": statistics.median(result.loss_ms[WARM_UP:] or result.loss_ms),
        "step_ms": statistics.median(result.step_ms[WARM_UP:] or result.step_ms),
        "held_out_ssim": last["held_out_ssim"],
        "held_out_mse": last["held_out_mse"],
    }


def print_table(table: dict[str, dict[str, float]]) -> None:
    print(f"{'trained with':<14}{'loss, ms':>10}{'step, ms':>10}{'held-out SSIM':>15}{'MSE':>9}")
    for name, row in table.items():
        print(
            f"{name:<14}{row['loss_ms']:>10.2f}{row['step_ms']:>10.2f}"
            f"{row['held_out_ssim']:>15.4f}{row['held_out_mse']:>9.5f}"
        )


def leave_pictures(
    folder: Path, results: dict[str, Result], found: data.Pictures, seed: int
) -> None:
    models = {name: result.model for name, result in results.items()}
    ours = models[OURS]
    pictures.curves(folder / "curves.png", results[OURS].rows)
    pictures.reconstructions(folder / "reconstructions.png", {"reconstruction": ours}, found)
    pictures.samples(folder / "samples.png", ours, found.classes, seed)
    pictures.sweep(folder / "sweep.png", ours, found)
    if len(models) > 1:
        pictures.reconstructions(folder / "reconstructions_compared.png", models, found)


def leave_comparison(folder: Path, table: dict[str, dict[str, float]]) -> None:
    pictures.comparison(folder / "comparison.png", table)
    save_json(folder / "comparison.json", table)
    gain = table[OURS]["held_out_ssim"] - table[MSE_ONLY]["held_out_ssim"]
    times = table[ARTICLE]["loss_ms"] / table[OURS]["loss_ms"]
    print(f"held-out SSIM: {gain:+.4f} over MSE only, at the same weight of the KL divergence")
    print(f"time of the loss: the usual code takes {times:.0f} times ours")


def run(args: argparse.Namespace) -> None:
    found = load(args)
    names = FOLDERS if args.compare else [OURS]
    trainers = {name: trainer_of(name, args, found) for name in names}
    results = {name: trainer.train(args.checkpoint_every) for name, trainer in trainers.items()}
    folder = args.runs / args.name
    leave_pictures(folder, results, found, args.seed)
    table = {name: summary(result) for name, result in results.items()}
    print_table(table)
    if args.compare:
        leave_comparison(folder, table)
    print(f"pictures, metrics and checkpoint: {folder}")


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    try:
        run(args)
    except (data.DataError, ResumeError, OSError) as error:
        print(f"train_cvae.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nstopped; --name {args.name} --resume goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
