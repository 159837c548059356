"""The example for Ray, on a local Ray: the same values as without."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ray.data", reason="ray is not installed (extra ray)")
pytest.importorskip("imagecodecs")

import pyarrow.parquet as pq
from evaluation_tables import save_pairs

import ssim_fused

ROOT = Path(__file__).resolve().parent.parent


# calls the example for each list in one process: a local Ray takes seconds to start
CALL_EACH = """
import sys, evaluate_with_ray
for name in sys.argv[1:]:
    sys.argv[1:] = [f"{name}.csv", f"{name}.out"]
    evaluate_with_ray.main()
    print("----")
"""


def run(folder, lists):
    """The example with lists of pairs of these names; what it prints of each."""
    for list_name, names in lists.items():
        lines = [f"a/{name},b/{name}\n" for name in names]
        (folder / f"{list_name}.csv").write_text("".join(["input,target\n", *lines]))
    done = subprocess.run(
        [sys.executable, "-c", CALL_EACH, *lists],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "examples")]),
            "RAY_USAGE_STATS_ENABLED": "0",
        },
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split("----\n")


def test_a_null_is_left_to_its_pair(example):
    batch = {side: np.array(["a.png", None], dtype=object) for side in ("input", "target")}
    found = example("evaluate_with_ray").absolute(batch, "/pictures")
    assert found == {side: ["/pictures/a.png", None] for side in ("input", "target")}
    assert ssim_fused.evaluate_batch(found)["error"][1] == "input is null"


@pytest.mark.parametrize("there", ["out", "list.csv"])
def test_results_are_not_mixed_with_what_is_there(example, tmp_path, there, call_main, monkeypatch):
    (tmp_path / "out").mkdir()
    for file in (tmp_path / "list.csv", tmp_path / "out" / "earlier.parquet"):
        file.touch()
    arguments = [str(tmp_path / "list.csv"), str(tmp_path / there)]
    monkeypatch.setattr(sys, "argv", ["evaluate_with_ray.py", *arguments])
    said = call_main(lambda _: example("evaluate_with_ray").main(), None, code=2).err
    assert f"{there}: not an empty folder" in said


def test_the_example_on_a_local_ray(tmp_path):
    ours, theirs = save_pairs(tmp_path, 3)
    said, nothing, _ = run(tmp_path, {"list": [f"0{i}.png" for i in range(4)], "lost": ["04.png"]})
    assert nothing.splitlines()[-1] == "0 compared, 1 not"
    assert "3 compared, 1 not; mean SSIM" in said
    assert "03.png: no such file" in said
    table = pq.read_table(tmp_path / "list.out").sort_by("input")
    names = [np.array([str(d / f"0{i}.png") for i in range(3)]) for d in (ours, theirs)]
    expected = ssim_fused.evaluate_batch(dict(zip(("input", "target"), names)))
    assert table["ssim"].to_pylist()[:3] == expected["ssim"].tolist()
