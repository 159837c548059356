"""The CUDA kernels through nvcc for every architecture, and through NVRTC of CUDA 12 and 13."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import compiled
import cuda_standin
import pytest

from ssim_fused import _kernels, _nvrtc

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
OTHER_PYTHON = os.environ.get("SSIM_FUSED_OTHER_PYTHON")


def other_site_packages() -> list[Path]:
    """Where the other torch, one with CUDA, is."""
    if OTHER_PYTHON is None:
        return []
    return list(Path(OTHER_PYTHON).parent.parent.glob("lib/python*/site-packages"))


@pytest.mark.skipif(compiled.find_nvcc() is None, reason="needs nvcc")
@pytest.mark.parametrize(
    ("header", "architecture"), list(zip(compiled.HEADERS, ("120", "75", "90"), strict=True))
)
def test_an_architecture_is_as_recorded(header, architecture):
    """One of each header, the newest and the oldest, for float32 alone: all take ten minutes."""
    names = [
        name for name in compiled.names_of(header) if "<float" in name and "<float16" not in name
    ]
    found = compiled.summary(compiled.compile_kernels(header, [architecture], names))[architecture]
    recorded = json.loads(compiled.RECORD.read_text())["found"][header][architecture]
    assert found["kernels"] == len(names) > 0
    assert found["stack and spills"] == 0
    for family in (key for key in recorded if key.endswith("registers")):
        assert found[family] == recorded[family]


# Images: 6 tasks x (3 dtypes x 3 layouts + float64); the plain loss apart: 3 tasks x 3 dtypes x 2
# layouts; 2 tasks x 2 dtypes of integers x 3 layouts; and 2 that give a value a plane. Volumes: 6
# tasks x 4 dtypes x (11 taps, other windows); 2 tasks x 2 dtypes of integers.
COUNTS = {_kernels.IMAGES: 60 + 18 + 12 + 2, _kernels.VOLUMES: 48 + 4, _kernels.UNPOOLING: 2}


def test_no_kernel_spills_on_any_architecture():
    record = json.loads(compiled.RECORD.read_text())
    assert record["digest"] == compiled.sources_digest(), (
        "kernels have changed since: run `make compiled`"
    )
    assert list(record["found"]) == compiled.HEADERS
    for header, of in record["found"].items():
        assert list(of) == compiled.ARCHITECTURES
        for found in of.values():
            assert found["kernels"] == COUNTS[header]
            assert found["stack and spills"] == 0


def test_spills_are_not_recorded(monkeypatch, tmp_path):
    def said(header: str, *_) -> str:
        stores = 144 if header == _kernels.VOLUMES else 0
        return (
            f"Compiling entry function 'k' for 'sm_90'\n 0 bytes stack frame, {stores} bytes "
            "spill stores, 0 bytes spill loads\n Used 168 registers"
        )

    record = tmp_path / "compiled.json"
    record.write_text("before")
    monkeypatch.setattr(compiled, "RECORD", record)
    monkeypatch.setattr(compiled, "compile_kernels", said)
    with pytest.raises(SystemExit, match=f"{_kernels.VOLUMES}, sm_90: 144 bytes of stack"):
        compiled.main()
    assert record.read_text() == "before"


def test_registers_let_enough_blocks_run_at_once():
    found = json.loads(compiled.RECORD.read_text())["found"]
    images, volumes, unpooling = (found[header].values() for header in compiled.HEADERS)
    # three blocks of 128 threads on a multiprocessor
    assert max(of["streaming: registers"] for of in images) <= 168
    assert max(of["tile: registers"] for of in images) <= 64  # two blocks of 512 threads
    # one block of 352 threads: registers are given to 4 warps at a time
    assert max(of["fast volume: registers"] for of in volumes) <= 168
    assert {of["fast volume: kernels"] for of in volumes} == {18}
    assert max(of["unpool: registers"] for of in unpooling) <= 32  # 2048 threads


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
