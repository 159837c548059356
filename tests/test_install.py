"""Installing: with a compiler, without, and with a library that does not load. And one file, two
versions of torch.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ssim_fused import _ops
from ssim_fused.__main__ import report

ROOT = Path(__file__).resolve().parent.parent
OTHER_PYTHON = os.environ.get("SSIM_FUSED_OTHER_PYTHON")
native = pytest.mark.skipif(
    _ops.cpu_reason is not None, reason=f"no native library: {_ops.cpu_reason}"
)
STEP = (
    "import torch, ssim_fused; x = torch.rand(1, 1, 20, 20, requires_grad=True); "
    "ssim_fused.ssim_loss(x, torch.rand(1, 1, 20, 20)).backward(); print(x.grad.norm().item())"
)


def run(command, cwd, **environment):
    """What a command prints; its whole output where it fails."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": "", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def sources(tmp_path):
    """A copy of what the package is built from, in a path that is not easy."""
    copy = tmp_path / "a path with spaces é"
    copy.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in ("csrc", "ssim_fused"):
        ignored = shutil.ignore_patterns("*.so", "__pycache__")
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    return copy


def install(sources, *options, **environment):
    """`pip install .` into a folder; what pip said, and the folder."""
    target = sources.parent / "installed"
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "-v", *options]
    return run([*command, "--target", target, "."], sources, **environment), target


def info(package):
    return run([sys.executable, "-m", "ssim_fused"], package)


@native
def test_report_names_the_instruction_set():
    assert f"native, {torch.ops.ssim_fused.cpu_isa()}" in report()
    assert torch.__version__ in report()


@native
def test_install_with_a_compiler(sources):
    _, package = install(sources, "--no-build-isolation", SSIM_FUSED_REQUIRE_NATIVE="1")
    assert (package / "ssim_fused" / "_C_cpu.so").exists()
    assert (package / "ssim_fused" / "py.typed").exists()
    assert "native, " in info(package)
    run([sys.executable, "-c", STEP], package)


def test_install_without_a_compiler(sources):
    said, package = install(sources, "--no-build-isolation", CXX="no-such-compiler")
    assert "installing without _C_cpu.so: no C++ compiler (no-such-compiler" in said
    assert not list(package.rglob("_C_*.so"))
    found = info(package)
    assert "fallback" in found
    assert "no C++ compiler" in found
    run([sys.executable, "-c", STEP], package)


def test_install_with_a_compiler_that_fails(sources):
    said, package = install(sources, "--no-build-isolation", CXX="false")
    assert "the compiler failed" in said
    assert "fallback" in info(package)
    run([sys.executable, "-c", STEP], package)


def test_a_build_that_must_be_native_fails_without_a_compiler(sources):
    with pytest.raises(AssertionError, match="cannot be built"):
        install(
            sources,
            "--no-build-isolation",
            CXX="no-such-compiler",
            SSIM_FUSED_REQUIRE_NATIVE="1",
        )


@pytest.fixture
def package(tmp_path):
    """The package's Python files alone, to put a library beside them."""
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "ssim_fused", tmp_path / "ssim_fused", ignore=ignored)
    return tmp_path


def test_a_library_that_does_not_load(package):
    (package / "ssim_fused" / "_C_cpu.so").write_bytes(b"\x7fELF and then nothing")
    found = info(package)
    assert "fallback" in found
    assert "it does not load" in found
    run([sys.executable, "-c", STEP], package)


@native
@pytest.mark.skipif(OTHER_PYTHON is None, reason="SSIM_FUSED_OTHER_PYTHON names no other torch")
def test_the_built_file_serves_another_torch(package):
    shutil.copy(_ops.LIBRARY, package / "ssim_fused")
    found = run([OTHER_PYTHON, "-m", "ssim_fused"], package)
    assert "native, " in found
    assert torch.__version__ not in found
    values = [
        run([python, "-c", f"import torch; torch.manual_seed(0); {STEP}"], package)
        for python in (sys.executable, OTHER_PYTHON)
    ]
    assert values[0] == values[1]
