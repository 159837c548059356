"""The training script from end to end: pictures, resuming after SIGKILL, data, comparison."""

from __future__ import annotations

import csv
import gzip
import json
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "examples" / "train_cvae.py"
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
PICTURES = ["curves.png", "reconstructions.png", "samples.png", "sweep.png"]


def command(runs, *options, name="test"):
    options = ["--runs", runs, "--name", name, "--device", "cpu", *options]
    return [sys.executable, str(SCRIPT), *map(str, options)]


def train(runs, *options, name="test", fails=False):
    done = subprocess.run(command(runs, *options, name=name), capture_output=True, text=True)
    assert (done.returncode != 0) == fails, done.stderr[-3000:]
    return done


def metrics(folder):
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """A folder for each class: bright squares and dark ones."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for label, level in (("dark", 60), ("light", 200)):
        (folder / label).mkdir()
        for i in range(15):
            pixels = generator.normal(level, 10, (20, 24)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, faces):
    runs = tmp_path_factory.mktemp("runs")
    train(runs, "--data", faces, "--epochs", "6", "--batch-size", "4")
    return runs / "test"


def test_a_run_leaves_metrics_and_pictures(unbroken):
    rows = metrics(unbroken)
    assert [int(row["epoch"]) for row in rows] == list(range(1, 7))
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    from PIL import Image

    for name in PICTURES:
        with Image.open(unbroken / name) as picture:
            assert min(picture.size) > 80
    assert not list(unbroken.glob("*.tmp"))


def test_killed_and_resumed_gives_the_same_numbers(tmp_path, faces, unbroken):
    options = ["--data", faces, "--epochs", "6", "--batch-size", "4"]
    kills = 0
    for epochs in (1, 3):  # killed somewhere after these epochs were written
        resume = ["--resume"] if kills else []
        running = subprocess.Popen(
            command(tmp_path, *options, *resume),
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        file = tmp_path / "test" / "metrics.csv"
        end = time.monotonic() + 60
        while time.monotonic() < end and running.poll() is None:
            if file.exists() and len(metrics(tmp_path / "test")) >= epochs:
                break
            time.sleep(0.001)
        running.send_signal(signal.SIGKILL)
        running.wait()
        kills += running.returncode == -signal.SIGKILL
    assert kills, "the run was over before it could be killed"
    train(tmp_path, *options, "--resume")
    assert metrics(tmp_path / "test") == metrics(unbroken)
    ours, theirs = (
        torch.load(folder / "checkpoint.pt", weights_only=True)["model"]
        for folder in (tmp_path / "test", unbroken)
    )
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_resume_explains_what_is_wrong(tmp_path, faces):
    done = train(tmp_path, "--data", faces, "--resume", fails=True)
    assert "there is nothing to resume" in done.stderr
    train(tmp_path, "--data", faces, "--epochs", "1", "--batch-size", "16")
    done = train(tmp_path, "--data", faces, "--epochs", "2", "--resume", fails=True)
    assert "epochs was 1 and is 2" in done.stderr


def test_bad_data_is_explained(tmp_path):
    done = train(tmp_path, "--data", tmp_path / "nowhere", fails=True)
    assert "is not a folder" in done.stderr
    (tmp_path / "empty" / "class").mkdir(parents=True)
    done = train(tmp_path, "--data", tmp_path / "empty", fails=True)
    assert "holds no pictures" in done.stderr
    (tmp_path / "empty" / "class" / "a.png").write_bytes(b"no picture")
    done = train(tmp_path, "--data", tmp_path / "empty", fails=True)
    assert "cannot be read as a picture" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("option", [["--epochs", "0"], ["--size", "30"], ["--dataset", "cifar"]])
def test_bad_options(tmp_path, option):
    done = train(tmp_path, *option, fails=True)
    assert "error:" in done.stderr
    assert "Traceback" not in done.stderr


def test_compare_writes_a_table_and_a_plot(tmp_path, faces):
    done = train(tmp_path, "--data", faces, "--epochs", "1", "--batch-size", "16", "--compare")
    table = json.loads((tmp_path / "test" / "comparison.json").read_text())
    assert list(table) == ["ssim_fused", "MSE only", "usual code"]
    assert all(row["loss_ms"] > 0 for row in table.values())
    # the usual code is the same loss, so it trains the same model
    ours, usual = table["ssim_fused"], table["usual code"]
    assert ours["held_out_mse"] == pytest.approx(usual["held_out_mse"], rel=1e-2)
    assert "held-out SSIM" in done.stdout
    assert (tmp_path / "test" / "comparison.png").stat().st_size > 1000
    assert (tmp_path / "test" / "reconstructions_compared.png").exists()


def test_mixed_precision(tmp_path, faces):
    train(tmp_path, "--data", faces, "--epochs", "1", "--batch-size", "16", "--amp")
    assert all(np.isfinite(float(value)) for value in metrics(tmp_path / "test")[0].values())


def test_ctrl_c_ends_cleanly(tmp_path, faces):
    running = subprocess.Popen(
        command(tmp_path, "--data", faces, "--epochs", "500", "--batch-size", "4"),
        stderr=subprocess.PIPE,
        text=True,
        # a job in the background of a shell ignores Ctrl-C, and so would its children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    file = tmp_path / "test" / "metrics.csv"
    end = time.monotonic() + 60
    while time.monotonic() < end and not file.exists():
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "--resume goes on" in said
    assert "Traceback" not in said


def write_idx(path, array):
    """The file format of MNIST: a magic number, the sizes, the bytes; compressed."""
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    with gzip.open(path, "wb") as file:
        file.write(header + array.astype(np.uint8).tobytes())


@pytest.mark.parametrize(("dataset", "folder"), [("mnist", "MNIST"), ("fashion", "FashionMNIST")])
def test_torchvision_data_sets(tmp_path, dataset, folder):
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    raw = tmp_path / "data" / folder / "raw"
    raw.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for part, count in (("train", 40), ("t10k", 20)):
        images = generator.integers(0, 256, (count, 28, 28))
        for kind, array in (("images-idx3", images), ("labels-idx1", np.arange(count) % 10)):
            write_idx(raw / f"{part}-{kind}-ubyte.gz", array)
            with gzip.open(raw / f"{part}-{kind}-ubyte.gz") as file:
                (raw / f"{part}-{kind}-ubyte").write_bytes(file.read())
    options = ["--dataset", dataset, "--download-to", tmp_path / "data", "--epochs", "1"]
    train(tmp_path, *options)
    assert (tmp_path / "test" / "samples.png").exists()
