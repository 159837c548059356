"""Training and evaluation killed at random moments, see tests/kills.py; `make kills`: at many."""

from __future__ import annotations

import random
import time

import pytest

pytest.importorskip("click")
pytest.importorskip("imagecodecs")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

import kills


@pytest.mark.parametrize("kind", kills.KINDS)
def test_what_was_reported_stands_after_kills(kind, tmp_path):
    seed = time.time_ns()
    print(f"seed {seed}")
    assert kills.kill(kind(tmp_path), 2, random.Random(seed))
