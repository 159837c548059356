"""Training with checkpoints: a run that is killed at any moment goes on with the same numbers."""

from __future__ import annotations

import csv
import io
import time
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from common.files import write_atomically
from torch import Tensor
from tqdm import tqdm

from ssim_fused import CVAELoss, ssim

from .data import Pictures
from .model import CVAE
from .processes import ALONE, Processes
from .schedule import one_cycle

TERMS = ("loss", "mse", "ssim_loss", "kl")
HELD_OUT = (*(f"held_out_{term}" for term in TERMS), "held_out_ssim")
COLUMNS = ("epoch", *TERMS, *HELD_OUT)
CHECKPOINT = "checkpoint.pt"
METRICS = "metrics.csv"


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
    """Why a run cannot go on, or begin."""


@dataclass
class Result:
    """A trained model, its metrics by epoch, and the time that it took."""

    model: CVAE
    rows: list[dict] = field(default_factory=list)
    loss_ms: list[float] = field(default_factory=list)  # of each step: loss, and its gradient
    step_ms: list[float] = field(default_factory=list)


def save_rows(path: Path, rows: list[dict]) -> None:
    def write(scratch: Path) -> None:
        with scratch.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)

    write_atomically(path, write)


def load_checkpoint(path: Path) -> dict:
    if not path.exists():
        raise ResumeError(f"{path} does not exist: there is nothing to resume")
    try:
        with zipfile.ZipFile(path) as file:  # torch.load does not look at the checksums
            damaged = file.testzip()
        state = None if damaged else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a spoiled file may be refused in any way
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ResumeError(f"{path} is not a checkpoint: {reason}") from None
    if damaged:
        raise ResumeError(f"{path} is damaged: {damaged} has another checksum")
    if not isinstance(state, dict) or not isinstance(state.get("settings"), dict):
        raise ResumeError(f"{path} is not a checkpoint of this script")
    return state


@torch.no_grad()
def held_out_scores(
    model: CVAE,
    images: Tensor,
    labels: Tensor,
    alpha: float,
    beta: float,
    processes: Processes = ALONE,
) -> dict[str, float]:
    """The terms and the SSIM of reconstructions (from mu) of pictures not trained on.

    The loss is that of both terms, whatever the run is trained with, so that runs can be compared.
    Each process looks at its share of the pictures.
    """
    measure = CVAELoss(return_terms=True)
    totals = torch.zeros(4, dtype=torch.float64)
    share, counted = processes.share(len(images))
    images_here, labels_here = images[share], labels[share]
    for begin in range(0, counted, 256):
        x, label = (part[begin : begin + 256] for part in (images_here, labels_here))
        mu, logvar = model.encode(x, label)
        recon = model.decode(mu, label)
        _, *terms = measure(recon, x, mu, logvar)
        totals += len(x) * torch.stack([*terms, ssim(recon, x)]).cpu().double()
    mse, ssim_loss, kl, similarity = (processes.total(totals) / len(images)).tolist()
    loss = mse + alpha * ssim_loss + beta * kl
    return dict(zip(HELD_OUT, (loss, mse, ssim_loss, kl, similarity)))


