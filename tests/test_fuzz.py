"""Arbitrary calls of the operators, and many at once, under sanitizers; see tests/fuzz."""

from __future__ import annotations

import re
import shutil

import fuzz
import pytest
from fuzz import sanitized
from fuzz.corpus import CORPUS

from ssim_fused import _paths

pytestmark = pytest.mark.skipif(_paths.cpu_reason is not None, reason=f"{_paths.cpu_reason}")


@pytest.mark.parametrize("name", CORPUS)
def test_what_was_found_once(name):
    assert fuzz.run(CORPUS[name]) == "refused"


needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")


@needs_compiler
def test_arbitrary_calls_under_sanitizers():
    done = sanitized.run("-m", "fuzz", "--seconds", "20", "--seed", "0")
    assert done.returncode == 0, done.stderr[-4000:]
    calls = re.search(r"done: (\d+) calls", done.stdout)
    assert calls
    assert int(calls[1]) > 100
    for operator in fuzz.OPERATORS:
        assert re.search(rf"^{operator} computed: [1-9]", done.stdout, re.MULTILINE)


@needs_compiler
def test_16_threads_under_a_sanitizer():
    done = sanitized.run("-m", "fuzz.threads", sanitizer="thread")
    assert done.returncode == 0, done.stderr[-4000:]
    assert "steps in 16 threads" in done.stdout
