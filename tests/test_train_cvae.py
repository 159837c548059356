"""The training script from end to end: pictures, resuming, data, comparison."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import io
import json
import math
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import EXAMPLES

pytest.importorskip("imagecodecs")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")
pytest.importorskip("tifffile")
pytest.importorskip("tqdm")

import kills
import tifffile
from PIL import Image
from torch.overrides import TorchFunctionMode

SCRIPT = EXAMPLES / "train_cvae.py"
PICTURES = ["curves.png", "reconstructions.png", "samples.png", "sweep.png"]
SHORT = ["--epochs", "1", "--batch-size", "16"]


@pytest.fixture(scope="module")
def script(example):
    """The script as a module, for what needs no process of its own."""
    return example("train_cvae")


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    return kills.save_squares(tmp_path_factory.mktemp("pictures"))


@pytest.fixture
def train(script, tmp_path, call_main):
    """Trains within this process; what it printed to stdout and to stderr."""

    def run(*options, code=0):
        arguments = ["--runs", str(tmp_path), "--name", "test", *map(str, options)]
        return call_main(script.main, arguments, code)

    return run


def command(runs, *options):
    options = ["--runs", runs, "--name", "test", "--device", "cpu", *options]
    return [sys.executable, str(SCRIPT), *map(str, options)]


def metrics(runs):
    with (runs / "test" / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def wait_for_epochs(running, runs, epochs):
    end = time.monotonic() + 60
    while running.poll() is None and time.monotonic() < end:
        if (runs / "test" / "metrics.csv").exists() and len(metrics(runs)) >= epochs:
            return
        time.sleep(0.005)


def test_a_run_leaves_metrics_and_pictures(train, tmp_path):
    said = train("--epochs", 2)  # the default data
    rows = metrics(tmp_path)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert float(rows[1]["loss"]) < float(rows[0]["loss"])
    assert float(rows[1]["held_out_loss"]) < float(rows[0]["held_out_loss"])
    for row in rows:
        similarity = 1 - float(row["held_out_ssim_loss"])
        assert float(row["held_out_ssim"]) == pytest.approx(similarity, abs=1e-5)
        for of in ("", "held_out_"):
            loss, mse, ssim_loss, kl = (
                float(row[of + term]) for term in ("loss", "mse", "ssim_loss", "kl")
            )
            assert loss == pytest.approx(mse + 0.5 * ssim_loss + 6e-3 * kl, rel=1e-4)
    for name in PICTURES:
        with Image.open(tmp_path / "test" / name) as picture:
            assert min(picture.size) > 80
    assert not list(tmp_path.rglob("*.tmp"))
    assert all(term in said.err for term in ("loss=", "mse=", "ssim_loss=", "kl="))


@pytest.mark.parametrize("steps", range(1, 31))
def test_the_learning_rate_of_any_number_of_steps(script, steps):
    pixels, labels = torch.rand(5, 1, 8, 8), torch.zeros(5, dtype=torch.long)
    found = script.data.split(pixels, labels, ("one",))
    names = ("size", "epochs", "batch_size", "lr", "latent", "alpha", "beta", "seed", "amp")
    values = dict(zip(names, (8, steps, 4, 0.5, 1, 0.0, 0.0, 0, False)))
    settings = script.Settings(criterion="", data="", **values)
    trainer = script.Trainer(settings, None, found, Path(), torch.device("cpu"))
    rates = []
    for _ in range(steps):
        rates += trainer.schedule.get_last_lr()
        trainer.optimizer.step()
        trainer.schedule.step()
    top = rates.index(max(rates))
    assert 0 < min(rates) <= max(rates) <= 0.5
    assert rates == sorted(rates[:top]) + sorted(rates[top:], reverse=True)
    assert top <= 0.1 * steps


def test_rows_after_the_last_checkpoint_are_dropped(script, tmp_path, squares, monkeypatch):
    options = ["--runs", str(tmp_path), "--name", "test", "--data", str(squares)]
    options += ["--epochs", "4", "--batch-size", "12", "--checkpoint-every", "2"]  # 8 steps
    step = script.Trainer.step

    def interrupt_at(number):
        steps = iter(range(1, number + 1))

        def interrupted(*batch):
            if next(steps) == number:
                raise KeyboardInterrupt
            return step(*batch)

        monkeypatch.setattr(script.Trainer, "step", interrupted)

    interrupt_at(7)  # in the fourth epoch
    assert script.main(options) == 130
    before = metrics(tmp_path)
    assert len(before) == 3
    interrupt_at(1)
    assert script.main([*options, "--resume"]) == 130
    assert metrics(tmp_path) == before[:2]
    monkeypatch.undo()
    assert script.main([*options, "--resume"]) == 0
    assert metrics(tmp_path)[:3] == before


def test_ctrl_c_ends_cleanly(tmp_path, squares):
    running = subprocess.Popen(
        command(tmp_path, "--data", squares, "--epochs", "5000", "--batch-size", "4"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # a job in the background of a shell ignores Ctrl-C, and so would its children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    wait_for_epochs(running, tmp_path, 1)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "--resume goes on" in said
    assert "Traceback" not in said
    saved = torch.load(tmp_path / "test" / "checkpoint.pt", weights_only=True)
    assert saved["epoch"] >= 1


def test_ctrl_c_before_the_first_checkpoint(script, train, monkeypatch):
    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "load", interrupted)
    assert train(code=130).err == "\nstopped before the first checkpoint\n"


class Conversions(TorchFunctionMode):
    """The calls of Tensor.cpu and Tensor.double, by name and in order."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (torch.Tensor.cpu, torch.Tensor.double):
            self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


