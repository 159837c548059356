"""``make install-matrix``: installations from the sources, each in an environment of its own.

Every case ends in a package that computes, or in one line that says why not. The results go into
release/installs.csv and docs/installing.md. ccache, where it is installed, keeps the repetition
short. ``python release/installs.py NAME`` runs the cases whose names contain NAME.
"""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import tables

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "release/installs.csv"
COLUMNS = ["case", "ends in", "CPU", "CUDA"]
SOURCES = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "csrc", "release")
SOURCES += ("ssim_fused", "pytest_ssim_fused.py")
STEP = """
import torch, ssim_fused
from ssim_fused import _paths
x = torch.rand(1, 1, 20, 20, requires_grad=True)
ssim_fused.ssim_loss(x, torch.rand(1, 1, 20, 20)).backward()
assert x.grad.norm() > 0
print(_paths.cpu_reason or "native", _paths.CUDA_LIBRARY.exists(), sep="|")
"""


class Place(NamedTuple):
    """Where a case works."""

    folder: Path
    sources: Path
    python: Path  # of an environment that sees this one's torch

    def run(self, *command: object, check: bool = True, **environment: str) -> str:
        """What a command says; in the sources, without what this process inherited."""
        inherited = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "CXX")}
        compiler = "ccache c++" if shutil.which("ccache") else "c++"
        done = subprocess.run(
            [str(word) for word in command],
            cwd=self.sources,
            env=inherited
            | {"CXX": compiler, "CXXFLAGS": "-O0"}
            | environment,  # speed is no matter
            capture_output=True,
            text=True,
        )
        said = done.stdout + done.stderr
        if check and done.returncode:
            raise RuntimeError(said[-3000:])
        return said

    def pip(self, *arguments: object, check: bool = True, **environment: str) -> str:
        """pip install, with all that it says."""
        own = (self.python, "-m", "pip", "install", "-v", "--no-deps")
        return self.run(*own, *arguments, check=check, **environment)

    def program(self, name: str, text: str) -> Path:
        """A shell script on a path of its own."""
        file = self.folder / "programs" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"#!/bin/sh\n{text}\n")
        file.chmod(0o755)
        return file


# ---- the cases: what each does; its name is its docstring ----


def plain(place: Place) -> str:
    """pip install --no-build-isolation ."""
    return place.pip("--no-build-isolation", ".")


def isolated(place: Place) -> str:
    """pip install . (build isolation)"""
    return place.pip(".")


def from_sdist(place: Place) -> str:
    """an sdist, then pip install it"""
    script = "import setuptools.build_meta as b; print(b.build_sdist('dist'))"
    place.run(place.python, "-c", script)
    (sdist,) = (place.sources / "dist").glob("*.tar.gz")
    return place.pip("--no-build-isolation", sdist)


def editable(place: Place) -> str:
    """pip install --editable"""
    return place.pip("--no-build-isolation", "-e", ".")


def offline(place: Place) -> str:
    """offline: pip install --no-index"""
    nowhere = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    return place.pip("--no-build-isolation", "--no-index", ".", **nowhere)


def with_uv(place: Place) -> str:
    """uv pip install --no-build-isolation ."""
    place.pip("-q", "uv")
    uv = place.python.parent / "uv"
    target = ("--python", place.python, "--no-deps")
    return place.run(uv, "pip", "install", *target, "--no-build-isolation", ".")


def with_uv_isolated(place: Place) -> str:
    """uv pip install . (build isolation)"""
    place.pip("-q", "uv")
    uv = place.python.parent / "uv"
    return place.run(uv, "pip", "install", "--python", place.python, "--no-deps", ".")


def no_compiler(place: Place) -> str:
    """no compiler"""
    return place.pip("--no-build-isolation", ".", CXX="no-such-compiler")


def old_gcc(place: Place) -> str:
    """a gcc that does not know C++20"""
    old = place.program(
        "g++",
        'case "$*" in *--version*) echo "g++ (GCC) 8.5.0"; exit 0;; esac\n'
        "echo \"g++: error: unrecognized command line option '-std=c++20'\" >&2; exit 1",
    )
    return place.pip("--no-build-isolation", ".", CXX=str(old))


def old_setuptools(place: Place) -> str:
    """setuptools 70, --no-build-isolation"""
    (packages,) = place.folder.glob("environment/lib/python*/site-packages")
    for entry in packages.glob("setuptools*"):
        entry.unlink()
    place.pip("-q", "setuptools==70.0.0")
    return place.pip("--no-build-isolation", ".", check=False)


def must_be_native(place: Place) -> str:
    """no compiler, SSIM_FUSED_REQUIRE_NATIVE=1"""
    settings = {"CXX": "no-such-compiler", "SSIM_FUSED_REQUIRE_NATIVE": "1"}
    return place.pip("--no-build-isolation", ".", check=False, **settings)


