"""The training script under torchrun: two processes train as one does, and survive a kill."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import EXAMPLES, needs_proc, process_of_rank

for needed in ("sklearn", "matplotlib", "tqdm"):
    pytest.importorskip(needed)

SCRIPT = EXAMPLES / "train_cvae.py"
# 1,442 pictures: the last batch of an epoch has one, which two processes cannot share
SMALL = ["--size", "8", "--batch-size", "131", "--latent", "4", "--epochs", "6", "--device", "cpu"]


def options(runs):
    return ["--runs", str(runs), "--name", "test", *SMALL]


def command(runs):
    """Two processes, of which one may die."""
    starter = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    starter += ["--nproc-per-node", "2", "--max-restarts", "1", "--monitor-interval", "0.1"]
    return [*starter, str(SCRIPT), *options(runs)]


def metrics(runs):
    with (runs / "test" / "metrics.csv").open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def wait_for_epochs(running, runs, epochs):
    end = time.monotonic() + 120
    while running.poll() is None and time.monotonic() < end:
        if (runs / "test" / "metrics.csv").exists() and len(metrics(runs)) >= epochs:
            return
        time.sleep(0.01)
    raise AssertionError("no epoch was written")


@pytest.fixture(scope="module")
def script(example):
    return example("train_cvae")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder of a run of two processes that nothing disturbed."""
    runs = tmp_path_factory.mktemp("two")
    done = subprocess.run(command(runs), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("pictures, metrics and checkpoint") == 1  # the first process alone
    return runs


def test_two_processes_train_as_one_does(script, tmp_path, two):
    assert script.main(options(tmp_path)) == 0
    ours, theirs = metrics(two), metrics(tmp_path)
    assert len(ours) == len(theirs) == 6
    for a, b in zip(ours, theirs):
        assert a == pytest.approx(b, rel=2e-3)
    assert ours[-1]["held_out_ssim"] > ours[0]["held_out_ssim"] + 0.1
    names = {file.name for file in (tmp_path / "test").iterdir()}
    assert {file.name for file in (two / "test").iterdir()} == names


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 7, 64])
def test_shares_of_a_batch(script, length, count):
    everyone = [script.Processes(rank, count) for rank in range(count)]
    batch = torch.rand(length, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    seen, mean = [], 0.0
    for process in everyone:
        share, counted = process.share(length)
        mine = batch[share]
        assert len(mine) == max(1, counted)  # each process takes part in each step
        seen += mine[:counted].tolist()
        mean += process.weight(counted, length) * mine.mean() / count  # as DDP has it
    assert seen == batch.tolist()
    assert mean == pytest.approx(batch.mean().item(), rel=1e-12)


def test_one_of_several_without_torchrun(script, tmp_path, call_main, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LOCAL_RANK", "0")
    said = call_main(script.main, options(tmp_path), code=2).err
    assert "WORLD_SIZE is 2 without RANK, MASTER_ADDR, MASTER_PORT: torchrun sets them" in said


def test_more_processes_than_gpus(script, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    gpu, cpu = torch.device("cuda", 0), torch.device("cpu")
    places = [script.Processes(rank, 3, local_rank=rank) for rank in range(3)]
    assert [place.device(gpu).index for place in places[:2]] == [0, 1]
    assert places[2].device(cpu) == cpu
    with pytest.raises(script.ProcessError, match=r"process 2 of this machine has no GPU: .* 2"):
        places[2].device(gpu)


@needs_proc
def test_a_killed_process_is_replaced(tmp_path, two):
    with (tmp_path / "said").open("w+") as said:
        running = subprocess.Popen(command(tmp_path), stdout=said, stderr=said)
        try:
            wait_for_epochs(running, tmp_path, 2)
            os.kill(process_of_rank(running.pid, 1), signal.SIGKILL)
            assert len(metrics(tmp_path)) < 6, "the run was over before it could be killed"
            code = running.wait(timeout=200)
        finally:
            running.terminate()  # it ends its processes
        assert code == 0, (tmp_path / "said").read_text()[-3000:]
    log = (tmp_path / "said").read_text()
    assert "exitcode: -9" in log
    assert log.count("| 0/72 [") == 1  # the second time, it went on where the first one was
    found, expected = (runs / "test" / "metrics.csv" for runs in (tmp_path, two))
    assert found.read_bytes() == expected.read_bytes()
    found, expected = (
        torch.load(runs / "test" / "checkpoint.pt", weights_only=True)["model"]
        for runs in (tmp_path, two)
    )
    assert all(torch.equal(found[key], expected[key]) for key in expected)
