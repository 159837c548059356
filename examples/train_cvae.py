"""Train a conditional VAE with ssim_fused's loss, and leave pictures of it in runs/NAME/.

python examples/train_cvae.py                       scikit-learn's digits, about a minute and a half
python examples/train_cvae.py --data DIR            one folder of pictures for each class
python examples/train_cvae.py --compare             beside MSE alone, and beside the usual SSIM code
python examples/train_cvae.py --name mine --resume  go on where a killed run stopped
"""

from __future__ import annotations

import argparse
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


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--name", default="cvae", help="the run's folder in --runs")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--dataset", choices=["digits", "mnist", "fashion"], default="digits")
    source.add_argument("--data", type=Path, metavar="DIR", help="one folder of pictures a class")
    parser.add_argument("--download-to", type=Path, default=ROOT / "runs" / "data", metavar="DIR")
    parser.add_argument("--size", type=int, default=32, help="of a picture; a multiple of 8")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--latent", type=int, default=10)
    parser.add_argument("--alpha", type=float, default=0.5, help="weight of the SSIM loss")
    parser.add_argument("--beta", type=float, default=6e-3, help="weight of the KL divergence")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--amp", action="store_true", help="mixed precision (torch.autocast)")
    parser.add_argument("--checkpoint-every", type=int, default=1, metavar="EPOCHS")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--compare", action="store_true", help="train with two other losses, too")
    args = parser.parse_args(argv)
    for name in ("size", "epochs", "batch_size", "latent", "checkpoint_every"):
        if getattr(args, name) < 1:
            parser.error(
                f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}"
            )
    if args.size % 8:
        parser.error(f"--size must be a multiple of 8, got {args.size}")
    return args


def load(args: argparse.Namespace) -> data.Pictures:
    if args.data is not None:
        return data.folder(args.data, args.size)
    if args.dataset == "digits":
        return data.digits(args.size)
    return data.from_torchvision(args.dataset, args.download_to, args.size)


class ArticleLoss(article.MSE_SSIM_KL_Loss):
    """The usual code, with its terms told apart for the progress bar."""

    def forward(self, recon_x, raw_x, mu, logvar):
        loss = super().forward(recon_x, raw_x, mu, logvar)
        with torch.no_grad():
            nothing = torch.zeros_like(loss)
        return loss, nothing, nothing, nothing


def criterion_of(name: str, args: argparse.Namespace):
    if name == ARTICLE:
        return ArticleLoss(args.alpha, args.beta)
    return CVAELoss(args.alpha if name == OURS else 0, args.beta, return_terms=True)


def train(name: str, folder: Path, args: argparse.Namespace, found: data.Pictures) -> Result:
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
        data=str(args.data or args.dataset),
    )
    folder.mkdir(parents=True, exist_ok=True)
    device = torch.device(args.device)
    trainer = Trainer(settings, criterion_of(name, args), found, folder, device)
    if args.resume and (name == OURS or trainer.checkpoint.exists()):
        trainer.resume()
    return trainer.train(args.checkpoint_every)


def summary(result: Result) -> dict[str, float]:
    """Medians over the steps, the first ones (warm-up) left out; scores of the last epoch."""
    times = {
        "loss_ms": result.loss_ms[5:] or result.loss_ms or [float("nan")],
        "step_ms": result.step_ms[5:] or result.step_ms or [float("nan")],
    }
    last = result.rows[-1]
    return {
        **{name: statistics.median(values) for name, values in times.items()},
        "held_out_ssim": last["held_out_ssim"],
        "held_out_mse": last["held_out_mse"],
    }


def print_table(table: dict[str, dict[str, float]]) -> None:
    print(f"{'loss':<12}{'loss, ms':>10}{'step, ms':>10}{'held-out SSIM':>15}{'MSE':>9}")
    for name, row in table.items():
        print(
            f"{name:<12}{row['loss_ms']:>10.2f}{row['step_ms']:>10.2f}"
            f"{row['held_out_ssim']:>15.4f}{row['held_out_mse']:>9.5f}"
        )


def leave_pictures(
    folder: Path, results: dict[str, Result], found: data.Pictures, seed: int
) -> None:
    ours = results[OURS].model.eval()
    models = {name: result.model.eval() for name, result in results.items()}
    rows = {name: result.rows for name, result in results.items()}
    pictures.curves(folder / "curves.png", {OURS: rows[OURS]})
    pictures.reconstructions(folder / "reconstructions.png", {OURS: ours}, found)
    pictures.samples(folder / "samples.png", ours, found.classes, seed)
    pictures.sweep(folder / "sweep.png", ours, found)
    if len(results) > 1:
        pictures.reconstructions(folder / "reconstructions_compared.png", models, found)


def run(args: argparse.Namespace) -> None:
    found = load(args)
    folder = args.runs / args.name
    results = {OURS: train(OURS, folder, args, found)}
    if args.compare:
        results[MSE_ONLY] = train(MSE_ONLY, folder / "mse_only", args, found)
        results[ARTICLE] = train(ARTICLE, folder / "usual_code", args, found)
    leave_pictures(folder, results, found, args.seed)
    table = {name: summary(result) for name, result in results.items()}
    print_table(table)
    if args.compare:
        pictures.comparison(folder / "comparison.png", table)
        save_json(folder / "comparison.json", table)
        gain = table[OURS]["held_out_ssim"] - table[MSE_ONLY]["held_out_ssim"]
        faster = table[ARTICLE]["loss_ms"] / table[OURS]["loss_ms"]
        print(
            f"held-out SSIM {gain:+.4f} over MSE only; the loss {faster:.0f} times faster than the"
        )
        print("usual code, which gives the same model but for rounding")
    print(f"pictures, metrics and checkpoint: {folder}")


def main() -> int:
    args = arguments()
    try:
        run(args)
    except (data.DataError, ResumeError) as error:
        print(f"train_cvae.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nstopped; --name {args.name} --resume goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
