"""Train the conditional VAE of train_cvae.py with Lightning: the loss and the metric as they are.

python examples/lightning_cvae.py                    scikit-learn's digits; compiling takes longest
python examples/lightning_cvae.py --backend eager    starts at once, needs no C++ compiler

Network and loss are one graph for torch.compile (fullgraph: it may not break). Each epoch leaves
out what does not fill a batch, other pictures each time. Results, metrics and checkpoint:
runs/lightning_cvae/. Needs Lightning: pip install lightning
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

try:
    import lightning
except ModuleNotFoundError as error:
    if error.name != "lightning":
        raise
    sys.exit("lightning_cvae.py needs Lightning: pip install lightning")

import torch
from common import plots
from common.options import default_device, parser_of
from common.scripts import exit_status
from cvae import data, pictures
from cvae.model import CVAE
from cvae.options import add_training
from cvae.schedule import one_cycle
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from ssim_fused import CVAELoss
from ssim_fused.metrics import StructuralSimilarity

ROOT = Path(__file__).resolve().parent.parent
TERMS = ("loss", "mse", "ssim_loss", "kl")


class LightningCVAE(lightning.LightningModule):
    """The network, its loss, and the SSIM of held-out pictures as a torchmetrics Metric."""

    def __init__(
        self,
        size: int,
        classes: int,
        latent: int = 10,
        lr: float = 4e-3,
        alpha: float = 0.5,
        beta: float = 6e-3,
        backend: str = "inductor",
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = CVAE(size, classes, latent)
        self.criterion = CVAELoss(alpha, beta, return_terms=True)
        self.held_out_ssim = StructuralSimilarity()
        self.compiled = torch.compile(self._terms, fullgraph=True, backend=backend)

    def _terms(self, x: Tensor, labels: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        recon, mu, logvar = self.model(x, labels, noise)
        return self.criterion(recon, x, mu, logvar)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        x, labels = batch
        noise = torch.randn(len(x), self.hparams.latent, device=self.device)
        terms = dict(zip(TERMS, self.compiled(x, labels, noise)))
        self.log_dict(terms, prog_bar=True, on_step=False, on_epoch=True, batch_size=len(x))
        return terms["loss"]

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        x, labels = batch
        mu, _ = self.model.encode(x, labels)
        self.held_out_ssim.update(self.model.decode(mu, labels), x)
        self.log("held_out_ssim", self.held_out_ssim, prog_bar=True)

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.Adam(self.parameters(), lr=self.hparams.lr)
        steps = self.trainer.estimated_stepping_batches
        schedule = one_cycle(optimizer, self.hparams.lr, steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def accelerator(text: str) -> str:
    if text == "mps":
        raise argparse.ArgumentTypeError("Apple's GPUs have no float64, which the metric needs")
    return text


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = parser_of(__doc__)
    add = parser.add_argument
    add_training(parser, epochs=30)
    backends = ["inductor", "aot_eager", "eager"]
    add("--backend", choices=backends, default="inductor", help="of torch.compile")
    add(
        "--accelerator",
        type=accelerator,
        choices=["cpu", "cuda"],
        default=default_device(),
        help="Lightning's",
    )
    out = ROOT / "runs" / "lightning_cvae"
    add("--out", type=Path, default=out, metavar="DIR", help="results")
    return parser.parse_args(argv)


def loaders(found: data.Pictures, batch_size: int) -> tuple[DataLoader, DataLoader]:
    """Training batches are all of one size, so that the graph is compiled once."""
    train = TensorDataset(found.train, found.train_labels)
    held_out = TensorDataset(found.held_out, found.held_out_labels)
    size = min(batch_size, len(train))
    return (
        DataLoader(train, size, shuffle=True, drop_last=True),
        DataLoader(held_out, 256),
    )


def draw_curves(path: Path, metrics: Path) -> None:
    """Training loss and held-out SSIM, from what Lightning has logged."""
    with metrics.open(newline="") as file:
        rows = list(csv.DictReader(file))
    panels = {"loss": "Training loss", "held_out_ssim": "Held-out SSIM"}
    with plots.figure_in(path, 1, 2, (9, 3)) as axes:
        for place, (column, title), colour in zip(axes[0], panels.items(), plots.COLOURS):
            points = [(int(r["epoch"]) + 1, float(r[column])) for r in rows if r.get(column)]
            place.plot(*zip(*points), color=colour)
            place.set_title(title)
            place.set_xlabel("epoch")


def run(args: argparse.Namespace) -> None:
    lightning.seed_everything(args.seed, verbose=False)
    found = data.digits(args.size)
    model = LightningCVAE(
        args.size, len(found.classes), args.latent, args.lr, args.alpha, args.beta, args.backend
    )
    args.out.mkdir(parents=True, exist_ok=True)
    trainer = lightning.Trainer(
        max_epochs=args.epochs,
        accelerator=args.accelerator,
        devices=1,
        logger=CSVLogger(args.out, name="", version=""),
        callbacks=[
            ModelCheckpoint(args.out, "checkpoint", enable_version_counter=False),
            TQDMProgressBar(leave=False),
        ],
        enable_model_summary=False,
        log_every_n_steps=1,
        num_sanity_val_steps=0,
    )
    trainer.fit(model, *loaders(found, args.batch_size))
    model.eval()
    pictures.reconstructions(
        args.out / "reconstructions.png", {"reconstruction": model.model}, found
    )
    pictures.samples(args.out / "samples.png", model.model, found.classes, args.seed)
    draw_curves(args.out / "curves.png", args.out / "metrics.csv")
    print(f"held-out SSIM {trainer.callback_metrics['held_out_ssim']:.4f}")
    print(f"pictures, metrics and checkpoint: {args.out}")


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    return exit_status("lightning_cvae.py", lambda: run(args), data.DataError)


if __name__ == "__main__":
    sys.exit(main())
