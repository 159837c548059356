"""A picture of the page that ssim-fused compare --html makes: docs/images/report.png.

python examples/report.py [OUT]        needs the extras command and test, and Chromium
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from click.testing import CliRunner
from PIL import Image, ImageFilter
from playwright.sync_api import sync_playwright
from skimage import data

from ssim_fused.command import group

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = "/usr/bin/chromium"
SHOWN = {"width": 1280, "height": 1050}


def versions(image: Image.Image, seed: int) -> dict[str, Image.Image]:
    """What becomes of a picture: noise, blur, compression, a shift of brightness."""
    pixels = np.asarray(image).astype(np.float64)
    noise = np.random.default_rng(seed).normal(0, 12, pixels.shape)
    noisy, bright = (np.clip(p, 0, 255).astype(np.uint8) for p in (pixels + noise, pixels + 18))
    return {
        "noise": Image.fromarray(noisy),
        "blur": image.filter(ImageFilter.GaussianBlur(2)),
        "brighter": Image.fromarray(bright),
        "small": image.reduce(3).resize(image.size, Image.Resampling.BICUBIC),
    }


def make_pairs(folder: Path) -> tuple[Path, Path]:
    """Two folders: pictures that come with scikit-image, and what became of them."""
    originals, changed = folder / "original", folder / "changed"
    originals.mkdir()
    changed.mkdir()
    for name in ("astronaut", "camera", "coins", "page", "text"):
        image = Image.fromarray(getattr(data, name)())
        for what, version in versions(image, len(name)).items():
            image.save(originals / f"{name}-{what}.png")
            version.save(changed / f"{name}-{what}.png")
    return originals, changed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, nargs="?", default=ROOT / "docs/images/report.png")
    out = parser.parse_args().out
    with tempfile.TemporaryDirectory() as place, sync_playwright() as playwright:
        page = Path(place) / "changed.html"
        words = ["compare", *map(str, make_pairs(Path(place))), "--ms-ssim", "--html", str(page)]
        done = CliRunner().invoke(group, words)
        assert done.exit_code == 0, done.output
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page(viewport=SHOWN)
        tab.goto(page.as_uri())
        tab.get_by_role("button", name="astronaut-small.png").click()
        tab.evaluate("document.querySelector('.scroll').scrollTop = 0; window.scrollTo(0, 0)")
        tab.screenshot(path=out)
        browser.close()


if __name__ == "__main__":
    main()
