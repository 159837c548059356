"""What `make gpu` and `make gpu-cost` do, as far as it can be tested without a GPU."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path

import gpu_tables
import pytest
import torch

from benchmarks import gpu, gpu_cost, results

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


@pytest.fixture
def pretend(monkeypatch, tmp_path):
    """A GPU, whose report comes from the CPU."""
    monkeypatch.setattr(gpu, "why_not", lambda: None)
    monkeypatch.setattr(gpu, "SHAPES", [(1, 1, 20, 20)])
    monkeypatch.setattr(gpu, "BY_NAME", {"ssim_fused": None})
    monkeypatch.setattr(gpu.results, "RESULTS", tmp_path)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Pretend 1")
    monkeypatch.setattr(gpu, "run_sanitizers", dict)
    monkeypatch.setattr(gpu, "Workload", lambda mode, shape, device: gpu_workload(mode, shape))
    status = {"exit": 0, "closing_line": "3 passed", "passed": True}
    monkeypatch.setattr(gpu, "run_tests", lambda: status)
    monkeypatch.setattr(gpu, "measure", lambda w, names, budget: real_measure(w, names, 0.01))


@pytest.mark.parametrize("failing", [False, True])
def test_the_report(monkeypatch, tmp_path, capsys, pretend, failing):
    status = {"exit": int(failing), "closing_line": "3 of 4", "passed": not failing}
    sanitizers = {"memcheck": {"exit": 0, "closing_line": "17 passed", "passed": True}}
    monkeypatch.setattr(gpu, "run_tests", lambda: status)
    monkeypatch.setattr(gpu, "run_sanitizers", lambda: sanitizers)
    assert gpu.main() == int(failing)
    said = capsys.readouterr().out
    assert ("tests: 3 of 4: FAILED\n" if failing else "tests: 3 of 4\n") in said
    assert "memcheck: 17 passed\n" in said
    report = json.loads((tmp_path / "gpu-pretend-1.json").read_text())
    assert report["tests"] == status
    assert report["sanitizers"] == sanitizers
    assert [row["mode"] for row in report["benchmark"]] == ["value", "step"]
    assert all(row["median_us"] > 0 for row in report["benchmark"])


def test_a_sanitizer_that_fails_is_an_error(monkeypatch, pretend):
    found = {"exit": 9, "closing_line": "17 passed", "passed": False, "said": "Invalid read"}
    monkeypatch.setattr(gpu, "run_sanitizers", lambda: {"memcheck": found})
    assert gpu.main() == 1


def test_what_was_measured_is_kept_where_the_rest_fails(monkeypatch, tmp_path, pretend):
    def fail():
        raise RuntimeError("the lease is over")

    monkeypatch.setattr(gpu, "run_sanitizers", fail)
    with pytest.raises(RuntimeError, match="the lease"):
        gpu.main()
    assert json.loads((tmp_path / "gpu-pretend-1.json").read_text())["benchmark"]


def test_tests_that_were_skipped_have_shown_nothing():
    for may_skip in (True, False):
        found = gpu.run_tests(select=f"{gpu.SANITIZED}[mask]", may_skip=may_skip)
        assert found["exit"] == 0
        assert "1 skipped" in found["closing_line"]
        assert not found["passed"]


@pytest.fixture
def said(monkeypatch):
    """Has the next run of tests end with a status, having said something."""
    return lambda status, text: monkeypatch.setattr(gpu, "_run", lambda *_: (status, text))


def test_the_closing_line_is_pytests_own(said):
    text = "....\n===== 16 passed, 1 skipped in 61.20s (0:01:01) =====\nERROR SUMMARY: 0 errors\n"
    said(0, text)
    assert gpu.run_tests()["passed"]
    found = gpu.run_tests(may_skip=False)
    assert found["closing_line"].startswith("16 passed, 1 skipped in 61.20s")
    assert not found["passed"]
    assert found["said"] == text
    said(9, "17 passed in 3.10s\nInvalid __global__ write\nERROR SUMMARY: 1 error\n")
    found = gpu.run_tests(may_skip=False)
    assert not found["passed"]
    assert "Invalid __global__ write" in found["said"]
    said(0, "17 passed in 3.10s\n")
    assert gpu.run_tests(may_skip=False) == {
        "exit": 0,
        "closing_line": "17 passed in 3.10s",
        "passed": True,
    }


def test_a_run_that_hangs_is_killed(capsys):
    script = "import time; print('begins', flush=True); time.sleep(60)"
    status, said = gpu._run([sys.executable, "-c", script], limit_s=3.0)
    assert status < 0
    assert said == "begins\n"
    assert capsys.readouterr().err == "begins\n"


def test_a_wrong_value_is_an_error(monkeypatch, capsys, pretend):
    def wrong(workload, names, budget):
        measured, finished = real_measure(workload, names, 0.01)
        measured[0].agrees = workload.mode == "value"
        return measured, finished

    monkeypatch.setattr(gpu, "measure", wrong)
    assert gpu.main() == 1
    said = capsys.readouterr().out
    assert "ssim_fused disagrees with float64: step 1x1x20x20" in said
    assert "value 1x1x20x20" not in said


def test_the_page_names_the_tests_that_are_run():
    select = inspect.signature(gpu.run_tests).parameters["select"].default
    assert f"`{select}`" in (ROOT / "docs" / "gpu.md").read_text()


real_measure = gpu.measure
real_workload = gpu.Workload


def gpu_workload(mode, shape):
    return real_workload(mode, shape, device="cpu")


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    return gpu_cost.Programs(tmp_path_factory.mktemp("gpu_cost"))


def test_the_sanitizers_calls_reach_every_layout(programs):
    """On small GPUs and on the largest."""
    for multiprocessors in (14, 46, 132, 188):
        for task in gpu_cost.TASKS:
            for shape, layout in ((gpu_tables.SMALL, "tile"), (gpu_tables.LARGE, "streaming")):
                found = programs.geometry(task, shape, multiprocessors)
                assert gpu_cost.LAYOUTS[found["layout"]] == layout


def test_cost_of_a_launch(programs):
    for shape in ((16, 3, 256, 256), (1, 3, 1080, 1920), (128, 1, 28, 28)):
        for task, most_bytes in (("value", 12), ("gradient", 16)):
            geometry = programs.geometry(task, shape, 132)
            cost = gpu_cost.work(geometry, shape)
            assert cost["bytes"] <= most_bytes
            # a third of the 180 loads that fused-ssim's family takes
            assert cost["shared loads"] <= 60
            if geometry["layout"] == 0:
                assert cost["shared words"] <= 60
                assert cost["shared words"] <= cost["multiply-adds"] / 4
            assert geometry["shared"] <= 48 * 1024
            assert geometry["blocks"] >= (128 if shape[0] == 128 else 132)  # a plane, a block
    # without halos: 88 multiply-adds for a value, 154 for a gradient
    whole = {"layout": 0, "tiles": 1, "tile_w": 4096, "bands": 1, "band_h": 4096, "planes": 1}
    whole |= {"maps": 3, "runs": 1024, "gradient_runs": 1024, "step": 8, "across_rows": 8}
    whole |= {"threads": 128, "blocks": 1}
    cost = gpu_cost.work(whole, (1, 1, 4096, 4096))
    assert cost["multiply-adds"] == pytest.approx(154, rel=0.01)


BATCH, PICTURE = (16, 3, 256, 256), (1, 3, 1080, 1920)


@pytest.mark.parametrize(
    ("task", "shape", "most"),
    [
        ("value", BATCH, 200),
        ("value", PICTURE, 200),
        ("gradient", BATCH, 333),
        ("gradient", PICTURE, 333),
    ],
)
def test_instructions_of_a_large_launch(programs, task, shape, most):
    """A third of what fused-ssim's family executes for a step."""
    assert gpu_cost.work(programs.geometry(task, shape, 132), shape)["instructions"] <= most


