"""Tests marked `cuda` run where torch finds a GPU and the CUDA library; elsewhere they are skipped
with one reason that counts them.
"""

from __future__ import annotations

import pytest
import torch

from ssim_fused import _ops


def _no_cuda() -> str | None:
    if not torch.cuda.is_available():
        return "no GPU"
    return _ops.cuda_reason


def pytest_collection_modifyitems(items):
    marked = [item for item in items if item.get_closest_marker("cuda")]
    reason = _no_cuda()
    if reason:
        why = f"{len(marked)} tests of the CUDA kernels on a GPU: {reason}"
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=why))