def test_float64_is_of_the_cpu_alone(train, squares):
    """MPS lacks it."""
    with Conversions() as calls:
        train("--data", squares, *SHORT)
    before = [name for name, after in zip(calls.names, calls.names[1:]) if after == "double"]
    assert before == 3 * ["cpu"]  # two steps, and the held-out pictures


@pytest.mark.parametrize("name", ["cpu", "cuda:1", "mps"])
def test_times_are_of_work_that_is_done(script, monkeypatch, name):
    waited = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    script.Trainer._now(SimpleNamespace(device=torch.device(name)))
    assert waited == ([] if name == "cpu" else [torch.device(name)])


def test_resume_explains_what_is_wrong(train, tmp_path, squares):
    assert "there is nothing to resume" in train("--data", squares, "--resume", code=2).err
    train("--data", squares, *SHORT)
    said = train("--data", squares, *SHORT, "--latent", 3, "--resume", code=2)
    assert "latent was 10 and is 3" in said.err
    said = train("--batch-size", 16, "--epochs", 1, "--resume", code=2)
    assert "data was 24 pictures in 2 classes" in said.err


def test_what_is_trained_is_overwritten_only_when_asked(
    script, train, tmp_path, squares, monkeypatch
):
    def interrupted(*batch):
        raise KeyboardInterrupt

    options = ["--data", squares, *SHORT]
    with monkeypatch.context() as patch:
        patch.setattr(script.Trainer, "step", interrupted)
        train(*options, code=130)
    train(*options)  # nothing was trained yet
    folder = tmp_path / "test"
    kept = {file: file.read_bytes() for file in folder.iterdir()}
    said = train(*options, "--seed", 1, code=2).err
    assert "checkpoint.pt is trained to epoch 1: --resume goes on, another --name" in said
    assert "--overwrite begins anew" in said
    assert {file: file.read_bytes() for file in folder.iterdir()} == kept

    monkeypatch.setattr(script.Trainer, "step", interrupted)
    train(*options, "--overwrite", code=130)
    assert metrics(tmp_path) == []
    assert {file.name for file in folder.iterdir()} == {"checkpoint.pt", "metrics.csv"}
    (folder / "checkpoint.pt").write_bytes(b"no checkpoint")
    said = train(*options, code=2).err
    assert "is not a checkpoint" in said
    assert "--overwrite begins anew" in said
    assert "not allowed with" in train(*options, "--resume", "--overwrite", code=2).err


@pytest.fixture
def torchrun(monkeypatch):
    """Calls of torchrun with one process, in this one: each has a store, which restarts share."""
    stores = []  # each is served as long as it is here

    def call(restarts=0, store=None):
        if store is None:
            store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
        stores.append(store)
        told = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_ADDR": "localhost"}
        told |= {"MASTER_PORT": store.port, "TORCHELASTIC_USE_AGENT_STORE": True}
        for name, value in (told | {"TORCHELASTIC_RESTART_COUNT": restarts}).items():
            monkeypatch.setenv(name, str(value))
        return store

    return call


