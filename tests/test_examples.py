"""The examples from end to end with small settings: results, pictures, and what bad options say."""

from __future__ import annotations

import json
import math
import sys

import numpy as np
import pytest
import torch
from conftest import EXAMPLES

import ssim_fused

Image = pytest.importorskip("PIL.Image")
for needed in ("skimage", "sklearn", "matplotlib", "tqdm", "lightning"):
    pytest.importorskip(needed)

SMALL = {
    "fit_image": "--size 40 --gaussians 60 --steps 12",
    "super_resolution": "--steps 2 --batch-size 1 --patch 88 --width 4 --blocks 1",
    "lightning_cvae": "--size 8 --epochs 2 --batch-size 400 --backend eager",
}
NAMES = [*SMALL, "train_cvae"]


@pytest.fixture
def run(example, tmp_path, call_main):
    """Runs an example with its small settings; what it printed to stdout and to stderr."""

    def go(name, *options, code=0):
        arguments = [*SMALL[name].split(), "--out", str(tmp_path), *options]
        return call_main(example(name).main, arguments, code)

    return go


def assert_pictures(folder, names):
    for name in names:
        with Image.open(folder / name) as picture:
            assert min(picture.size) > 80
            assert len(picture.convert("L").getcolors()) > 10  # something is drawn


def by_hand(gaussians):
    """What a module draws, pixel by pixel from the textbook's density, nothing left out."""
    y, x = torch.meshgrid(
        torch.arange(gaussians.height), torch.arange(gaussians.width), indexing="ij"
    )
    drawn = torch.zeros(3, gaussians.height, gaussians.width, dtype=torch.float64)
    for centre, log_scale, angle, colour in zip(
        *(
            getattr(gaussians, name).detach().double()
            for name in ("centres", "log_scales", "angles", "colours")
        )
    ):
        turn = torch.tensor([[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]]).double()
        covariance = turn @ torch.diag((2 * log_scale).exp() + 0.1) @ turn.T
        offset = torch.stack((x - centre[0], y - centre[1]), dim=-1)
        power = torch.einsum("hwi,ij,hwj->hw", offset, covariance.inverse(), offset)
        drawn += colour[:, None, None] * torch.exp(-0.5 * power)
    return drawn


def test_gaussians_are_drawn_as_the_textbook_has_them(example):
    splats = example("splats")
    generator = torch.Generator().manual_seed(0)
    picture = torch.rand((3, 37, 70), generator=generator)  # tiles of several sizes
    model = splats.Gaussians(picture, 12, seed=0)
    with torch.no_grad():
        model.log_scales += 0.5 * torch.randn((12, 2), generator=generator)
    # each may lack what lies beyond its reach
    left_out = 12 * math.exp(-0.5 * splats.REACH**2)
    assert (model() - by_hand(model)).abs().max() < left_out
    assert (model() - by_hand(model)).abs().mean() < 0.1 * left_out
    assert model().std() > 0.05


def test_gradients_of_gaussians(example, monkeypatch):
    splats = example("splats")
    monkeypatch.setattr(splats, "REACH", 40.0)  # the cut is not differentiable
    picture = torch.rand((3, 9, 11), generator=torch.Generator().manual_seed(0))
    model = splats.Gaussians(picture, 3, seed=0).double()
    parameters = dict(model.named_parameters())

    def draw(*values):
        return torch.func.functional_call(model, dict(zip(parameters, values)), ())

    assert torch.autograd.gradcheck(draw, tuple(parameters.values()))


def test_fit_image(run, tmp_path):
    said = run("fit_image")
    assert_pictures(tmp_path, ["progress.png", "curves.png"])
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert list(figures) == ["L1", "0.8 L1 + 0.2 DSSIM"]
    for row in figures.values():
        assert f"{row['ssim']:.4f}" in said.out
        assert 0.3 < row["ssim"] < 1
    # twelve steps tell the losses apart already
    assert figures["0.8 L1 + 0.2 DSSIM"]["ssim"] > figures["L1"]["ssim"]


