"""Tests marked `cuda` run where torch finds a GPU and the CUDA library; elsewhere they are skipped
with one reason that counts them.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from ssim_fused import _paths

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
# Files of about a minute and more, the longest first: `make test` keeps this order, so that in the
# end no process waits long for the other.
LONGEST = [
    *("test_cuda_faults", "test_cuda_compiled", "test_fuzz", "test_citizenship"),
    *("test_cuda_volume_emulated", "test_cuda_emulated", "test_kills", "test_gradients"),
    *("test_robustness", "test_torchrun", "test_install", "test_breadth", "test_benchmarks"),
]


needs_proc = pytest.mark.skipif(
    not Path("/proc/self/environ").exists(), reason="ranks are found in /proc"
)


def process_of_rank(parent, rank):
    """The process id of a child of torchrun."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    for child in children:
        if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return int(child)
    raise AssertionError(f"no child of {parent} has rank {rank}")


def _no_cuda() -> str | None:
    if not torch.cuda.is_available():
        return "no GPU"
    return _paths.cuda_reason


def pytest_collection_modifyitems(items):
    ranks = {name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.stem, len(LONGEST)))
    marked = [item for item in items if item.get_closest_marker("cuda")]
    reason = _no_cuda()
    if reason:
        why = f"{len(marked)} tests of the CUDA kernels on a GPU: {reason}"
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture
def call_main(capsys):
    """Calls a script's main; what it printed to stdout and to stderr."""

    def call(main, arguments, code=0):
        try:
            got = main(arguments)
        except SystemExit as end:  # of argparse
            got = end.code
        said = capsys.readouterr()
        assert got == code, said.err[-3000:]
        return said

    return call


@pytest.fixture(scope="module")
def example():
    """Loads a script of examples/ as a module, by its name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))

        def load(name):
            if name not in sys.modules:
                spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
                module = importlib.util.module_from_spec(spec)
                patch.setitem(sys.modules, name, module)  # dataclasses look it up there
                try:
                    spec.loader.exec_module(module)
                except BaseException:
                    patch.delitem(sys.modules, name)
                    raise
            return sys.modules[name]

        yield load
