"""Faults planted in the CUDA kernels one at a time, to show that the tests see them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from . import CSRC


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
    "no barrier after the rows below the map": Mutation(
        "        clear_across();\n" + _SYNC, "        clear_across();\n", "thread"
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
    "halo one short": Mutation("last_x_ = x1_ + right;", "last_x_ = x1_ + right - 1;"),
    "tap mirrored": Mutation("kAdjoint ? halo_x() - k : k]", "kAdjoint ? halo_x() - 1 - k : k]"),
    "one window for both axes": Mutation(
        "p_.window_x[kAdjoint ? halo_x() - k : k]", "p_.window_y[kAdjoint ? halo_x() - k : k]"
    ),
    "one padding for both axes": Mutation(
        "g.pad_x = valid ? 0 : g.halo_x() / 2;", "g.pad_x = g.pad_y;"
    ),
    "one halo for both axes": Mutation(
        "int halo_x() const { return kTaps > 0 ? kHalo : g_.halo_x(); }",
        "int halo_x() const { return kTaps > 0 ? kHalo : g_.halo_y(); }",
    ),
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
    "wrong plane": Mutation("stride[0] + c * stride[1];", "stride[0] + (c + n) * stride[1];"),
    "rows not shifted": Mutation("u_[i] = u_[i + kRows];", "u_[i] = u_[i + kRows - 1];"),
    "a tile's pixels one row short": Mutation(
        "const int from = pixels_from_, rows = step() + kHalo;",
        "const int from = pixels_from_, rows = step() + kHalo - 1;",
    ),
    "zeros above the map forgotten": Mutation("is_zero = from < first ||", "is_zero ="),
    "earlier derivatives forgotten": Mutation(
        "kept_[map][i] = kept_[map][i + kRows];", "kept_[map][i] = A(0);"
    ),
    "derivatives below the map not cleared": Mutation("        clear_across();\n" + _SYNC, _SYNC),
    "derivatives beside the map not cleared": Mutation(
        "          if (!is_outside(x + i)) continue;", "          if (is_outside(x + i)) continue;"
    ),
    "shared memory one row short": Mutation(
        "g.derivatives = maps * g.rows() * g.derivatives_row;",
        "g.derivatives = maps * g.rows() * g.derivatives_row - g.derivatives_row;",
    ),
    "the middle pixel as pivot": Mutation(
        "return x[2] < low ? low : x[2] < high ? x[2] : high;", "return low < high ? x[1] : high;"
    ),
    "a pivot far out of range": Mutation(
        "found = pixels(k, a[0], b[0]) && take(a[0], b[0], inverse_range, size);",
        "found = true;",
    ),
    "kind ignored in the value": Mutation("delta<A>(t, kind(), A(1))", "delta<A>(t)"),
    "kind ignored in the gradient": Mutation(
        "derivatives<A>(t, m, kind(), A(0.5), A(1))", "derivatives<A>(t, m, A(0.5))"
    ),
    "a weight ignored in the sum": Mutation(
        "sum += kExtra ? weight * loss : loss;", "sum += loss;"
    ),
    "a weight of the next window": Mutation(
        "(x + i) * p_.weight_stride[3]", "(x + i + 1) * p_.weight_stride[3]", "address"
    ),
    "a term's pixel counted twice at the end of a tile": Mutation(
        "x0_ < x1_ && x1_ == g_.out_w ? g_.w : x1_) - x0_",
        "x0_ < x1_ && x1_ == g_.out_w ? g_.w : least(x1_ + 1, g_.w)) - x0_",
    ),
    "terms of an empty tile": Mutation("x0_ < x1_ && x1_ == g_.out_w", "x1_ == g_.out_w"),
    "terms beside the map forgotten": Mutation("y1_ == g_.out_h ? g_.h : y1_", "y1_"),
    "terms of a tile's first row forgotten": Mutation(
        "        if (has_terms()) {\n          sums.add(",
        "        if (has_terms() && y + i > y0_) {\n          sums.add(",
    ),
    "terms of the row below a band": Mutation(
        "      if (static_cast<unsigned>(y + i - y0_) <",
        "      if (has_terms() && y + i == y1_) sums.add(difference[i % kTermRows]);\n"
        "      if (static_cast<unsigned>(y + i - y0_) <",
    ),
    "terms of every step's first rows": Mutation(
        "    return {y, y + step()", "    return {y0_, y + step()"
    ),
    "halves of a band's last rows forgotten": Mutation(
        "least(y - g_.pad_y + step(), y1_)};", "least(y - g_.pad_y + step(), y1_ - 1)};"
    ),
    "halves of pixels that another tile has": Mutation(
        "first_j = (x0_ + p_.pool_x) / 2", "first_j = (x0_ + 1 + p_.pool_x) / 2"
    ),
    "halves that begin in the image": Mutation("left = 2 * j - p_.pool_x", "left = 2 * j"),
    "a half read before the image": Mutation(
        "if (y + below < 0 || x + beside < 0)", "if (y + below < 0 || x + beside < -1)", "address"
    ),
    "one half for both images": Mutation(
        "mean_of_four(c.target, p_.target_stride,", "mean_of_four(c.input, p_.input_stride,"
    ),
    "a half beyond its rows": Mutation("* pooled_h + i)", "* (pooled_h + 1) + i)", "address"),
    "a factor for all planes": Mutation("c * p.factor_stride[1]", "0"),
    "carried back to the first column alone": Mutation(
        "A(0.25) * p.grad_pooled", "A(x % 2 == 0 ? 0.25 : 0) * p.grad_pooled"
    ),
    "a half's offset forgotten on the way back": Mutation("j = (x + p.pool_x) / 2", "j = x / 2"),
    "carried back from beyond the half": Mutation(" && j < (p.w + p.pool_x) / 2", "", "address"),
    "a row's second block forgotten": Mutation("part * p.threads", "part * 0"),
    "a mask ignored by windows": Mutation(
        "= share * statistic(map, u, v)", "= (share > 0 ? 1 : 0) * statistic(map, u, v)"
    ),
    "seen above the image": Mutation(
        "c.mask[y * p_.mask_stride[2]] : A(0);", "c.mask[y * p_.mask_stride[2]] : A(1);"
    ),
    "seen beside the image": Mutation("u = has_mask() ? A(0) :", "u = has_mask() ? A(0.5) :"),
    "the next window's coverage": Mutation(
        "(x + i) * p_.coverage_stride[3]", "(x + i + 1) * p_.coverage_stride[3]", "address"
    ),
    "a window that does not count": Mutation(
        "if (has_mask() && !(coverage > A(0))) loss", "if (has_mask() && coverage < A(0)) loss"
    ),
    "coverage forgotten on the way back": Mutation(
        "weight *= coverage;\n            d = {", "d = {"
    ),
    "a gradient to what is masked": Mutation(
        "? share * grad : A(0); };\n        const A from_u",
        "? grad : A(0); };\n        const A from_u",
    ),
    "sign of l1's gradient": Mutation("+ p_.grad_distance * sign", "- p_.grad_distance * sign"),
    "sign of the terms' gradient to the target": Mutation(
        "to_target - from_terms", "to_target + from_terms"
    ),
    "terms of one lane": Mutation(
        "j = i % kLanes; j < threads; j += kLanes) sum += lanes[j]",
        "j = i % kLanes; j < kLanes; j += kLanes) sum += lanes[j]",
    ),
    "squares in place of distances": Mutation(
        "sum_of_lanes(lanes_of_term(1))", "sum_of_lanes(lanes_of_term(0))"
    ),
    "terms before a tile's gradient": Mutation(
        "kMaps > 0 && kIsTile && kExtra) filter", "kMaps > 0 && kIsTile && kExtra && false) filter"
    ),
    "no barrier before the terms' sums": Mutation(
        "    lanes_of_term(1)[thread()] = term_sums_.distances;\n    __syncthreads();\n",
        "    lanes_of_term(1)[thread()] = term_sums_.distances;\n",
        "thread",
    ),
    "no barrier before the terms": Mutation(
        "    __syncthreads();\n    lanes_of_term(0)", "    lanes_of_term(0)", "thread"
    ),
    "offset of 32 bits": Mutation(
        "return n * stride[0] + c * stride[1];",
        "return static_cast<signed char>(n * stride[0]) + c * stride[1];",
    ),
}


VOLUME_MUTATIONS = {
    "a mask ignored by windows": Mutation("* (share * s.of[map])", "* s.of[map]"),
    "seen outside the volume": Mutation(
        "has_mask() ? A(0) : A(1);  // outside", "A(1);  // outside"
    ),
    "the next window's coverage": Mutation(
        "offset(p_.coverage_stride, z, y, x)", "offset(p_.coverage_stride, z, y, x + 1)", "address"
    ),
    "a window that does not count": Mutation(
        "if (!(coverage > A(0))) loss = A(0);", "if (coverage < A(0)) loss = A(0);"
    ),
    "coverage forgotten on the way back": Mutation("weight *= coverage;\n        // one", "// one"),
    "a gradient to what is masked": Mutation(
        "? share * grad : A(0); };\n    const A scale", "? grad : A(0); };\n    const A scale"
    ),
    "a weight ignored in the sum": Mutation("sum_.add(weight * loss)", "sum_.add(loss)"),
    "no barrier after the pixels": Mutation(
        "      leave_pixels();\n      __syncthreads();\n", "      leave_pixels();\n", "thread"
    ),
    "no barrier before the filter down": Mutation(
        "      filter_pixels_across();\n      __syncthreads();\n",
        "      filter_pixels_across();\n",
        "thread",
    ),
    "no barrier before the derivatives' filter": Mutation(
        "        if (any) {\n          __syncthreads();\n",
        "        if (any) {\n",
        "thread",
    ),
    "no barrier before the gradient": Mutation(
        "          filter_derivatives_across();\n          __syncthreads();\n",
        "          filter_derivatives_across();\n",
        "thread",
    ),
    "no barrier before the sums": Mutation(
        "    __syncthreads();  // slice and across are read no more\n", "", "thread"
    ),
    "no barrier within the sum of parts": Mutation(
        "      sums[thread] = mine;\n    }\n    __syncthreads();\n",
        "      sums[thread] = mine;\n    }\n",
        "thread",
    ),
    "no barrier after where the block works": Mutation(
        "    start();\n    __syncthreads();\n    const int first = place_",
        "    start();\n    const int first = place_",
        "thread",
    ),
    "no barrier with other windows": Mutation(
        "          filter_along_z(z - g_.pad[kZ]);\n          __syncthreads();\n",
        "          filter_along_z(z - g_.pad[kZ]);\n",
        "thread",
    ),
    "a barrier that some threads miss": Mutation(
        "          filter_derivatives_across();\n          __syncthreads();\n",
        "          filter_derivatives_across();\n          if (thread() % 2) __syncthreads();\n",
    ),
    "halo of windows one short": Mutation(
        "to.last[axis] = least(to.end[axis] + (kMaps > 0 ? g_.pad[axis] : 0), g_.out[axis]);",
        "to.last[axis] = least(to.end[axis] + (kMaps > 0 ? g_.pad[axis] - 1 : 0), g_.out[axis]);",
    ),
    "halo of pixels one short": Mutation(
        "y < place_->last[kY] - g_.pad[kY] + kHalo", "y < place_->last[kY] - g_.pad[kY] + kHalo - 1"
    ),
    "unfinished windows off by one": Mutation(
        "tap<kAdjoint>(kZ, kHalo - 1 - i) * x", "tap<kAdjoint>(kZ, kHalo - i) * x"
    ),
    "unfinished windows forgotten": Mutation(
        "unfinished[i] = unfinished[i + 1] + ", "unfinished[i] = "
    ),
    "unfinished gradients off by one": Mutation(
        "(k > 0 ? unfinished[stride] : A(0)) + tap<true>(kZ, k) * x",
        "(k > 0 ? unfinished[stride] : A(0)) + tap<true>(kZ, k + 1) * x",
    ),
    "one slice too few before the first window": Mutation(
        "for (int z = first - kHalo; z < end; ++z) {",
        "for (int z = first - kHalo + (kFast ? 1 : 0); z < end; ++z) {",
    ),
    "pad along z missing": Mutation(
        "m.of[map] = advance<false>(unfinished_[j][map], x[j].of[map])",
        "m.of[map] = advance<false>(unfinished_[j][map], is_inside ? x[j].of[map] : A(0))",
    ),
    "gradients of the last slices missing": Mutation(
        "const int end = kMaps > 0 ? place_->end[kZ] + g_.pad[kZ] : last;", "const int end = last;"
    ),
    "a pivot far out of range": Mutation(
        "found = pixels(k, a[0], b[0]) && take(a[0], b[0], inverse_range, size);",
        "found = true;",
    ),
    "pivot not added back": Mutation(
        "terms<A>(m, pivot_u(), pivot_v(), p_.c1", "terms<A>(m, A(0), pivot_v(), p_.c1"
    ),
    "a window counted twice": Mutation(
        "return i >= place_->begin[axis] && i < place_->end[axis];",
        "return i >= place_->begin[axis] && i <= place_->end[axis];",
    ),
    "taps of another axis": Mutation(
        "out[j].of[map] += tap<false>(kY, i - j)", "out[j].of[map] += tap<false>(kY, i - j + 1)"
    ),
    "strides swapped": Mutation(
        "z * stride[2] + y * stride[3] +", "z * stride[3] + y * stride[2] +"
    ),
    "a tile writes beyond itself": Mutation(
        "if (!is_own(kZ, z) || y >= place_->end[kY] || x >= place_->end[kX]) return;",
        "if (!is_own(kZ, z) || x >= place_->end[kX]) return;",
        "address",
    ),
    "windows beside the map count": Mutation(
        "if (y >= 0 && y < place_->last[kY] && x >= 0 &&", "if (y >= 0 && y < place_->last[kY] &&"
    ),
    "parts added up too soon": Mutation("arrived == g_.parts() ?", "arrived + 1 == g_.parts() ?"),
    "parts counted on from the last launch": Mutation("      p_.arrived[0] = 0;\n", ""),
    "shared memory too small": Mutation(
        "g.across = round_up_4(most(g.across, 2 * g.threads));",
        "g.across = round_up_4(g.across - 64);",
        "address",
    ),
    "offset of 32 bits": Mutation(
        "to.input = n * p_.input_stride[0]",
        "to.input = static_cast<signed char>(n * p_.input_stride[0])",
    ),
}


def planted(name: str, folder: Path, mutations: dict[str, Mutation]) -> Path:
    """A copy of csrc with one fault; each must be there once."""
    mutation = mutations[name]
    csrc = folder / "csrc"
    shutil.copytree(CSRC, csrc)
    headers = [*csrc.glob("ssim_cuda*.h"), csrc / "ssim_math.h"]
    found = [file for file in headers if mutation.old in file.read_text()]
    assert len(found) == 1, f"{name}: in {len(found)} files"
    text = found[0].read_text()
    assert text.count(mutation.old) == 1, f"{name}: found {text.count(mutation.old)} times"
    found[0].write_text(text.replace(mutation.old, mutation.new))
    return csrc