def test_fit_image_of_a_file(run, tmp_path):
    Image.new("L", (50, 60), 128).save(tmp_path / "mine.png")
    run("fit_image", "--picture", str(tmp_path / "mine.png"), "--steps", "1")
    (tmp_path / "mine.png").write_bytes(b"no picture")
    said = run("fit_image", "--picture", str(tmp_path / "mine.png"), code=2)
    assert "mine.png cannot be read as a picture" in said.err


@pytest.mark.parametrize("level", [0, 255])
def test_fit_image_of_one_colour(run, tmp_path, level):
    Image.new("RGB", (40, 40), (level,) * 3).save(tmp_path / "plain.png")
    run("fit_image", "--picture", str(tmp_path / "plain.png"), "--steps", "2")
    assert_pictures(tmp_path, ["progress.png", "curves.png"])
    figures = json.loads((tmp_path / "figures.json").read_text(), parse_constant=pytest.fail)
    assert level or figures["L1"]["psnr"] is None  # it is infinite


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (np.full((4, 4), 26214, np.uint16), 0.4),
        (np.array([[[0, 0, 0, 255], [0, 0, 0, 0]]], np.uint8), [[0, 1]]),  # on white
    ],
)
def test_files_are_what_they_show(example, tmp_path, pixels, expected):
    Image.fromarray(pixels).save(tmp_path / "mine.png")
    found = example("fit_image").photos.photo_or_file(str(tmp_path / "mine.png"))
    wanted = torch.tensor(expected).expand(3, *pixels.shape[:2]).float()
    torch.testing.assert_close(found, wanted)


def test_super_resolution(run, tmp_path):
    said = run("super_resolution")
    assert_pictures(tmp_path, ["crops.png"])
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert list(figures) == ["mean", "chelsea", "flower"]
    for method, row in figures["mean"].items():
        assert f"{row['psnr']:.2f}" in said.out
        for figure, value in row.items():
            halves = [figures[name][method][figure] for name in ("chelsea", "flower")]
            assert value == pytest.approx(sum(halves) / 2)
    assert figures["mean"]["bicubic"]["psnr"] > 30
    assert said.out.count("is ahead by") == 3


def test_who_is_ahead_is_said_as_it_is(example):
    rows = {
        "bicubic": dict(psnr=9.0, ssim=0.9, ms_ssim=0.9),
        "MSE": dict(psnr=2.0, ssim=0.5, ms_ssim=0.5),
        "both": dict(psnr=1.0, ssim=0.6, ms_ssim=0.75),
    }
    psnr, ssim, ms_ssim = example("super_resolution").who_is_ahead(rows)
    assert psnr == "PSNR, dB: MSE is ahead by 1"
    assert ssim == "SSIM: both is ahead by 0.1"
    assert ms_ssim == "MS-SSIM: both is ahead by 0.25"
    rows["both"] = dict(psnr=2.0, ssim=math.nan, ms_ssim=0.75)
    psnr, ssim, _ = example("super_resolution").who_is_ahead(rows)
    assert psnr == "PSNR, dB: neither is ahead"
    assert ssim == "SSIM: no comparison, a training diverged"


def test_both_trainings_see_the_same_patches(example):
    super_resolution = example("super_resolution")
    pictures = [torch.rand(3, 90, 100), torch.rand(3, 120, 90)]
    a, b = (super_resolution.Patches(pictures, 84, 3, seed=1) for _ in range(2))
    for _ in range(3):
        assert torch.equal(a.draw(), b.draw())
    assert not torch.equal(a.draw(), a.draw())


def test_lightning(run, example, tmp_path):
    said = run("lightning_cvae")
    assert_pictures(tmp_path, ["reconstructions.png", "samples.png", "curves.png"])
    module = example("lightning_cvae")
    model = module.LightningCVAE.load_from_checkpoint(tmp_path / "checkpoint.ckpt")
    # the metric is the mean over all held-out pictures, whatever the batches
    digits = module.data.digits(8)
    with torch.no_grad():
        mu, _ = model.model.encode(digits.held_out, digits.held_out_labels)
        made = model.model.decode(mu, digits.held_out_labels)
    expected = ssim_fused.ssim(made, digits.held_out)
    assert f"held-out SSIM {expected:.4f}" in said.out


