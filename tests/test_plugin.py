"""The pytest plugin, in test runs of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("imagecodecs")
pytest.importorskip("pyarrow")

from evaluation_tables import picture, save
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent

TESTS = """
import numpy as np
import pytest
from PIL import Image

first, second = np.load("first.npy"), np.load("second.npy")

def test_same(assert_images_similar):
    assert assert_images_similar(first, "first.npy") == 1
    assert assert_images_similar(Image.fromarray(first), first, at_least=1) == 1

@pytest.mark.parametrize("name", ["a/b c"])
def test_other(assert_images_similar, name):
    assert assert_images_similar(first, second, at_least=0.1) < 0.98
    with pytest.raises(pytest.fail.Exception):
        assert_images_similar(first, second)
    assert_images_similar(first, second)

def test_size(assert_images_similar):
    assert_images_similar(first, second[1:])

def test_missing(assert_images_similar):
    assert_images_similar("no.png", second)

def test_closed(assert_images_similar):
    image = Image.new("L", (8, 8))
    image.close()
    assert_images_similar(first, image)

def test_wrong_settings(assert_images_similar):
    with pytest.raises(ValueError, match="at_least must be at most 1, as SSIM is, got 98"):
        assert_images_similar(first, first, at_least=98)

def test_range(assert_images_similar):
    assert_images_similar(first / 1.0, second / 1.0)
"""

NAMES = """
import numpy as np
import pytest

names = ["a/b", "a_b", "a b", "x" * 300, "x" * 299 + "y", "\u2603" * 200]

@pytest.mark.parametrize("name", range(6), ids=names)
def test_other(assert_images_similar, name):
    assert_images_similar(np.zeros((20, 20), np.uint8), np.full((20, 20), 255, np.uint8))
"""

PALETTES = """
from PIL import Image

def bars(palette, transparency=None):
    image = Image.new("P", (24, 24))
    image.putdata([column // 8 % 2 for _ in range(24) for column in range(24)])
    image.putpalette(palette)
    if transparency is not None:
        image.info["transparency"] = transparency
    return image

dark, light = (0, 0, 0), (255, 255, 255)

def test_same(assert_images_similar):
    assert assert_images_similar(bars(dark + light), bars(dark + light).convert("RGB")) == 1
    bits = bars(dark + light).convert("1")
    assert assert_images_similar(bits, bits.convert("L")) == 1

def test_inverse(assert_images_similar):
    assert_images_similar(bars(dark + light), bars(light + dark))

def test_transparent(assert_images_similar):
    assert_images_similar(bars(dark + light, 0), bars(dark + light, 1))

def test_kind(assert_images_similar):
    assert_images_similar(bars(dark + light).convert("I"), bars(dark + light))
"""


def run(folder, *options, tests=TESTS):
    """pytest on such tests with this plugin alone."""
    (folder / "test_it.py").write_text(tests)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "pytest_ssim_fused", *options, "test_it.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
    )


def test_pass_fail_and_the_picture_of_a_failure(tmp_path):
    first = picture()
    noise = np.random.default_rng(0).integers(-30, 31, first.shape)
    second = np.clip(first.astype(int) + noise, 0, 255).astype(np.uint8)
    for name, array in (("first", first), ("second", second)):
        save(tmp_path / f"{name}.npy", array)
    done = run(tmp_path, "--image-diffs", "diffs")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "5 failed, 2 passed" in done.stdout
    paths = sorted((tmp_path / "diffs").iterdir())
    test = "test_it.py_test_other_a_b_c-59f86eef"
    assert [path.name for path in paths] == [f"{test}-1.png", f"{test}.png"]
    assert f"is below 0.98; see {paths[0]}" in done.stdout
    sheet = np.asarray(Image.open(paths[0]))
    assert np.array_equal(sheet[:, :48], first)
    assert np.array_equal(sheet[:, 56:104], second)
    assert "differ in size: 48 x 40 and 48 x 39" in done.stdout
    assert "no.png: no such file" in done.stdout
    assert "cannot be compared: expected is no picture: Operation on closed image" in done.stdout
    assert "are not in [0, 1]: give data_range (the command's --data-range)" in done.stdout
    assert "During handling of the above exception" not in done.stdout


def test_each_test_has_a_file_of_its_own(tmp_path):
    done = run(tmp_path, tests=NAMES)
    assert "6 failed" in done.stdout, done.stdout + done.stderr
    assert done.stdout.count("E       Failed: images differ: SSIM") == 6
    paths = list((tmp_path / "image-diffs").iterdir())
    assert len(paths) == 6
    assert all(path.name.startswith("test_it.py_test_other_") for path in paths)
    assert max(len(os.fsencode(path.name)) for path in paths) < 143


def test_pictures_of_pillow_are_colours(tmp_path):
    done = run(tmp_path, tests=PALETTES)
    assert "3 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    assert done.stdout.count("E       Failed: images differ: SSIM") == 2
    assert "has pixels of a kind that is not supported (I)" in done.stdout


def test_loading_it_imports_no_torch():
    code = "import sys, pytest_ssim_fused; print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "False False\n"


def test_it_is_an_entry_point():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {"ssim_fused": "pytest_ssim_fused"}
    assert project["scripts"] == {"ssim-fused": "ssim_fused.command:main"}