def test_a_restart_goes_on_from_its_own_checkpoint_alone(
    script, train, tmp_path, squares, monkeypatch, torchrun
):
    steps = iter(range(1000))

    def interrupted(*batch):
        if next(steps) == 2:  # in the second epoch
            raise KeyboardInterrupt
        return step(*batch)

    step = script.Trainer.step
    options = ["--data", squares, "--batch-size", 16, "--epochs", 2]
    torchrun()
    train(*options)
    store = torchrun()
    for restarts in (0, 1):
        torchrun(restarts, store)
        assert "is trained to epoch 2" in train(*options, code=2).err
    before = metrics(tmp_path)

    monkeypatch.setattr(script.Trainer, "step", interrupted)
    store = torchrun(restarts=1)  # as if the first attempt had died before its first checkpoint
    train(*options, "--overwrite", code=130)
    assert len(metrics(tmp_path)) == 1
    torchrun(2, store)
    assert "4/4" in train(*options, "--overwrite").err
    assert next(steps) == 5  # one epoch again, and not the first
    assert metrics(tmp_path) == before


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": ""}, "WORLD_SIZE must be a number, got ''"),
        ({"WORLD_SIZE": "0"}, "no RANK 0 where WORLD_SIZE is 0"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "no RANK 2 where WORLD_SIZE is 2"),
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "x"}, "LOCAL_RANK must be a number, got 'x'"),
    ],
)
def test_a_place_among_processes_that_cannot_be(train, monkeypatch, torchrun, environment, message):
    torchrun()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert message in train(code=2).err


def test_a_fingerprint_tells_all_parts_of_the_data(script):
    found = script.data.digits(8)
    other = dict(
        train=1 - found.train,
        train_labels=found.train_labels.flip(0),
        held_out=1 - found.held_out,
        held_out_labels=found.held_out_labels.flip(0),
        classes=found.classes[::-1],
    )
    changed = [dataclasses.replace(found, **{name: part}) for name, part in other.items()]
    fingerprints = {pictures.fingerprint() for pictures in [found, *changed]}
    assert len(fingerprints) == len(other) + 1
    assert found.fingerprint() == script.data.digits(8).fingerprint()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_keeps_the_last_checkpoint(train, tmp_path, squares):
    train("--data", squares, *SHORT)
    checkpoint = tmp_path / "test" / "checkpoint.pt"
    kept = checkpoint.read_bytes()
    scratch = checkpoint.with_name("checkpoint.pt.tmp")
    scratch.symlink_to("/dev/full")
    said = train("--data", squares, *SHORT, "--overwrite", code=2)
    assert f"No space left on device: '{checkpoint}'" in said.err
    assert checkpoint.read_bytes() == kept
    assert not scratch.is_symlink()
    train("--data", squares, *SHORT, "--resume")


