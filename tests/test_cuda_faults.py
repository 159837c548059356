"""The CUDA kernels under sanitizers, and faults planted in them to see that the checks see them."""

from __future__ import annotations

import json
import shutil

import pytest
from cuda_emulator.faults import (
    FAMILIES,
    RECORD,
    check_values,
    is_seen,
    sources_digest,
    what_was_seen,
)
from cuda_emulator.sanitizers import SANITIZERS, run_sanitized

pytestmark = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_sanitizers_find_nothing(family, sanitizer):
    done = run_sanitized(FAMILIES[family].program, sanitizer)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout == "done\n"


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("images", "halo one short"),
        ("images", "no barrier before windows"),
        ("volumes", "a tile writes beyond itself"),
    ],
)
def test_a_planted_fault_is_seen(family, name):
    assert what_was_seen(family, name), "nothing was seen"


@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_fault_the_same_check_passes(family):
    done = check_values(family)
    assert done.returncode == 0, done.stderr


def test_every_fault_was_seen_in_these_sources():
    record = json.loads(RECORD.read_text())
    for family, of in FAMILIES.items():
        assert record["seen"][family].keys() == of.mutations.keys()
        assert all(is_seen(record, family, name) for name in of.mutations)
    assert record["digest"] == sources_digest(), (
        "kernels or checks have changed since: run `make faults`"
    )
