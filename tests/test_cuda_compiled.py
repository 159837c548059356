"""The CUDA kernels through nvcc for every architecture, and through NVRTC of CUDA 12 and 13."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import cuda_standin
import pytest

from ssim_fused import _kernels, _nvrtc

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
ARCHITECTURES = ["75", "80", "86", "89", "90", "100", "120"]
OTHER_PYTHON = os.environ.get("SSIM_FUSED_OTHER_PYTHON")


def other_site_packages() -> list[Path]:
    """Where the other torch, one with CUDA, is."""
    if OTHER_PYTHON is None:
        return []
    return list(Path(OTHER_PYTHON).parent.parent.glob("lib/python*/site-packages"))


def find_nvcc() -> Path | None:
    places = [os.environ.get("CUDA_HOME", ""), "/usr/local/cuda-13.0", "/usr/local/cuda"]
    found = (Path(place) / "bin" / "nvcc" for place in places if place)
    return next((path for path in found if path.exists()), None)


NVCC = find_nvcc()
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="needs nvcc")


def parameter_of(expression: str) -> str:
    """The structure that a kernel is given."""
    arithmetic = "double" if "<double" in expression else "float"
    kind = "VolumeProblem" if "volume_kernel" in expression else "Problem"
    kind = "Unpooling" if "unpool_kernel" in expression else kind
    return f"const __grid_constant__ ssim_fused::{kind}<{arithmetic}>"


def compile_everywhere(header: str, folder: Path) -> str:
    """What ptxas says of all kernels of a header, for all architectures."""
    lines = [f'#include "{header}"']
    for expression in (name for of, name in _kernels.names() if of == header):
        parameters = parameter_of(expression)
        if "reduce_kernel" in expression:
            arithmetic = expression.partition("<")[2].removesuffix(">")
            parameters = f"const {arithmetic}*, ssim_fused::Int64, double, {arithmetic}*"
        lines.append(f"template __global__ void {expression}({parameters});")
    source = folder / "kernels.cu"
    source.write_text("\n".join(lines))
    command = [NVCC, "-std=c++20", "-O3", "--threads", "2", "-Werror", "all-warnings", "-Xptxas=-v"]
    for number in ARCHITECTURES:
        command += ["-gencode", f"arch=compute_{number},code=sm_{number}"]
    command += ["-fatbin", f"-I{CSRC}", source, "-o", folder / "kernels.fatbin"]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout + done.stderr


def kernels_of(said: str) -> list[tuple]:
    """Of each kernel: name, architecture, stack, spills stored and loaded, registers."""
    return re.findall(
        r"Compiling entry function '(\S+)' for 'sm_(\d+)'.*?(\d+) bytes stack frame, "
        r"(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers",
        said,
        re.DOTALL,
    )


@needs_nvcc
def test_no_kernel_spills_on_any_architecture(tmp_path):
    kernels = kernels_of(compile_everywhere(_kernels.IMAGES, tmp_path))
    assert {architecture for _, architecture, *_ in kernels} == set(ARCHITECTURES)
    # 6 tasks x (3 dtypes x 3 layouts + float64); the plain loss apart: 3 tasks x 3 dtypes x 2
    # layouts; 2 tasks x 2 dtypes of integers x 3 layouts; and 2 that give a value a plane
    assert len(kernels) == (60 + 18 + 12 + 2) * len(ARCHITECTURES)
    spilled = [k for k in kernels if any(int(count) for count in k[2:5])]
    assert not spilled
    streaming = [int(k[5]) for k in kernels if "LayoutE0" in k[0]]
    assert max(streaming) <= 168  # three blocks of 128 threads on a multiprocessor
    tile = [int(k[5]) for k in kernels if "LayoutE1" in k[0]]
    assert max(tile) <= 128  # one block of 512 threads


@needs_nvcc
def test_no_kernel_for_volumes_spills_on_any_architecture(tmp_path):
    kernels = kernels_of(compile_everywhere(_kernels.VOLUMES, tmp_path))
    assert {architecture for _, architecture, *_ in kernels} == set(ARCHITECTURES)
    # 6 tasks x 4 dtypes x (11 taps, other windows); 2 tasks x 2 dtypes of integers
    assert len(kernels) == (48 + 4) * len(ARCHITECTURES)
    assert not [k for k in kernels if any(int(count) for count in k[2:5])]
    fast = [int(k[5]) for k in kernels if "Lb1E" in k[0] and "kernelId" not in k[0]]
    assert len(fast) == 18 * len(ARCHITECTURES)
    assert max(fast) <= 168  # one block of 352 threads: registers are given to 4 warps at a time


@needs_nvcc
def test_the_kernel_for_the_way_back_does_not_spill(tmp_path):
    kernels = kernels_of(compile_everywhere(_kernels.UNPOOLING, tmp_path))
    assert len(kernels) == 2 * len(ARCHITECTURES)
    assert not [k for k in kernels if any(int(count) for count in k[2:5])]
    assert max(int(k[5]) for k in kernels) <= 32  # 2048 threads on a multiprocessor


@pytest.mark.skipif(OTHER_PYTHON is None, reason="SSIM_FUSED_OTHER_PYTHON names no other torch")
def test_the_library_loads_without_a_gpu_and_registers_its_operators(tmp_path):
    """Built with the headers of one torch, without CUDA; loaded by another, with it."""
    library = cuda_standin.build_library()
    script = (
        "import sys, torch, ssim_fused; from pathlib import Path; from ssim_fused import _cuda;"
        f"assert torch.version.cuda; _cuda.load(Path({str(library)!r}));"
        "dump = torch._C._dispatch_dump;"
        "names = ('loss', 'loss_and_gradients', 'loss_map', 'loss_backward', 'loss_and_pool',"
        "'unpool', 'unpool_');"
        "print(all('CUDA: registered' in dump(f'ssim_fused::{name}') for name in names),"
        "_cuda.reason(), _cuda.kernels().nvrtc.version[0] == int(torch.version.cuda[:2]))"
    )
    done = subprocess.run([OTHER_PYTHON, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "True None True", done.stderr


@pytest.mark.parametrize("architecture", [75, 120])
@pytest.mark.parametrize("major", [12, 13])
def test_nvrtc_compiles_every_kind_of_kernel(major, architecture):
    """One of each layout and type; `python release/prebuild.py` compiles all."""
    path = _nvrtc.find(major, [])
    if path is None:
        folders = [p for site in other_site_packages() for p in site.glob("nvidia/*/lib")]
        path = _nvrtc.find(major, folders)
    if path is None:
        pytest.skip(f"no NVRTC of CUDA {major} (pip install nvidia-cuda-nvrtc-cu{major})")
    nvrtc, source = _nvrtc.Nvrtc(path), _kernels.Source(CSRC)
    for header, expression in (
        (_kernels.IMAGES, "ssim_kernel<float, ssim_fused::Layout::tile, {}gradient, false>"),
        (_kernels.IMAGES, "ssim_kernel<float16, ssim_fused::Layout::streaming, {}value, false>"),
        (_kernels.IMAGES, "ssim_kernel<double, ssim_fused::Layout::any, {}backwards, true>"),
        (_kernels.IMAGES, "reduce_kernel<float>"),
        (_kernels.UNPOOLING, "unpool_kernel<float>"),
        (_kernels.VOLUMES, "volume_kernel<bfloat16, true, {}gradient>"),
    ):
        name = "ssim_fused::" + expression.format("ssim_fused::Task::")
        assert (header, name) in _kernels.names()
        made, log = nvrtc.compile(source.headers, header, name, architecture, _kernels.OPTIONS)
        assert made.image[:4] == b"\x7fELF"
        assert made.symbol.encode() in made.image
        assert "GLOBAL__N" not in made.symbol  # the same in every run
        assert "warning" not in log


def test_nvrtc_reports_a_fault():
    path = _nvrtc.find()
    if path is None:
        pytest.skip("no NVRTC")
    source = _kernels.Source(CSRC)
    with pytest.raises(RuntimeError, match="no_such_kernel"):
        _nvrtc.Nvrtc(path).compile(
            source.headers, _kernels.IMAGES, "ssim_fused::no_such_kernel<float>", 80
        )