def read_only(place: Place) -> str:
    """read-only sources"""
    subprocess.run(["mount", "--bind", place.sources, place.sources], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", place.sources], check=True)
        return place.pip("--no-build-isolation", ".")
    finally:
        subprocess.run(["umount", place.sources], check=True)


def cuda_without_nvcc(place: Place) -> str:
    """SSIM_FUSED_CUDA=1, no nvcc"""
    return place.pip("--no-build-isolation", ".", SSIM_FUSED_CUDA="1", CUDA_HOME="/nowhere")


def cuda_with_other_nvcc(place: Place) -> str:
    """SSIM_FUSED_CUDA=1, an nvcc of CUDA 11"""
    nvcc = place.program("nvcc", "echo 'Cuda compilation tools, release 11.8, V11.8.89'; exit 1")
    path = f"{nvcc.parent}:{os.environ['PATH']}"
    return place.pip("--no-build-isolation", ".", SSIM_FUSED_CUDA="1", PATH=path)


def arch_list(place: Place) -> str:
    """SSIM_FUSED_CUDA=1, TORCH_CUDA_ARCH_LIST=nonsense"""
    settings = {"SSIM_FUSED_CUDA": "1", "TORCH_CUDA_ARCH_LIST": "nonsense"}
    return place.pip("--no-build-isolation", ".", **settings)


def unknown_architecture(place: Place) -> str:
    """SSIM_FUSED_CUDA_ARCHITECTURES=nonsense"""
    settings = {"SSIM_FUSED_CUDA": "1", "SSIM_FUSED_CUDA_ARCHITECTURES": "nonsense"}
    return place.pip("--no-build-isolation", ".", check=False, **settings)


CASES: list[Callable[[Place], str]] = [
    plain,
    isolated,
    from_sdist,
    editable,
    offline,
    with_uv,
    with_uv_isolated,
    read_only,
    no_compiler,
    old_gcc,
    old_setuptools,
    must_be_native,
    cuda_without_nvcc,
    cuda_with_other_nvcc,
    arch_list,
    unknown_architecture,
]


def make_place(folder: Path) -> Place:
    """A copy of the sources in a path that is not easy, and a fresh environment."""
    sources = folder / "a path with spaces é"
    sources.mkdir()
    ignored = shutil.ignore_patterns("*.so", "*.why", "kernels", "__pycache__", "*.csv")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, sources / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, sources)
    environment = folder / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if "ssim" not in entry.name:
            (packages / entry.name).symlink_to(entry)
    return Place(folder, sources, environment / "bin/python")


def reason_in(said: str) -> str:
    """The one line that says why something was not built."""
    lines = [line.strip() for line in said.splitlines() if "ssim_fused: " in line]
    return lines[-1].partition("ssim_fused: ")[2] if lines else ""


def try_case(case: Callable[[Place], str], folder: Path) -> dict[str, str]:
    """A case's row."""
    row = {"case": str(case.__doc__)}
    place = make_place(folder)
    said = case(place)
    if case in (must_be_native, old_setuptools, unknown_architecture):
        reason = reason_in(said)
        if not reason:
            raise RuntimeError(said[-3000:])
        return row | {"ends in": f"an error: {reason}", "CPU": "", "CUDA": ""}
    empty = folder / "elsewhere"
    empty.mkdir()
    cpu, cuda = place._replace(sources=empty).run(place.python, "-c", STEP).strip().split("|")
    ends = "a working package"
    if cpu != "native":
        if reason_in(said) == "":
            raise RuntimeError("no line says why there is no native library")
        ends = "a working package, plain PyTorch"
    return row | {"ends in": ends, "CPU": cpu, "CUDA": "library" if cuda == "True" else "none"}


def main(names: list[str]) -> int:
    """The exit status: 0 where every case ended as it should."""
    rows, failed = {}, 0
    if names and RESULTS.exists():
        with RESULTS.open(newline="") as old:
            rows = {row["case"]: row for row in csv.DictReader(old)}
    for case in CASES:
        if names and not any(name in case.__name__ for name in names):
            continue
        print(case.__doc__, file=sys.stderr, flush=True)
        # the same path for all, so that ccache finds what it has
        folder = Path(tempfile.gettempdir()) / "ssim-installs"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            row = try_case(case, folder)
        except (RuntimeError, subprocess.CalledProcessError) as error:
            failed += 1
            print(error, file=sys.stderr, flush=True)
            row = {"case": str(case.__doc__), "ends in": "FAILED", "CPU": "", "CUDA": ""}
        shutil.rmtree(folder)
        rows[row["case"]] = row
        with RESULTS.open("w", newline="") as new:
            writer = csv.DictWriter(new, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows.values())
    made = [[row[column] for column in COLUMNS] for row in rows.values()]
    tables.write(ROOT / "docs/installing.md", "installs", [COLUMNS, *made])
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
