"""What the loss does to a VAE: `python -m benchmarks.vae_losses`, about ten minutes.

Trains examples/train_cvae.py with and without the SSIM loss, at two weights of the KL divergence,
from several seeds. Told of each: held-out reconstructions by SSIM, MSE and PSNR, and how many
pictures drawn for a class a classifier takes for that class, the classifier being trained on the
real pictures alone. docs/choosing.md has the table. A run that was cut short goes on where the code
is committed and as it was; a finished one is taken as it is. Otherwise they are trained again.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import torch

from examples.cvae import data
from examples.cvae.model import CVAE
from release import tables

from . import results

ROOT = Path(__file__).resolve().parent.parent
# name, --alpha (weight of the SSIM loss), --beta (weight of the KL divergence)
TRAINED = [
    ("MSE + 0.5 SSIM loss", 0.5, 6e-3),
    ("MSE", 0.0, 6e-3),
    ("MSE + 0.5 SSIM loss", 0.5, 6e-4),
    ("MSE", 0.0, 6e-4),
]
DRAWN = 100  # pictures for each class


class Judge:
    """A classifier of the real pictures."""

    def __init__(self, pictures: data.Pictures) -> None:
        from sklearn.svm import SVC

        self.model = SVC(gamma="scale").fit(pictures.train.flatten(1), pictures.train_labels)
        self.accuracy = self.model.score(pictures.held_out.flatten(1), pictures.held_out_labels)

    def recognised(self, model: CVAE) -> float:
        """The share of pictures drawn from the prior that are taken for their class."""
        generator = torch.Generator().manual_seed(0)
        labels = torch.arange(model.classes).repeat_interleave(DRAWN)
        z = torch.randn(len(labels), model.latent, generator=generator)
        with torch.no_grad():
            drawn = model.decode(z, labels)
        return float(self.model.score(drawn.flatten(1), labels))


def goes_on(folder: Path) -> bool:
    """Whether a run was begun by this very code; what else is in its folder is removed.

    Code that is not committed has no name by which it would be known again.
    """
    made = results.machine()
    stamp = json.dumps({"commit": made["commit"], "torch": made["torch"]})
    file = folder / "made_by.json"
    is_known = made["commit"] != "unknown" and not made["commit"].endswith("-dirty")
    if is_known and file.exists() and file.read_text() == stamp:
        return (folder / "checkpoint.pt").exists()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    file.write_text(stamp)
    return False


def train(folder: Path, alpha: float, beta: float, seed: int, epochs: int) -> dict[str, str]:
    """The last row of a run's metrics; a run of this code that was cut short goes on."""
    command = [sys.executable, str(ROOT / "examples/train_cvae.py"), "--runs", str(folder.parent)]
    command += ["--name", folder.name, "--alpha", str(alpha), "--beta", str(beta)]
    command += ["--seed", str(seed), "--epochs", str(epochs)]
    command += ["--resume"] if goes_on(folder) else []
    subprocess.run(command, check=True)
    return results.load(folder / "metrics.csv")[-1]


def measure(folder: Path, seeds: int, epochs: int) -> list[dict]:
    """One row a run."""
    pictures = data.digits(32)
    judge, rows = Judge(pictures), []
    for name, alpha, beta in TRAINED:
        for seed in range(seeds):
            run = folder / f"alpha{alpha:g}-beta{beta:g}-seed{seed}"
            last = train(run, alpha, beta, seed, epochs)
            state = torch.load(run / "checkpoint.pt", map_location="cpu", weights_only=True)
            model = CVAE(32, len(pictures.classes), state["settings"]["latent"])
            model.load_state_dict(state["model"])
            mse = float(last["held_out_mse"])
            row = {"trained_with": name, "alpha": alpha, "beta": beta, "seed": seed}
            row |= {"epochs": epochs, "held_out_ssim": float(last["held_out_ssim"])}
            row |= {"held_out_mse": mse, "held_out_psnr": -10 * math.log10(mse)}
            row |= {"held_out_kl": float(last["held_out_kl"])}
            row |= {"recognised": judge.recognised(model), "classifier": judge.accuracy}
            rows.append(row)
    return rows


def markdown(rows: list[dict]) -> str:
    """Means over the seeds, and where there are several, between which values they lie."""
    titles = ["trained with", "weight of KL", "held-out SSIM", "PSNR, dB", "KL divergence"]
    titles += ["samples recognised"]
    lines = [titles]
    for key in dict.fromkeys((row["trained_with"], row["beta"]) for row in rows):
        found = [row for row in rows if (row["trained_with"], row["beta"]) == key]

        def cell(column: str, form: str, found: list[dict] = found) -> str:
            values = [float(row[column]) for row in found]
            mean = f"{statistics.mean(values):{form}}"
            between = f" ({min(values):{form}} to {max(values):{form}})"
            return mean + between if len(values) > 1 else mean

        cells = [key[0], f"{float(key[1]):g}", cell("held_out_ssim", ".3f")]
        cells += [cell("held_out_psnr", ".1f"), cell("held_out_kl", ".1f")]
        lines.append([*cells, cell("recognised", ".1%")])
    return tables.markdown(lines)


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vae_losses", description=__doc__)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "vae_losses", metavar="DIR")
    parser.add_argument("--out", type=Path, default=results.RESULTS)
    args = parser.parse_args(argv)
    rows = measure(args.runs, args.seeds, args.epochs)
    path = results.save(args.out, results.name_for("vae_losses", parser, args), rows)
    print(markdown(rows), f"\nsaved in {path}", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