class Trainer:
    """One model, one loss, one folder for its checkpoints; the first process alone writes there."""

    def __init__(
        self,
        settings: Settings,
        criterion: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, ...]],
        pictures: Pictures,
        folder: Path,
        device: torch.device,
        processes: Processes = ALONE,
    ) -> None:
        self.settings, self.criterion = settings, criterion
        self.folder, self.device, self.processes = folder, device, processes
        self.train_set = pictures.train.to(device), pictures.train_labels.to(device)
        self.held_out = pictures.held_out.to(device), pictures.held_out_labels.to(device)
        self.steps = -(-len(pictures.train) // settings.batch_size)

        torch.manual_seed(settings.seed)  # of the first weights
        # order and noise come from here, on the CPU, whatever the device and in every process
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.model = CVAE(settings.size, len(pictures.classes), settings.latent).to(device)
        self.network = processes.joined(self.model)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=settings.lr)
        self.schedule = one_cycle(self.optimizer, settings.lr, settings.epochs * self.steps)
        half = settings.amp and device.type == "cuda"
        self.scaler = torch.amp.GradScaler(device.type, enabled=half)
        self.result = Result(self.model)
        self.epoch = 0

    # ---- checkpoints ----

    @property
    def checkpoint(self) -> Path:
        return self.folder / CHECKPOINT

    def start(self, overwrite: bool = False) -> None:
        """A checkpoint before the first step, so that a run can go on from any moment.

        What was trained in this folder before stays, unless it may be overwritten.
        """
        if not overwrite:
            self.processes.from_first(self._check_that_nothing_is_lost)
        if self.processes.first:
            self.folder.mkdir(parents=True, exist_ok=True)
        self.save_checkpoint()
        self.save_metrics()

    def resume(self) -> None:
        """From the last checkpoint; rows written after it are dropped."""
        state = self.processes.from_first(self._load)
        try:
            self.epoch = state["epoch"]
            for name, part in self._parts().items():
                part.load_state_dict(state[name])
            self.generator.set_state(state["generator"])
            self.result = Result(self.model, **state["result"])
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise ResumeError(f"{self.checkpoint} does not fit: {reason}") from None
        self.save_metrics()

    def wrote_checkpoint(self) -> bool:
        """Whether this call of torchrun wrote the checkpoint, before it started anew."""
        try:
            launch = self._load().get("launch")
        except ResumeError:
            return False
        return launch == self.processes.launch != ""

    def save_checkpoint(self) -> None:
        if not self.processes.first:
            return
        result = self.result
        state = {
            "settings": asdict(self.settings),
            "epoch": self.epoch,
            "launch": self.processes.launch,
            "generator": self.generator.get_state(),
            "result": dict(rows=result.rows, loss_ms=result.loss_ms, step_ms=result.step_ms),
            **{name: part.state_dict() for name, part in self._parts().items()},
        }
        # by way of memory: torch.save does not say when a disk is full
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomically(self.checkpoint, lambda scratch: scratch.write_bytes(buffer.getbuffer()))

    def save_metrics(self) -> None:
        if self.processes.first:
            save_rows(self.folder / METRICS, self.result.rows)

    def _check_that_nothing_is_lost(self) -> None:
        if not self.checkpoint.exists():
            return
        anew = "another --name leaves it alone, --overwrite begins anew"
        try:
            epochs = load_checkpoint(self.checkpoint).get("epoch")
        except ResumeError as error:
            raise ResumeError(f"{error}; {anew}") from None
        if epochs:
            raise ResumeError(
                f"{self.checkpoint} is trained to epoch {epochs}: --resume goes on, {anew}"
            )

    def _load(self) -> dict:
        state = load_checkpoint(self.checkpoint)
        self._check_settings(state["settings"])
        return state

    def _parts(self) -> dict:
        return dict(
            model=self.model,
            optimizer=self.optimizer,
            schedule=self.schedule,
            scaler=self.scaler,
        )

    def _check_settings(self, saved: dict) -> None:
        ours = asdict(self.settings)
        changed = [
            f"{name} was {saved.get(name)} and is {value}"
            for name, value in ours.items()
            if saved.get(name) != value
        ]
        if changed:
            raise ResumeError(
                f"{self.checkpoint} was made with other settings: {', '.join(changed)}"
            )

    # ---- training ----

    def train(self, checkpoint_every: int) -> Result:
        """From where the run stands to its last epoch."""
        last = self.settings.epochs
        with tqdm(
            total=last * self.steps,
            initial=self.epoch * self.steps,
            desc=self.settings.criterion,
            unit="step",
            dynamic_ncols=True,
            disable=not self.processes.first,
        ) as progress:
            while self.epoch < last:
                self.train_epoch(progress)
                if self.epoch % checkpoint_every == 0 or self.epoch == last:
                    self.save_checkpoint()
                self.save_metrics()
        return self.result

    def train_epoch(self, progress: tqdm) -> None:
        images, labels = self.train_set
        totals = torch.zeros(len(TERMS), dtype=torch.float64)
        order = torch.randperm(len(images), generator=self.generator)
        for chosen in order.split(self.settings.batch_size):
            share, counted = self.processes.share(len(chosen))
            noise = torch.randn((len(chosen), self.settings.latent), generator=self.generator)
            mine = chosen[share]
            weight = self.processes.weight(counted, len(chosen))
            found = self.step(images[mine], labels[mine], noise[share], weight)
            terms = torch.stack(found).cpu().double()
            totals += counted * terms
            shown = {name: f"{value:.4f}" for name, value in zip(TERMS, terms.tolist())}
            progress.set_postfix(shown, refresh=False)
            progress.update()
        self.epoch += 1
        means = dict(zip(TERMS, (self.processes.total(totals) / len(images)).tolist()))
        weights = self.settings.alpha, self.settings.beta
        scores = held_out_scores(self.model, *self.held_out, *weights, self.processes)
        self.result.rows.append({"epoch": self.epoch, **means, **scores})

    def step(self, x: Tensor, labels: Tensor, noise: Tensor, weight: float) -> list[Tensor]:
        """One optimizer step, the gradient times `weight`; the loss and its terms."""
        start = self._now()
        with self._autocast():
            outputs = self.network(x, labels, noise)
        # the loss and its gradient apart from the network's, so that their time can be told
        ends = [t.detach().requires_grad_() for t in outputs]
        before_loss = self._now()
        with self._autocast():
            recon, mu, logvar = ends
            loss, *terms = self.criterion(recon, x, mu, logvar)
        grads = torch.autograd.grad(self.scaler.scale(weight * loss), ends, allow_unused=True)
        after_loss = self._now()
        self.optimizer.zero_grad(set_to_none=True)
        used = [(t, grad) for t, grad in zip(outputs, grads) if grad is not None]
        torch.autograd.backward(*zip(*used))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        self.result.loss_ms.append(1e3 * (after_loss - before_loss))
        self.result.step_ms.append(1e3 * (self._now() - start))
        return [loss.detach(), *terms]

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, enabled=self.settings.amp)

    def _now(self) -> float:
        """Seconds, once the device has done what it was told."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        return time.perf_counter()
