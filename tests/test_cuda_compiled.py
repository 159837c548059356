"""The CUDA kernel through nvcc for every architecture, and through NVRTC of CUDA 12 and 13."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import nvrtc
import pytest

ROOT = Path(__file__).resolve().parent.parent
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
needs_nvcc = pytest.mark.skipif(
    NVCC is None or not other_site_packages(),
    reason="needs nvcc and a torch with CUDA (SSIM_FUSED_OTHER_PYTHON)",
)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """The object for all architectures and PTX, and what ptxas said."""
    torch = other_site_packages()[0] / "torch"
    built = tmp_path_factory.mktemp("nvcc") / "ssim_cuda.o"
    command = [NVCC, "-std=c++20", "-O3", "--threads", "2", "-Werror", "all-warnings", "-Xptxas=-v"]
    command += ["-Xcompiler", "-fPIC,-fvisibility=hidden", "-DUSE_CUDA"]
    command += ["-DTORCH_TARGET_VERSION=0x020a000000000000", f"-I{torch / 'include'}"]
    command += [f"-I{torch / 'include/torch/csrc/api/include'}"]
    for number in ARCHITECTURES:
        command += ["-gencode", f"arch=compute_{number},code=sm_{number}"]
    command += ["-gencode", f"arch=compute_{ARCHITECTURES[-1]},code=compute_{ARCHITECTURES[-1]}"]
    done = subprocess.run(
        [*map(str, command), "-c", str(ROOT / "csrc/ssim_cuda.cu"), "-o", str(built)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return built, done.stdout + done.stderr


@needs_nvcc
def test_no_kernel_spills_on_any_architecture(compiled):
    _, said = compiled
    kernels = re.findall(
        r"Compiling entry function '(\S+)' for 'sm_(\d+)'.*?(\d+) bytes stack frame, "
        r"(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers",
        said,
        re.DOTALL,
    )
    assert {architecture for _, architecture, *_ in kernels} == set(ARCHITECTURES)
    # 6 tasks x (3 dtypes x 3 layouts + float64), and 2 that give a value an image
    assert len(kernels) == 62 * len(ARCHITECTURES)
    spilled = [k for k in kernels if any(int(count) for count in k[2:5])]
    assert not spilled
    streaming = [int(k[5]) for k in kernels if "LayoutE0" in k[0]]
    assert max(streaming) <= 168  # three blocks of 128 threads on a multiprocessor
    tile = [int(k[5]) for k in kernels if "LayoutE1" in k[0]]
    assert max(tile) <= 128  # one block of 512 threads


@needs_nvcc
def test_the_library_loads_without_a_gpu_and_registers_its_operators(compiled, tmp_path):
    built, _ = compiled
    torch_lib = other_site_packages()[0] / "torch" / "lib"
    library = tmp_path / "_C_cuda.so"
    command = [NVCC, "-shared", "--cudart", "static", "-Xlinker", "--exclude-libs,ALL", built]
    command += ["-o", library, f"-L{torch_lib}", "-ltorch_cuda", "-ltorch_cpu", "-lc10"]
    subprocess.run([str(word) for word in command], check=True)
    script = (
        "import torch, ssim_fused; assert torch.version.cuda;"
        f"torch.ops.load_library({str(library)!r});"
        "dump = torch._C._dispatch_dump;"
        "names = ('loss', 'loss_map', 'loss_backward');"
        "print(all('CUDA: registered' in dump(f'ssim_fused::{name}') for name in names))"
    )
    done = subprocess.run([OTHER_PYTHON, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "True", done.stderr


KERNELS = [
    f"ssim_fused::ssim_kernel<{dtype}, ssim_fused::Layout::{layout}, ssim_fused::Task::{task}>"
    for dtype, layout in (
        ("float", "streaming"),
        ("float", "tile"),
        ("float16", "tile"),
        ("bfloat16", "any"),
        ("double", "any"),
    )
    for task in ("value", "map", "gradient", "backwards")
] + ["ssim_fused::reduce_kernel<float>", "ssim_fused::reduce_kernel<double>"]


@pytest.mark.parametrize("architecture", ["75", "90", "120"])
@pytest.mark.parametrize("major", [12, 13])
def test_nvrtc_compiles_the_header(major, architecture):
    found = nvrtc.find(major, other_site_packages())
    if found is None:
        pytest.skip(f"no NVRTC of CUDA {major} (pip install nvidia-cuda-nvrtc-cu{major})")
    cubin, names, log = found.compile(KERNELS, architecture)
    assert cubin[:4] == b"\x7fELF"
    assert all(name.encode() in cubin for name in names)
    assert "warning" not in log


def test_nvrtc_reports_a_fault():
    found = nvrtc.find(13, other_site_packages()) or nvrtc.find(12, other_site_packages())
    if found is None:
        pytest.skip("no NVRTC")
    with pytest.raises(RuntimeError, match="no_such_kernel"):
        found.compile(["ssim_fused::no_such_kernel<float>"], "80")


def test_the_report_without_nvcc(tmp_path):
    """setup.py finds no nvcc of torch's version and says which one is missing."""
    script = (
        "import sys; sys.argv = ['setup.py', '--name']; import setup as s\n"
        "try: s.find_nvcc('99.1')\n"
        "except s.CannotBuild as reason: print(reason)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert "no nvcc of CUDA 99, for which torch is built" in done.stdout