def test_bytes_of_a_large_value(programs):
    assert gpu_cost.work(programs.geometry("value", BATCH, 132), BATCH)["bytes"] <= 11


def test_counted_as_simulated(programs):
    """Thread-instructions a pixel of three cuts, as a simulator of the GPU counted them in PTX."""
    wide = {"layout": 0, "tiles": 3, "tile_w": 108, "bands": 1, "band_h": 128, "planes": 1}
    wide |= {"threads": 128, "blocks": 3, "step": 8, "runs": 30, "gradient_runs": 27}
    wide |= {"across_rows": 8, "maps": 3}
    one_of_batch = programs.geometry("gradient", BATCH, 132) | {"blocks": 8}
    small = programs.geometry("gradient", (128, 1, 28, 28), 46)
    for cut, shape, simulated in (
        (wide, (1, 1, 128, 324), 311),
        (one_of_batch, (1, 1, 256, 256), 350),
        (small, (128, 1, 28, 28), 779),
    ):
        found = gpu_cost.work(cut, shape)["instructions"]
        assert found == pytest.approx(simulated, rel=0.1)


def test_the_committed_table_is_what_is_counted(programs):
    rows = results.load(results.RESULTS / "gpu_cost.csv")
    assert rows == gpu_cost.work_rows(programs)


def test_reading_what_ptxas_and_nvdisasm_say():
    said = (
        "ptxas info    : Compiling entry function '_ZN1aIfLNS_6LayoutE1ELNS_4TaskE2EEE' for 'sm_86'"
        "\n"
        "ptxas info    : Function properties for x\n"
        "    0 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads\n"
        "ptxas info    : Used 146 registers, used 1 barriers\n"
    )
    assert gpu_cost.registers(said) == {("tile", "gradient"): (146, 12)}
    geometry = {"threads": 128, "shared": 20 * 1024}
    assert gpu_cost.occupancy("86", 146, geometry) == (3, 25)
    assert gpu_cost.occupancy("75", 64, geometry) == (3, 38)
