"""Train a conditional VAE with ssim_fused's loss, and leave pictures of it in runs/NAME/.

python examples/train_cvae.py                       scikit-learn's digits, about a minute and a half
python examples/train_cvae.py --data DIR            one folder of pictures for each class
python examples/train_cvae.py --compare             beside MSE alone, and beside the usual SSIM code
python examples/train_cvae.py --name mine --resume  go on where a killed run stopped
torchrun --nproc-per-node 2 examples/train_cvae.py  two processes; --max-restarts 3 before the
                                                    script, and a killed one is replaced
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Collection
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # for benchmarks.article

from common.files import save_json  # noqa: E402
from common.options import (  # noqa: E402
    at_least,
    default_device,
    parser_of,
    usable_device,
)
from common.scripts import exit_status  # noqa: E402
from cvae import data, pictures  # noqa: E402
from cvae.options import add_training  # noqa: E402
from cvae.processes import ProcessError, Processes, together  # noqa: E402
from cvae.training import CHECKPOINT, METRICS, Result, ResumeError, Settings, Trainer  # noqa: E402

from benchmarks import article  # noqa: E402
from ssim_fused import CVAELoss  # noqa: E402

OURS, MSE_ONLY, ARTICLE = "ssim_fused", "MSE only", "usual code"
FOLDERS = {OURS: ".", MSE_ONLY: "mse_only", ARTICLE: "usual_code"}
WARM_UP = 5  # steps left out of the times
# what a run that has ended leaves beside its checkpoint and metrics
LEFT = (
    *("curves.png", "reconstructions.png", "samples.png", "sweep.png"),
    *("reconstructions_compared.png", "comparison.png", "comparison.json"),
)


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = parser_of(__doc__)
    add = parser.add_argument
    add("--name", default="cvae", help="the run's folder in --runs")
    add("--runs", type=Path, default=ROOT / "runs", metavar="DIR", help="where results go")
    source = parser.add_mutually_exclusive_group()
    names = ["digits", "mnist", "fashion"]
    source.add_argument("--dataset", choices=names, default="digits", help="what to train on")
    source.add_argument("--data", type=Path, metavar="DIR", help="one folder of pictures a class")
    downloads = ROOT / "runs" / "data"
    add("--download-to", type=Path, default=downloads, metavar="DIR", help="where data sets go")
    add_training(parser, epochs=60)
    add("--device", type=usable_device, default=default_device(), help="cpu, cuda, ...")
    add("--amp", action="store_true", help="mixed precision (torch.autocast)")
    often = "a checkpoint after so many"
    add("--checkpoint-every", type=at_least(1), default=1, metavar="EPOCHS", help=often)
    before = parser.add_mutually_exclusive_group()  # what was trained under that name
    resume, overwrite = "go on from the last checkpoint", "begin anew, without what was trained"
    before.add_argument("--resume", action="store_true", help=resume)
    before.add_argument("--overwrite", action="store_true", help=overwrite)
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


def trainer_of(
    name: str, args: argparse.Namespace, found: data.Pictures, processes: Processes
) -> Trainer:
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
    device = processes.device(args.device)
    trainer = Trainer(settings, criterion_of(name, args), found, folder, device, processes)
    if goes_on(trainer, args.resume):
        trainer.resume()
    else:
        trainer.start(args.overwrite)
    return trainer


def goes_on(trainer: Trainer, asked: bool) -> bool:
    """Whether a run goes on from its checkpoint; the first process looks."""
    there = trainer.processes.from_first(trainer.checkpoint.exists)
    # a run may be resumed with --compare though it was started without
    if asked and (there or trainer.settings.criterion == OURS):
        return True
    return there and trainer.processes.from_first(trainer.wrote_checkpoint)


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
    save_json(folder / "comparison.json", table)
    pictures.comparison(folder / "comparison.png", table)
    gain = table[OURS]["held_out_ssim"] - table[MSE_ONLY]["held_out_ssim"]
    times = table[ARTICLE]["loss_ms"] / table[OURS]["loss_ms"]
    print(f"held-out SSIM: {gain:+.4f} over MSE only, at the same weight of the KL divergence")
    print(f"time of the loss: the usual code takes {times:.0f} times ours")


def remove_left(folder: Path, trained: Collection[str]) -> None:
    """What an earlier run left, but for the files of what is trained now."""
    others = [FOLDERS[name] for name in FOLDERS if name not in trained]
    beside = [f"{other}/{file}" for other in others for file in (CHECKPOINT, METRICS)]
    for name in (*LEFT, *beside):
        (folder / name).unlink(missing_ok=True)


def run(args: argparse.Namespace, processes: Processes) -> None:
    found = processes.in_turn(lambda: load(args))
    names = FOLDERS if args.compare else [OURS]
    trainers = {name: trainer_of(name, args, found, processes) for name in names}
    if args.overwrite and processes.first:
        remove_left(args.runs / args.name, names)
    results = {name: trainer.train(args.checkpoint_every) for name, trainer in trainers.items()}
    if processes.first:
        leave_all(args, found, results)


def leave_all(args: argparse.Namespace, found: data.Pictures, results: dict[str, Result]) -> None:
    folder = args.runs / args.name
    table = {name: summary(result) for name, result in results.items()}
    print_table(table)
    if args.compare:
        leave_comparison(folder, table)
    leave_pictures(folder, results, found, args.seed)
    print(f"pictures, metrics and checkpoint: {folder}")


def stopped(args: argparse.Namespace) -> str:
    """What is said after Ctrl-C."""
    if (args.runs / args.name / CHECKPOINT).exists():
        return f"stopped; --name {args.name} --resume goes on"
    return "stopped before the first checkpoint"


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)

    def train() -> None:
        with together(args.device) as processes:
            run(args, processes)

    refusals = (data.DataError, ResumeError, ProcessError)
    return exit_status("train_cvae.py", train, *refusals, stopped=lambda: stopped(args))


if __name__ == "__main__":
    sys.exit(main())