def test_lightning_of_ten_steps(run, tmp_path):
    run("lightning_cvae", "--epochs", "10", "--batch-size", "2000")
    assert_pictures(tmp_path, ["curves.png"])


def test_lightning_leaves_apples_gpus_alone(example):
    assert example("lightning_cvae").arguments([]).accelerator in ("cpu", "cuda")  # not "auto"


def test_a_missing_lightning_is_explained(example, monkeypatch):
    monkeypatch.delitem(sys.modules, "lightning_cvae", raising=False)
    monkeypatch.setitem(sys.modules, "lightning", None)
    with pytest.raises(SystemExit, match="pip install lightning"):
        example("lightning_cvae")


def test_lightning_compiles_one_graph(example):
    module = example("lightning_cvae")
    model = module.LightningCVAE(8, 10, latent=3, backend="aot_eager")
    x, labels, noise = torch.rand(4, 1, 8, 8), torch.arange(4), torch.randn(4, 3)
    compiled, plain = (f(x, labels, noise) for f in (model.compiled, model._terms))
    for a, b in zip(compiled, plain):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        ("fit_image", ["--picture", "nothing.png"], "neither a file nor one of astronaut"),
        ("fit_image", ["--size", "4097"], "must be at most 4096, got 4097"),
        ("fit_image", ["--gaussians", "2000"], "more than the picture has pixels"),
        ("fit_image", ["--lambda-dssim", "1.5"], "must be at most 1, got 1.5"),
        ("fit_image", ["--lambda-dssim", "much"], "invalid float value"),
        ("fit_image", ["--device", "abacus"], "cannot use 'abacus'"),
        ("super_resolution", ["--patch", "89"], "must be a multiple of 2, got 89"),
        ("super_resolution", ["--patch", "80"], "must be at least 88, got 80"),
        ("super_resolution", ["--patch", "4000"], "smallest picture's 400 pixels"),
        ("super_resolution", ["--weight", "-1"], "must be at least 0"),
        ("lightning_cvae", ["--size", "12"], "must be a multiple of 8"),
        ("lightning_cvae", ["--backend", "cc"], "invalid choice: 'cc'"),
        ("lightning_cvae", ["--epochs", "0"], "must be at least 1"),
        ("lightning_cvae", ["--accelerator", "mps"], "Apple's GPUs have no float64"),
        ("lightning_cvae", ["--accelerator", "tpu"], "invalid choice: 'tpu'"),
    ],
)
def test_bad_options_are_explained(run, name, options, why):
    said = run(name, *options, code=2).err
    assert why in said
    assert "Traceback" not in said


@pytest.mark.parametrize("name", SMALL)
def test_results_that_cannot_be_written(run, tmp_path, name):
    (tmp_path / "file").touch()
    said = run(name, "--out", str(tmp_path / "file"), code=2)
    assert said.err.splitlines()[-1].startswith(f"{name}.py: ")


@pytest.mark.parametrize("name", NAMES)
def test_help_tells_how_to_start(example, capsys, name):
    with pytest.raises(SystemExit) as end:
        example(name).main(["--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert f"python examples/{name}.py" in said
    assert "(default: " in said


def test_help_tells_what_an_epoch_of_lightning_leaves_out(run, example):
    said = " ".join(run("lightning_cvae", "--help").out.split())
    assert "Each epoch leaves out what does not fill a batch" in said
    assert "each picture is seen" not in said
    batches, _ = example("lightning_cvae").loaders(example("lightning_cvae").data.digits(8), 1000)
    assert len(batches) == 1  # of 1,442 pictures


def test_notebook():
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(EXAMPLES / "tour.ipynb", as_version=4)
    kept = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(kept) == 10
    where = {"metadata": {"path": str(EXAMPLES)}}
    client = nbclient.NotebookClient(notebook, timeout=120, resources=where)
    shown = [{output.output_type for output in cell.outputs} for cell in kept]
    client.execute()  # raises where a cell does
    ran = [cell for cell in client.nb.cells if cell.cell_type == "code"]
    # committed with its results, and of the cells as they are
    assert [{output.output_type for output in cell.outputs} for cell in ran] == shown
    assert all(shown)
