"""What `make gpu` and `make gpu-cost` do, as far as it can be tested without a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, gpu_cost

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_fails():
    command = [sys.executable, "-m", "benchmarks.gpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "nothing was run" in done.stderr
    assert "CUDA" in done.stderr or "no GPU" in done.stderr


def test_file_names():
    assert gpu.file_name("NVIDIA H100 80GB HBM3") == "gpu-nvidia-h100-80gb-hbm3"
    assert gpu.file_name("NVIDIA GeForce RTX 4090") == "gpu-nvidia-geforce-rtx-4090"


@pytest.mark.parametrize("failing", [False, True])
def test_the_report(monkeypatch, tmp_path, failing):
    monkeypatch.setattr(gpu, "why_not", lambda: None)
    monkeypatch.setattr(gpu, "SHAPES", [(1, 1, 20, 20)])
    monkeypatch.setattr(gpu, "BY_NAME", {"ssim_fused": None})
    monkeypatch.setattr(gpu.results, "RESULTS", tmp_path)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Pretend 1")
    monkeypatch.setattr(gpu, "run_sanitizers", dict)
    monkeypatch.setattr(gpu, "Workload", lambda mode, shape, device: gpu_workload(mode, shape))
    status = {"exit": int(failing), "closing_line": "3 passed"}
    monkeypatch.setattr(gpu, "run_tests", lambda: status)
    monkeypatch.setattr(gpu, "measure", lambda w, names, budget: real_measure(w, names, 0.01))
    assert gpu.main() == int(failing)
    report = json.loads((tmp_path / "gpu-pretend-1.json").read_text())
    assert report["tests"]["closing_line"] == "3 passed"
    assert [row["mode"] for row in report["benchmark"]] == ["value", "step"]
    assert all(row["median_us"] > 0 for row in report["benchmark"])


real_measure = gpu.measure
real_workload = gpu.Workload


def gpu_workload(mode, shape):
    return real_workload(mode, shape, device="cpu")


def test_cost_of_a_launch(tmp_path):
    programs = gpu_cost.Programs(tmp_path)
    shape = (16, 3, 256, 256)
    for task, most_bytes, most_instructions in (("value", 11, 200), ("gradient", 20, 333)):
        geometry = programs.geometry(task, shape, 132)
        cost = gpu_cost.work(geometry, shape)
        # what the kernel must keep to: traffic, a third of fused-ssim's instructions and loads
        assert cost["bytes"] <= most_bytes
        assert cost["instructions"] <= most_instructions
        assert cost["shared words"] <= 60
        assert cost["shared words"] <= cost["multiply-adds"] / 4
        assert geometry["shared"] <= 48 * 1024
        assert geometry["blocks"] >= 132
    # without halos: 88 multiply-adds for a value, 154 for a gradient
    whole = {"tiles": 1, "tile_w": 4096, "bands": 1, "band_h": 4096, "planes": 1, "maps": 3}
    whole |= {"runs": 1024, "gradient_runs": 1024}
    cost = gpu_cost.work(whole, (1, 1, 4096, 4096))
    assert cost["multiply-adds"] == pytest.approx(154, rel=0.01)


def test_reading_what_ptxas_and_nvdisasm_say():
    said = (
        "ptxas info    : Compiling entry function '_ZN1a6kernelIfLi11ELNS_4TaskE2EEE' for 'sm_86'\n"
        "ptxas info    : Function properties for x\n"
        "    0 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads\n"
        "ptxas info    : Used 146 registers, used 1 barriers\n"
    )
    assert gpu_cost.registers(said) == {"gradient": (146, 12)}
    geometry = {"threads": 128, "shared": 20 * 1024}
    assert gpu_cost.occupancy("86", 146, geometry) == (3, 25)
    assert gpu_cost.occupancy("75", 64, geometry) == (3, 38)
