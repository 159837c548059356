"""Training with checkpoints: a run that is killed at any moment goes on with the same numbers."""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ssim_fused import ssim

from .data import Pictures
from .model import CVAE

COLUMNS = ["epoch", "loss", "mse", "ssim", "kl", "held_out_ssim", "held_out_mse"]


@dataclass(frozen=True)
class Settings:
    """What decides the numbers of a run; a checkpoint goes on under the same ones alone."""

    criterion: str
    size: int
    epochs: int
    batch_size: int
    lr: float
    latent: int
    alpha: float
    beta: float
    seed: int
    amp: bool
    data: str


class ResumeError(Exception):
    """Why a run cannot go on."""


@dataclass
class Result:
    """A trained model, its metrics by epoch, and the time that it took."""

    model: CVAE
    rows: list[dict]
    loss_ms: list[float] = field(default_factory=list)  # of each step: loss, and its gradient
    step_ms: list[float] = field(default_factory=list)


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """The file is either the old one or the new one, whenever the program is killed."""
    scratch = path.with_suffix(".tmp")
    write(scratch)
    with scratch.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(scratch, path)


def save_rows(path: Path, rows: list[dict]) -> None:
    def write(scratch: Path) -> None:
        with scratch.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)

    write_atomically(path, write)


@torch.no_grad()
def held_out_scores(model: CVAE, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Mean SSIM and MSE of reconstructions (from mu) of pictures that training has not seen."""
    model.eval()
    total_ssim = total_mse = 0.0
    for x, label in zip(images.split(256), labels.split(256)):
        recon = model.decode(model.encode(x, label)[0], label)
        total_ssim += ssim(recon, x, reduction="image").sum().item()
        total_mse += (recon - x).square().mean(dim=(1, 2, 3)).sum().item()
    model.train()
    return {"held_out_ssim": total_ssim / len(images), "held_out_mse": total_mse / len(images)}


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Trainer:
    """One model, one loss, one folder for its checkpoints."""

    def __init__(
        self,
        settings: Settings,
        criterion: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, ...]],
        pictures: Pictures,
        folder: Path,
        device: torch.device,
    ) -> None:
        self.settings, self.criterion, self.folder, self.device = (
            settings,
            criterion,
            folder,
            device,
        )
        torch.manual_seed(settings.seed)
        classes = len(pictures.classes)
        self.model = CVAE(settings.size, classes, settings.latent).to(device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=settings.lr)
        # order and noise come from here, on the CPU, whatever the device
        self.generator = torch.Generator().manual_seed(settings.seed)
        half = settings.amp and device.type == "cuda"
        self.scaler = torch.amp.GradScaler(device.type, enabled=half)
        self.images, self.labels = (t.to(device) for t in (pictures.train, pictures.train_labels))
        self.held_out, self.held_out_labels = (
            t.to(device) for t in (pictures.held_out, pictures.held_out_labels)
        )
        self.steps = -(-len(self.images) // settings.batch_size)
        total = max(1, settings.epochs * self.steps)
        # a short rise, then a cosine down to a twentieth
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, settings.lr, total_steps=total, pct_start=0.1, final_div_factor=2
        )
        self.result = Result(self.model, [])
        self.epoch = 0

    # ---- checkpoints ----

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    def save(self) -> None:
        state = {
            "settings": asdict(self.settings),
            "epoch": self.epoch,
            "rows": self.result.rows,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "generator": self.generator.get_state(),
        }
        write_atomically(self.checkpoint, lambda scratch: torch.save(state, scratch))
        save_rows(self.folder / "metrics.csv", self.result.rows)

    def resume(self) -> None:
        if not self.checkpoint.exists():
            raise ResumeError(f"{self.checkpoint} does not exist: there is nothing to resume")
        state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        ours = asdict(self.settings)
        changed = {k: (v, ours.get(k)) for k, v in state["settings"].items() if v != ours.get(k)}
        if changed:
            said = ", ".join(f"{k} was {old} and is {new}" for k, (old, new) in changed.items())
            raise ResumeError(f"{self.checkpoint} was made with other settings: {said}")
        self.epoch = state["epoch"]
        self.result.rows = state["rows"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        self.generator.set_state(state["generator"])
        save_rows(self.folder / "metrics.csv", self.result.rows)

    # ---- training ----

    def step(self, x: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        """One optimizer step; the loss and its terms."""
        _synchronize(self.device)
        start = time.perf_counter()
        with torch.autocast(self.device.type, enabled=self.settings.amp):
            recon, mu, logvar = self.model(x, labels, self.generator)
        # the loss and its gradient apart from the network's, so that their time can be told
        ends = [t.detach().requires_grad_() for t in (recon, mu, logvar)]
        _synchronize(self.device)
        before_loss = time.perf_counter()
        with torch.autocast(self.device.type, enabled=self.settings.amp):
            loss, *terms = self.criterion(ends[0], x, *ends[1:])
        grads = torch.autograd.grad(self.scaler.scale(loss), ends, allow_unused=True)
        _synchronize(self.device)
        after_loss = time.perf_counter()
        self.optimizer.zero_grad(set_to_none=True)
        used = [(t, g) for t, g in zip((recon, mu, logvar), grads) if g is not None]
        torch.autograd.backward(*zip(*used))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        _synchronize(self.device)
        self.result.loss_ms.append(1e3 * (after_loss - before_loss))
        self.result.step_ms.append(1e3 * (time.perf_counter() - start))
        return loss, *terms

    def train_epoch(self, progress: tqdm) -> None:
        totals = torch.zeros(4, dtype=torch.float64)
        order = torch.randperm(len(self.images), generator=self.generator)
        for chosen in order.split(self.settings.batch_size):
            x, labels = self.images[chosen], self.labels[chosen]
            terms = torch.stack([t.detach().double().cpu() for t in self.step(x, labels)])
            totals += terms * len(chosen)
            loss, mse, ssim_loss, kl = (f"{term:.4f}" for term in terms.tolist())
            progress.set_postfix(loss=loss, mse=mse, ssim=ssim_loss, kl=kl, refresh=False)
            progress.update()
        self.epoch += 1
        means = dict(zip(COLUMNS[1:5], (totals / len(self.images)).tolist()))
        scores = held_out_scores(self.model, self.held_out, self.held_out_labels)
        self.result.rows.append({"epoch": self.epoch, **means, **scores})

    def train(self, checkpoint_every: int) -> Result:
        """From where the run stands to its last epoch."""
        total, done = self.settings.epochs * self.steps, self.epoch * self.steps
        name = self.settings.criterion
        with tqdm(
            total=total, initial=done, desc=name, unit="step", dynamic_ncols=True
        ) as progress:
            while self.epoch < self.settings.epochs:
                self.train_epoch(progress)
                if self.epoch % checkpoint_every == 0 or self.epoch == self.settings.epochs:
                    self.save()
        return self.result


def save_json(path: Path, content: dict) -> None:
    write_atomically(path, lambda scratch: scratch.write_text(json.dumps(content, indent=2) + "\n"))
