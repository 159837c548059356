"""Faults planted in the CUDA kernel one at a time, to show that the tests see them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from . import ROOT


@dataclass(frozen=True)
class Mutation:
    """`old` becomes `new`; seen by wrong "values" (or a failed barrier), or by a sanitizer."""

    old: str
    new: str
    seen_by: str = "values"


_SYNC = "        __syncthreads();\n"

MUTATIONS = {
    "no barrier before windows": Mutation(
        "      if (y < last_y_) {  // below, derivatives are zero\n" + _SYNC,
        "      if (y < last_y_) {\n",
        "thread",
    ),
    "no barrier between the steps": Mutation(
        "        filter_derivatives_down(y);\n" + _SYNC,
        "        filter_derivatives_down(y);\n",
        "thread",
    ),
    "no barrier before a plane's sum": Mutation(
        "      sums_[i] = sum;\n    }\n    __syncthreads();\n",
        "      sums_[i] = sum;\n    }\n",
        "thread",
    ),
    "no barrier within the sum of parts": Mutation(
        "      sums[thread] = mine;\n    }\n    __syncthreads();\n",
        "      sums[thread] = mine;\n    }\n",
        "thread",
    ),
    "no barrier after a tile's pixels": Mutation(
        "    prepare();\n    __syncthreads();\n", "    prepare();\n", "thread"
    ),
    "a barrier that some threads miss": Mutation(
        "        filter_derivatives_down(y);\n" + _SYNC,
        "        filter_derivatives_down(y);\n        if (thread() % 2 == 0) __syncthreads();\n",
    ),
    "halo one short": Mutation("last_x_ = x1_ + after;", "last_x_ = x1_ + after - 1;"),
    "tap mirrored": Mutation("kAdjoint ? halo() - k : k]", "kAdjoint ? halo() - 1 - k : k]"),
    "indices swapped": Mutation(
        "* p_.input_stride[2] + x * p_.input_stride[3]",
        "* p_.input_stride[3] + x * p_.input_stride[2]",
    ),
    "a tile writes beyond itself": Mutation(
        "in_tile_ = owner_ && x_ >= x0_ && x_ < x1_;", "in_tile_ = owner_ && x_ >= x0_;"
    ),
    "last band unguarded": Mutation(
        "y1_ = least(y0_ + g_.band_h, height);", "y1_ = y0_ + g_.band_h;", "address"
    ),
    "last block's planes unguarded": Mutation(
        "planes_ = least(g_.planes, static_cast<int>(Int64(g_.n) * g_.c - plane));",
        "planes_ = g_.planes;",
        "address",
    ),
    "a sum counted twice": Mutation(
        "static_cast<unsigned>(x + i - x0_) < own", "static_cast<unsigned>(x + i - x0_ + 1) <= own"
    ),
    "parts added up too soon": Mutation(
        "atomicAdd(p_.arrived, 1u) + 1 == g_.parts()",
        "atomicAdd(p_.arrived, 1u) + 2 == g_.parts()",
    ),
    "parts counted on from the last launch": Mutation(
        "    if (thread() == 0) *p_.arrived = 0;\n", ""
    ),
    "padding missing": Mutation("    if (y < last_y_) fill_outside();", "    (void)0;"),
    "wrong plane": Mutation("stride[0] + c * stride[1]", "stride[0] + (c + n) * stride[1]"),
    "rows not shifted": Mutation("u_[i] = u_[i + kRows];", "u_[i] = u_[i + kRows - 1];"),
    "a tile's pixels one row short": Mutation(
        "const int from = pixels_from_, rows = step() + kHalo;",
        "const int from = pixels_from_, rows = step() + kHalo - 1;",
    ),
    "zeros above the map forgotten": Mutation("is_zero = from < first ||", "is_zero ="),
    "earlier derivatives forgotten": Mutation(
        "kept_[map][row] = x[row + kRows];", "kept_[map][row] = A(0);"
    ),
    "shared memory one row short": Mutation(
        "g.derivatives = maps * g.rows() * g.derivatives_row;",
        "g.derivatives = maps * g.rows() * g.derivatives_row - g.derivatives_row;",
    ),
    "offset of 32 bits": Mutation(
        "return n * stride[0] + c",
        "return static_cast<signed char>(n * stride[0]) + c",
    ),
}


def planted(name: str, folder: Path) -> Path:
    """A copy of csrc with one fault; each must be there once."""
    mutation = MUTATIONS[name]
    csrc = folder / "csrc"
    shutil.copytree(ROOT / "csrc", csrc)
    found = [file for file in sorted(csrc.glob("ssim_cuda*.h")) if mutation.old in file.read_text()]
    assert len(found) == 1, f"{name}: in {len(found)} files"
    text = found[0].read_text()
    assert text.count(mutation.old) == 1, f"{name}: found {text.count(mutation.old)} times"
    found[0].write_text(text.replace(mutation.old, mutation.new))
    return csrc
