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
    "no barrier within the sum": Mutation(
        "upper + j];\n      }\n      __syncthreads();", "upper + j];\n      }", "thread"
    ),
    "no barrier within the sum of parts": Mutation(
        "sums[upper + thread];\n    __syncthreads();", "sums[upper + thread];", "thread"
    ),
    "a barrier that some threads miss": Mutation(
        "        filter_derivatives_down(y);\n" + _SYNC,
        "        filter_derivatives_down(y);\n        if (owner_) __syncthreads();\n",
    ),
    "halo one short": Mutation(
        "last_x_ = least(x1_ + after, g_.out_w);", "last_x_ = least(x1_ + after - 1, g_.out_w);"
    ),
    "tap mirrored": Mutation("? kTaps : g_.taps) - 1 - k : k]", "? kTaps : g_.taps) - 2 - k : k]"),
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
        "planes_ = left < g_.planes ? static_cast<int>(left) : g_.planes;",
        "planes_ = left > 0 ? g_.planes : 0;",
        "address",
    ),
    "a sum counted twice": Mutation(
        "x + i >= x0_ && x + i < x1_) sum += loss;", "x + i >= x0_ - 1 && x + i < x1_) sum += loss;"
    ),
    "parts added up a block too soon": Mutation(
        "return *before == g_.blocks - 1;", "return *before == g_.blocks - 2;"
    ),
    "blocks counted on from the last launch": Mutation(
        "      if (*before == g_.blocks - 1) *p_.arrived = 0;\n", ""
    ),
    "padding missing": Mutation("    if (y < last_y_) fill_outside();", "    (void)0;"),
    "wrong plane": Mutation("c % channels * stride[1]", "c * stride[1]"),
    "rows not shifted": Mutation("u_[i] = u_[i + kStep];", "u_[i] = u_[i + kStep - 1];"),
    "earlier derivatives forgotten": Mutation(
        "kept_[map][row] = x[row + kStep];", "kept_[map][row] = A(0);"
    ),
    "shared memory one row short": Mutation(
        "g.derivatives = maps * g.rows() * g.derivatives_row;",
        "g.derivatives = maps * g.rows() * g.derivatives_row - g.derivatives_row;",
    ),
    "offset of 32 bits": Mutation(
        "return (first_n_ + c / channels) * stride[0]",
        "return static_cast<signed char>((first_n_ + c / channels) * stride[0])",
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
