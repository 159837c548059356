"""Calls that found something once."""

from __future__ import annotations

import torch

from . import Case, Image

_PLANES = Image((2, 3), torch.float64, device="meta")

CORPUS = {
    # fake kernels answered with memory that nobody had written
    "some tensors without values": Case(
        "unpool", Image((2, 3, 4, 6), torch.float64), Image(()), weight=_PLANES
    ),
    # an IndexError from within
    "a number without values": Case("loss_map", Image((), device="meta"), Image((), like="same")),
}