class Hostile:
    """Makes a file where a pickle of it is loaded."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def test_a_spoiled_or_hostile_checkpoint_is_refused(train, tmp_path, squares):
    def resume(code):
        return train("--data", squares, *SHORT, "--resume", code=code).err

    train("--data", squares, *SHORT)
    checkpoint = tmp_path / "test" / "checkpoint.pt"
    good = checkpoint.read_bytes()
    middle = len(good) // 2
    for spoiled in (b"", b"no checkpoint", good[:middle], good[middle:]):
        checkpoint.write_bytes(spoiled)
        assert f"{checkpoint} is not a checkpoint" in resume(2)
    checkpoint.write_bytes(good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :])
    assert f"{checkpoint} is damaged" in resume(2)

    state = torch.load(io.BytesIO(good), weights_only=True)
    for other in ([1, 2], {"settings": 3}, {}):
        torch.save(other, checkpoint)
        assert f"{checkpoint} is not a checkpoint of this script" in resume(2)
    for name, part in (("model", {}), ("model", 3), ("generator", torch.zeros(3)), ("result", 5)):
        torch.save(state | {name: part}, checkpoint)
        assert f"{checkpoint} does not fit" in resume(2)
    torch.save({name: part for name, part in state.items() if name != "epoch"}, checkpoint)
    assert f"{checkpoint} does not fit: KeyError: 'epoch'" in resume(2)
    torch.save(state | {"epoch": Hostile(tmp_path / "executed")}, checkpoint)
    assert f"{checkpoint} is not a checkpoint" in resume(2)
    assert not (tmp_path / "executed").exists()
    checkpoint.write_bytes(good)
    resume(0)


def test_bad_data_is_explained(train, tmp_path):
    folder = tmp_path / "pictures"
    options = ["--data", folder]
    assert "is not a folder" in train(*options, code=2).err
    folder.mkdir()
    assert "holds no folders" in train(*options, code=2).err
    (folder / "class").mkdir()
    assert "holds no pictures" in train(*options, code=2).err
    Image.new("L", (8, 8)).save(folder / "class" / "a.png")
    assert "too few pictures" in train(*options, code=2).err
    (folder / "class" / "b.png").write_bytes(b"no picture")
    said = train(*options, code=2).err
    assert "b.png cannot be read as a picture" in said
    assert len(said.splitlines()) == 1


LEVELS = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)


def of_bits(bits):
    return (LEVELS * (2**bits - 1)).round().astype(np.uint8 if bits == 8 else np.uint16)


def black_seen_through(channels):
    """Black on transparent ground: white where nothing of it is seen."""
    pixels = np.zeros((8, 8, channels), np.uint8)
    pixels[..., -1] = 255 - of_bits(8)
    return Image.fromarray(pixels)


def save_palette(path):
    """Two colours that are both black, the second one transparent; the lower half has it."""
    picture = Image.new("P", (8, 8))
    picture.paste(1, (0, 4, 8, 8))
    picture.putpalette([0] * 6)
    picture.save(path, transparency=1)


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("8.png", lambda path: Image.fromarray(of_bits(8)).save(path)),
        ("16.png", lambda path: Image.fromarray(of_bits(16)).save(path)),
        ("16.pgm", lambda path: Image.fromarray(of_bits(16)).save(path)),
        ("16.tif", lambda path: tifffile.imwrite(path, of_bits(16))),
        ("16_big.tif", lambda path: tifffile.imwrite(path, of_bits(16), byteorder=">")),
        ("12.tif", lambda path: tifffile.imwrite(path, of_bits(12), bitspersample=12)),
        ("float.tif", lambda path: Image.fromarray(LEVELS).save(path)),
        ("rgba.png", lambda path: black_seen_through(4).save(path)),
        ("la.png", lambda path: black_seen_through(2).save(path)),
        ("palette.png", save_palette),
    ],
)
def test_pictures_of_all_kinds_are_what_they_show(script, tmp_path, name, save):
    save(tmp_path / name)
    expected = np.repeat([0.0, 1.0], 32).reshape(8, 8) if name == "palette.png" else LEVELS
    found = script.data.read_grey(tmp_path / name, 8)
    np.testing.assert_allclose(found, expected, atol=1.01 / 255)


@pytest.mark.parametrize(
    ("numbers", "why"),
    [
        (255 * LEVELS, r"its numbers \(mode F\) are 0 to 255, not 0 to 1"),
        (LEVELS - 0.5, r"its numbers \(mode F\) are -0.5 to 0.5, not 0 to 1"),
        (np.full((8, 8), np.nan, np.float32), r"its numbers \(mode F\) are nan to nan"),
        (of_bits(8).astype(np.int32), r"the range of its numbers \(mode I\) is not known"),
    ],
)
def test_pictures_of_an_unknown_range_are_refused(script, tmp_path, numbers, why):
    Image.fromarray(numbers).save(tmp_path / "a.tif")
    with pytest.raises(script.data.DataError, match=rf"a\.tif cannot be read as a picture: {why}"):
        script.data.read_grey(tmp_path / "a.tif", 8)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--epochs", "0"], "must be at least 1"),
        (["--epochs", "many"], "invalid int value"),
        (["--size", "30"], "multiple of 8"),
        (["--beta", "nan"], "must be at least 0"),
        (["--seed", "-1"], "must be at least 0"),
        (["--device", "abacus"], "cannot use 'abacus'"),
        (["--dataset", "cifar"], "invalid choice"),
    ],
)
def test_bad_options_are_explained(train, options, why):
    assert why in train(*options, code=2).err


def test_a_runs_folder_that_cannot_be_made(script, tmp_path, squares, capsys):
    (tmp_path / "file").touch()
    assert script.main(["--runs", str(tmp_path / "file"), "--data", str(squares)]) == 2
    assert capsys.readouterr().err.startswith("train_cvae.py: ")


def test_compare_writes_a_table_and_plots(train, tmp_path, squares):
    said = train("--data", squares, *SHORT, "--compare")
    folder = tmp_path / "test"
    table = json.loads((folder / "comparison.json").read_text())
    assert list(table) == ["ssim_fused", "MSE only", "usual code"]
    assert all(0 < row["loss_ms"] < row["step_ms"] for row in table.values())
    # the usual code is the same loss, so it trains the same model
    ours, usual = table["ssim_fused"], table["usual code"]
    assert ours["held_out_mse"] == pytest.approx(usual["held_out_mse"], rel=1e-2)
    assert "held-out SSIM" in said.out
    for name in ("comparison.png", "reconstructions_compared.png"):
        assert (folder / name).stat().st_size > 1000
    # a finished comparison is shown again, times included
    train("--data", squares, *SHORT, "--compare", "--resume")
    assert json.loads((folder / "comparison.json").read_text()) == table


def test_a_comparison_of_runs_that_diverged(train, tmp_path, squares):
    train("--data", squares, *SHORT, "--epochs", 2, "--lr", 1e6, "--compare")
    text = (tmp_path / "test" / "comparison.json").read_text()
    table = json.loads(text, parse_constant=pytest.fail)
    assert table["ssim_fused"]["held_out_ssim"] is None
    assert (tmp_path / "test" / "comparison.png").stat().st_size > 1000


def test_an_overwritten_run_leaves_no_other_criteria(train, tmp_path, squares):
    options = ["--data", squares, *SHORT]
    train(*options, "--compare")
    train(*options, "--epochs", 2, "--overwrite")
    names = {file.name for file in (tmp_path / "test").rglob("*.*")}
    assert names == {"checkpoint.pt", "metrics.csv", *PICTURES}
    train(*options, "--epochs", 2, "--compare", "--resume")


@pytest.mark.skipif(sys.platform == "darwin", reason="names are UTF-8 there")
@pytest.mark.parametrize("name", ["from_$5_to_$10", "caf\udce9"])  # one has a byte alone
def test_folders_of_any_name(train, tmp_path, name):
    folder = kills.save_squares(tmp_path / "pictures")
    (folder / "dark").rename(folder / name)
    train("--data", folder, *SHORT)
    assert (tmp_path / "test" / "samples.png").exists()


def test_files_that_begin_with_a_dot_are_no_pictures(script, tmp_path):
    folder = kills.save_squares(tmp_path / "pictures")
    (folder / "dark" / "._0.png").write_bytes(b"macOS leaves such")
    assert len(script.data.folder(folder, 8).train) == 24


def test_without_the_ssim_term(train, tmp_path, squares):
    train("--data", squares, *SHORT, "--alpha", 0)
    (row,) = metrics(tmp_path)
    assert float(row["ssim_loss"]) == 0 < float(row["held_out_ssim_loss"])


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_mixed_precision(train, tmp_path, squares, device):
    train("--data", squares, *SHORT, "--amp", "--device", device)
    (row,) = metrics(tmp_path)
    assert all(math.isfinite(float(value)) for value in row.values())


def test_a_missing_torchvision_is_explained(train, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert "needs torchvision" in train("--dataset", "mnist", code=2).err


def write_idx(path, array):
    """The file format of MNIST: a magic number, the sizes, the bytes; compressed."""
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    content = header + array.astype(np.uint8).tobytes()
    path.write_bytes(content)
    path.with_name(path.name + ".gz").write_bytes(gzip.compress(content))


@pytest.mark.parametrize(("dataset", "folder"), [("mnist", "MNIST"), ("fashion", "FashionMNIST")])
def test_torchvision_data_sets(script, train, tmp_path, dataset, folder):
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError) as error:  # RuntimeError: built for another torch
        pytest.skip(f"torchvision cannot be imported: {error}")
    raw = tmp_path / "data" / folder / "raw"
    raw.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (60, 28, 28))
    for part, images in (("train", pixels[:40]), ("t10k", pixels[40:])):
        write_idx(raw / f"{part}-images-idx3-ubyte", images)
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(len(images)) % 10)
    train("--dataset", dataset, "--download-to", tmp_path / "data", *SHORT)
    assert (tmp_path / "test" / "samples.png").exists()
    found = script.data.from_torchvision(dataset, tmp_path / "data", 32)
    expected = np.pad(pixels[:40, None] / 255, ((0, 0), (0, 0), (2, 2), (2, 2)))
    np.testing.assert_allclose(found.train.numpy(), expected, rtol=1e-6)
    assert found.held_out_labels.tolist() == list(range(10)) * 2
