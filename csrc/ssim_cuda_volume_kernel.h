// The CUDA kernel for volumes: value, map and gradients of 1 - SSIM over windows of three axes, in
// one pass over the volumes. Made of the pieces of ssim_cuda_kernel.h, and like it without torch,
// CUDA's library or the host.
//
// A block makes a tile of y and x of one volume and streams along z. In 'same' padding, 11 taps:
//
//          y, x: one slice                              z: what a thread keeps in registers
//
//      36 pixels: u, v                           slice z + 5 arrives  ----+
//     +---------------------+                                            v
//     |  26 windows:        |                    10 unfinished windows  [ z-4 ... z+5 ]
//     |  moments, formula,  |                                            |
//     |  +---------------+  |                    windows of z complete <-+
//     |  | derivatives   |  |                      -> formula -> derivatives
//     |  |  +---------+  |  |                                            |
//     |  |  | 16 x 16 |  |  |                                            v
//     |  |  | gradient|  |  |                    10 unfinished slices of
//     |  |  +---------+  |  |                       the gradient     [ z-5 ... z+4 ]
//     |  +---------------+  |                                            |
//     +---------------------+                    gradient of z - 5     <-+   -> memory
//
// For each slice, with a barrier after each of the first four:
//
//     pixels     u and v, which were on their way to registers meanwhile       -> slice
//     across     a thread filters 3 neighbours of a row of u, v, u^2, v^2      -> across
//     down       a thread filters 2 windows of a column and adds them to its
//                unfinished windows: acc[i] = acc[i + 1] + tap * x, so that
//                moving on costs nothing; then the formula (ssim_math.h)       -> slice
//     across     4 neighbours of a row of derivatives (8 for both images)      -> across
//     down       a thread filters one pixel of them, adds it to its unfinished
//                gradients in the same way, combines it with u and v           -> memory
//
// A value or a map needs the first three, with no halo of windows: its tile is all 26 x 26.
// Axes commute; z comes last both ways, where fewest numbers are left to keep.
//
// Counted for each voxel of a gradient of one image, float32, a full tile, the halo along z left
// out: 513 multiply-adds (161 + 116 + 116 to the moments, 54 + 33 + 33 back; without halo 231); 184
// words of shared memory (48 by `across` and 63 by `down` to the moments, 22 and 33 back, 18 for
// pixels and derivatives); device memory: 12 bytes, and 40 from the cache, since 5.1 blocks read
// each pixel, and one of them twice. Of a window of a value: 149 multiply-adds, 46 words, 8 bytes
// and 7 from the cache.
//
// A thread's unfinished numbers are 2 x 4 x 10 of windows and 3 x 10 of gradients (4 x 10 for both
// images), in 168 registers: a multiprocessor has room for one block of 11 warps. One window a
// thread would be 22 warps with 70 such numbers in 88 registers, which spill. Shared memory: 27 KB.
// A volume with few tiles is cut along z as well; each cut makes 20 slices of pixels and 10 of
// windows twice.
//
// Windows of other lengths, which may differ by axis: along z first, read again from memory for
// each slice of windows, then as above with bounds that the launch knows; unfinished gradients lie
// in shared memory. The same for what few calls ask for, whatever the window: masks, weights in a
// sum, whole numbers. A float64 with 11 taps has one window a thread and tiles of 6 x 6.
//
// Sums: one for each block (a part); the block that finishes last adds them up in a fixed order, as
// in ssim_cuda_kernel.h. Offsets are 64-bit.
#pragma once

#include "ssim_cuda_kernel.h"
#include "ssim_cuda_volume_geometry.h"

namespace ssim_fused {

// what a launch is given
template <typename A>
struct VolumeProblem {
  VolumeGeometry g;
  const void* input;   // [N, C, D, H, W]
  const void* target;  // [N, C, D, H, W]
  const A* weight;     // [N, C, OD, OH, OW]: is_weighted tasks; sums where it is not null
  const A* mask;       // [N, C, D, H, W]: how much of each voxel is seen; or null
  const A* coverage;   // [N, C, OD, OH, OW]: 1 / how much a window sees; 0 where it does not count
  void* map;           // [N, C, OD, OH, OW], contiguous
  void* grad_input;    // [N, C, D, H, W]
  void* grad_target;   // [N, C, D, H, W]
  A* parts;            // [N, C, blocks along z, y, x]: sums of the map
  A* value;            // value_scale * all of them; null where they are added up later
  unsigned* arrived;   // parts that are there: 0 before a launch, and again after it
  double value_scale;
  Int64 input_stride[5], target_stride[5], weight_stride[5], mask_stride[5], coverage_stride[5];
  Int64 grad_input_stride[5], grad_target_stride[5];
  A c1, c2, inverse_range, grad_scale;
  Kind kind;
  A window[3][kMostTaps];  // along z, y, x
};

#if !defined(__CUDACC_RTC__)

// Calls launch.operator()<kFast, kTask>() with the kernel that serves a task.
template <typename T, typename Launch>
void dispatch_volume(Task task, const VolumeGeometry& g, Launch&& launch) {
  const auto with_taps = [&]<Task kTask>() {
    if constexpr (kHasGradient<T>) {
      if (g.fast) return launch.template operator()<true, kTask>();
    }
    if constexpr (kHasGradient<T> || derivative_maps(kTask) == 0) {
      launch.template operator()<false, kTask>();
    }
  };
  with_task(task, with_taps);
}

#endif  // host

// ---- device ----

#if defined(__CUDACC__) || defined(__CUDACC_RTC__) || defined(SSIM_CUDA_EMULATOR)

// Where a block works. In shared memory: each thread has better use for its registers.
struct Place {
  // First and one past the last: of the tile (gradient pixels, or windows for a value), and of the
  // windows that it needs, which start outside the map but for z, and end within it.
  int begin[3], end[3], first[3], last[3];
  unsigned volume;
  Int64 input, target, weight, mask, coverage, grad_input, grad_target;  // where the volume starts
};
static_assert(sizeof(Place) == kPlaceBytes);

// the four statistics of a voxel, read at once
template <typename A>
struct alignas(16) Statistics {
  A of[4];
};

template <typename T, bool kFast, Task kTask>
class VolumeBlock {
  using A = typename Accumulate<T>::type;
  using Stored = typename MapOf<T>::type;
  static constexpr int kBytes = sizeof(A);
  static constexpr int kMaps = derivative_maps(kTask);
  static constexpr bool kBoth = kMaps == 4;
  static constexpr int kTaps = kFast ? kFastTaps : 0;
  static constexpr int kHalo = kFast ? kFastTaps - 1 : 0;
  // lengths of arrays, which must have some
  static constexpr int kOut = kMaps > 0 ? kMaps : 1, kUnfinished = kFast ? kHalo : 1;
  static constexpr int kTile = volume_tile(kBytes);
  static constexpr int kWindows = volume_windows(kBytes), kPixels = volume_pixels(kBytes);
  static constexpr int kOwn = volume_own(kBytes), kRun = volume_run(kBytes);
  static constexpr int kRuns = (kWindows + kRun - 1) / kRun;
  static constexpr int kLoads = (kPixels + kVolumeLoadRows - 1) / kVolumeLoadRows;
  // unfinished gradients lie in registers; a double's are full of unfinished windows
  static constexpr bool kKeeps = kFast && kMaps > 0 && kBytes == 4;
  // the next pixels are on their way while these are filtered, but where weights need the room
  static constexpr bool kAhead = !is_weighted(kTask);
  static constexpr int kGradientRun = volume_gradient_run(kBytes, kMaps);

  const VolumeProblem<A>& p_;
  const VolumeGeometry& g_;
  A *slice_, *across_, *history_, *pivots_;
  Place* place_;
  ExactSum<A> sum_;

  // 11 taps: what this thread keeps from slice to slice
  A unfinished_[kFast ? kOwn : 1][4][kUnfinished];
  A unfinished_gradient_[kKeeps ? kMaps : 1][kKeeps ? kHalo : 1];
  T input_[kFast ? kLoads : 1], target_[kFast ? kLoads : 1];  // pixels on their way

 public:
  SSIM_DEVICE VolumeBlock(const VolumeProblem<A>& p, unsigned char* shared) : p_(p), g_(p.g) {
    slice_ = reinterpret_cast<A*>(shared);
    across_ = slice_ + g_.slice;
    history_ = across_ + g_.across;
    pivots_ = history_ + g_.history;
    place_ = reinterpret_cast<Place*>(pivots_ + kPivotWords + kFlagWords);
  }

  SSIM_DEVICE void run() {
    start();
    __syncthreads();
    const int first = place_->first[kZ], last = place_->last[kZ];
    const int end = kMaps > 0 ? place_->end[kZ] + g_.pad[kZ] : last;
    if constexpr (kFast && kAhead) fetch(first - g_.pad[kZ]);
    // z: of the windows that the next slice of pixels completes; the first slices complete none
    for (int z = first - kHalo; z < end; ++z) {
      const bool any = z < last;  // below, derivatives are zero
      if (any) {
        if constexpr (kFast) {
          stream_windows(z);
        } else {
          filter_along_z(z - g_.pad[kZ]);
          __syncthreads();
          filter_across();
          __syncthreads();
          make_windows(z);
        }
      }
      if constexpr (kMaps > 0) {
        if (z < first) continue;
        if (any) {
          __syncthreads();
          filter_derivatives_across();
          __syncthreads();
        }
        make_gradient(z - g_.pad[kZ], any);
      }
    }
    if constexpr (makes_sums(kTask)) add_up();
  }

 private:
  SSIM_DEVICE static int thread() { return static_cast<int>(threadIdx.x); }
  SSIM_DEVICE int threads() const { return kFast ? volume_threads(kBytes) : g_.threads; }
  SSIM_DEVICE int halo(int axis) const { return kFast ? kHalo : g_.halo(axis); }

  // the window along an axis, or its mirror image, which carries gradients back
  template <bool kAdjoint>
  SSIM_DEVICE A tap(int axis, int k) const {
    return p_.window[axis][kAdjoint ? halo(axis) - k : k];
  }

  // one thread does this for all
  SSIM_DEVICE void locate() {
    Place& to = *place_;
    unsigned left = blockIdx.x;
    for (int axis = kX; axis >= kZ; --axis) {
      const unsigned blocks = static_cast<unsigned>(g_.blocks_of[axis]);
      const int length = kMaps > 0 ? g_.size[axis] : g_.out[axis];
      to.begin[axis] = least(static_cast<int>(left % blocks) * g_.tile[axis], length);
      to.end[axis] = least(to.begin[axis] + g_.tile[axis], length);
      left /= blocks;
      // windows of a gradient: all that hold one of its pixels
      to.first[axis] = to.begin[axis] + (kMaps > 0 ? g_.pad[axis] - halo(axis) : 0);
      to.last[axis] = least(to.end[axis] + (kMaps > 0 ? g_.pad[axis] : 0), g_.out[axis]);
    }
    to.first[kZ] = most(to.first[kZ], 0);
    to.volume = left;
    const unsigned n = left / static_cast<unsigned>(g_.c), c = left % static_cast<unsigned>(g_.c);
    to.input = n * p_.input_stride[0] + c * p_.input_stride[1];
    to.target = n * p_.target_stride[0] + c * p_.target_stride[1];
    to.weight = n * p_.weight_stride[0] + c * p_.weight_stride[1];
    to.mask = n * p_.mask_stride[0] + c * p_.mask_stride[1];
    to.coverage = n * p_.coverage_stride[0] + c * p_.coverage_stride[1];
    to.grad_input = n * p_.grad_input_stride[0] + c * p_.grad_input_stride[1];
    to.grad_target = n * p_.grad_target_stride[0] + c * p_.grad_target_stride[1];
  }

  SSIM_DEVICE void start() {
    sum_ = {A(0), A(0)};
    if constexpr (kFast) {
#pragma unroll
      for (int i = 0; i < kHalo; ++i) {
#pragma unroll
        for (int j = 0; j < kOwn * 4; ++j) unfinished_[j / 4][j % 4][i] = A(0);
#pragma unroll
        for (int map = 0; kKeeps && map < kMaps; ++map) unfinished_gradient_[map][i] = A(0);
      }
    }
    for (int i = thread(); i < g_.history; i += threads()) history_[i] = A(0);
    if (thread() == 0) {
      locate();
      choose_pivots();
      *flag() = 0;
    }
  }

  // set in the block that leaves the last part
  SSIM_DEVICE unsigned* flag() const { return reinterpret_cast<unsigned*>(pivots_ + kPivotWords); }

  SSIM_DEVICE static Int64 offset(const Int64 (&stride)[5], int z, int y, int x) {
    return z * stride[2] + y * stride[3] + x * stride[4];
  }
  SSIM_DEVICE const T* input() const { return static_cast<const T*>(p_.input) + place_->input; }
  SSIM_DEVICE const T* target() const { return static_cast<const T*>(p_.target) + place_->target; }

  SSIM_DEVICE bool has_mask() const { return !kFast && p_.mask != nullptr; }
  SSIM_DEVICE bool has_weight() const {
    return is_weighted(kTask) || (!kFast && makes_sums(kTask) && p_.weight != nullptr);
  }
  // how much of a voxel of the volume is seen
  SSIM_DEVICE A seen(int z, int y, int x) const {
    return p_.mask[place_->mask + offset(p_.mask_stride, z, y, x)];
  }

  // as unsigned numbers, what lies in front of an axis lies beyond it
  SSIM_DEVICE static bool is_within(int i, int length) {
    return static_cast<unsigned>(i) < static_cast<unsigned>(length);
  }

  // ---- pixels ----

  // the voxels that a pivot may be made of; false where they are masked and have no part in anything
  SSIM_DEVICE bool pivot_voxels(int k, A& a, A& b) const {
    int at[3];
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
      // a window of 'valid' padding starts where it is counted
      const int ahead = kMaps == 0 && g_.pad[axis] == 0 ? halo(axis) / 2 : 0;
      at[axis] =
          least(pivot_place(place_->begin[axis], place_->end[axis], k) + ahead, g_.size[axis] - 1);
    }
    a = to_arithmetic(input()[offset(p_.input_stride, at[kZ], at[kY], at[kX])]);
    b = to_arithmetic(target()[offset(p_.target_stride, at[kZ], at[kY], at[kX])]);
    return !has_mask() || seen(at[kZ], at[kY], at[kX]) > A(0);
  }

  // What is taken away from all of the tile: bright flat areas keep their digits. Where every window
  // sees the zeros over the edge there is nothing to gain.
  SSIM_DEVICE void choose_pivots() {
    Pivot<A> pivot;
    const bool is_large =
        g_.size[kZ] >= g_.taps[kZ] && g_.size[kY] >= g_.taps[kY] && g_.size[kX] >= g_.taps[kX];
    if (has_mask() || is_large) {
      const auto voxels = [&](int k, A& a, A& b) { return pivot_voxels(k, a, b); };
      pivot.choose(voxels, p_.inverse_range);
    }
    // in the images' units: scaled here, they would cost registers that sm_90 spills
    pivots_[0] = pivot.input;
    pivots_[1] = pivot.target;
    pivots_[2] = pivot.input - pivot.target;
  }
  SSIM_DEVICE A pivot_u() const { return (pivots_[0] + pivots_[1]) * p_.inverse_range; }
  SSIM_DEVICE A pivot_v() const { return pivots_[2] * p_.inverse_range; }

  // u and v of two pixels, pivots taken away: x + y would round away the digits of large pixels, so
  // pivots come first there; x - y is exact for volumes that are near each other
  SSIM_DEVICE Pack<A, 2> sum_and_difference(T input, T target) const {
    const A a = to_arithmetic(input), b = to_arithmetic(target);
    return {{((a - pivots_[0]) + (b - pivots_[1])) * p_.inverse_range,
             ((a - b) - pivots_[2]) * p_.inverse_range}};
  }

  SSIM_DEVICE static Statistics<A> statistics(A u, A v) { return {{u, v, u * u, v * v}}; }

  // ---- 11 taps: from pixels to the moments of a slice ----

  // Reads the pixels of slice z on their way to shared memory: a thread has a column of the tile
  // and every ninth row. Outside the volume lies zero.
  SSIM_DEVICE void fetch(int z) {
    const int row = thread() / kPixels;
    const int x = place_->first[kX] - g_.pad[kX] + thread() - row * kPixels;
    int y = place_->first[kY] - g_.pad[kY] + row;
    const bool is_needed = row < kVolumeLoadRows && is_within(z, g_.size[kZ]) &&
                           is_within(x, g_.size[kX]) && x < place_->last[kX] - g_.pad[kX] + kHalo;
    const T* from_input = input() + offset(p_.input_stride, z, y, x);
    const T* from_target = target() + offset(p_.target_stride, z, y, x);
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      input_[i] = target_[i] = T{};
      if (is_needed && is_within(y, g_.size[kY]) && y < place_->last[kY] - g_.pad[kY] + kHalo) {
        input_[i] = *from_input;
        target_[i] = *from_target;
      }
      y += kVolumeLoadRows;
      from_input += kVolumeLoadRows * p_.input_stride[3];
      from_target += kVolumeLoadRows * p_.target_stride[3];
    }
  }

  SSIM_DEVICE void leave_pixels() {
    const int row = thread() / kPixels;
    Pack<A, 2>* to = reinterpret_cast<Pack<A, 2>*>(slice_) + row * volume_pixels_row(kBytes) +
                     (thread() - row * kPixels);
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      if (row < kVolumeLoadRows && row + i * kVolumeLoadRows < kPixels) {
        to[i * kVolumeLoadRows * volume_pixels_row(kBytes)] =
            sum_and_difference(input_[i], target_[i]);
      }
    }
  }

  // adds one slice of pixels to the windows that hold it, and makes those of z, which it completes
  SSIM_DEVICE void stream_windows(int z) {
    const int slice = z + kHalo - g_.pad[kZ];
    const bool is_inside = is_within(slice, g_.size[kZ]);
    if (is_inside) {
      if constexpr (!kAhead) fetch(slice);
      leave_pixels();
      __syncthreads();
    }
    if constexpr (kAhead) {
      if (z + 1 < place_->last[kZ]) fetch(slice + 1);
    }
    if (is_inside) {
      filter_pixels_across();
      __syncthreads();
    }
    // a thread's windows: neighbours of a column
    const int group = thread() / kWindows, column = thread() - group * kWindows;
    const int row = group * kOwn;
    if (row >= kWindows) return;
    Statistics<A> x[kOwn];
    if (is_inside) {
      filter_down(row, column, x);
    } else {  // zero, less the pivot
#pragma unroll
      for (int j = 0; j < kOwn; ++j) x[j] = statistics(-pivot_u(), -pivot_v());
    }
#pragma unroll
    for (int j = 0; j < kOwn; ++j) {
      Statistics<A> m;
#pragma unroll
      for (int map = 0; map < 4; ++map) {
        m.of[map] = advance<false>(unfinished_[j][map], x[j].of[map]);
      }
      if (z >= place_->first[kZ]) make_window(z, row + j, column, m);
    }
  }

  // Adds x to the ten sums under way along z and to the one that it completes, which is returned.
  template <bool kAdjoint>
  SSIM_DEVICE A advance(A (&unfinished)[kUnfinished], A x) const {
    const A done = unfinished[0] + tap<kAdjoint>(kZ, kHalo) * x;
#pragma unroll
    for (int i = 0; i < kHalo - 1; ++i) {
      unfinished[i] = unfinished[i + 1] + tap<kAdjoint>(kZ, kHalo - 1 - i) * x;
    }
    unfinished[kHalo - 1] = tap<kAdjoint>(kZ, 0) * x;
    return done;
  }

  // the same for a gradient, where the sums lie in shared memory, `stride` words apart
  SSIM_DEVICE A advance(A* unfinished, int stride, A x) const {
    A done = tap<true>(kZ, halo(kZ)) * x;
    if (halo(kZ) > 0) done += unfinished[0];
    for (int k = halo(kZ) - 1; k >= 0; --k, unfinished += stride) {
      unfinished[0] = (k > 0 ? unfinished[stride] : A(0)) + tap<true>(kZ, k) * x;
    }
    return done;
  }

  SSIM_DEVICE void filter_pixels_across() {
    const int run = thread() / kPixels, row = thread() - run * kPixels, column = run * kRun;
    if (run >= kRuns || column >= place_->last[kX] - place_->first[kX] ||
        row >= place_->last[kY] - place_->first[kY] + kHalo) {
      return;
    }
    const auto* from =
        reinterpret_cast<const Pack<A, 2>*>(slice_) + row * volume_pixels_row(kBytes) + column;
    Statistics<A> out[kRun] = {};
#pragma unroll
    for (int i = 0; i < kRun + kHalo; ++i) {
      const Statistics<A> x = statistics(from[i].lane[0], from[i].lane[1]);
#pragma unroll
      for (int j = 0; j < kRun; ++j) {
        if (i < j || i - j >= kTaps) continue;
#pragma unroll
        for (int map = 0; map < 4; ++map) out[j].of[map] += tap<false>(kX, i - j) * x.of[map];
      }
    }
    auto* to =
        reinterpret_cast<Statistics<A>*>(across_) + row * volume_moments_row(kBytes) + column;
#pragma unroll
    for (int j = 0; j < kRun; ++j) to[j] = out[j];
  }

  SSIM_DEVICE void filter_down(int row, int column, Statistics<A> (&out)[kOwn]) const {
#pragma unroll
    for (int j = 0; j < kOwn; ++j) out[j] = statistics(A(0), A(0));
    if (row >= place_->last[kY] - place_->first[kY] ||
        column >= place_->last[kX] - place_->first[kX])
      return;
    const auto* from =
        reinterpret_cast<const Statistics<A>*>(across_) + row * volume_moments_row(kBytes) + column;
#pragma unroll
    for (int i = 0; i < kOwn + kHalo; ++i) {
      const Statistics<A> x = from[i * volume_moments_row(kBytes)];
#pragma unroll
      for (int j = 0; j < kOwn; ++j) {
        if (i < j || i - j >= kTaps) continue;
#pragma unroll
        for (int map = 0; map < 4; ++map) out[j].of[map] += tap<false>(kY, i - j) * x.of[map];
      }
    }
  }

  // ---- other windows: from pixels to the moments of a slice ----

  // pixels z, z + 1 ... of each column of pixels
  SSIM_DEVICE void filter_along_z(int z) {
    const int items = g_.pixels[kY] * g_.pixels[kX];
    for (int item = thread(); item < items; item += threads()) {
      const int row = quotient(item, g_.by_pixels), column = item - row * g_.pixels[kX];
      const int y = place_->first[kY] - g_.pad[kY] + row,
                x = place_->first[kX] - g_.pad[kX] + column;
      const bool is_inside = is_within(y, g_.size[kY]) && is_within(x, g_.size[kX]);
      const T* from_input = input() + offset(p_.input_stride, z, y, x);
      const T* from_target = target() + offset(p_.target_stride, z, y, x);
      Statistics<A> out = {};
      for (int k = 0; k <= halo(kZ); ++k) {
        T a{}, b{};
        A share = has_mask() ? A(0) : A(1);  // outside the volume nothing is seen
        if (is_inside && is_within(z + k, g_.size[kZ])) {
          a = from_input[k * p_.input_stride[2]];
          b = from_target[k * p_.target_stride[2]];
          if (has_mask()) share = seen(z + k, y, x);
        }
        Pack<A, 2> uv = sum_and_difference(a, b);
        if (!(share > A(0))) uv = {};  // whatever the voxel holds
        const Statistics<A> s = statistics(uv.lane[0], uv.lane[1]);
#pragma unroll
        for (int map = 0; map < 4; ++map) out.of[map] += tap<false>(kZ, k) * (share * s.of[map]);
      }
      reinterpret_cast<Statistics<A>*>(slice_)[item] = out;
    }
  }

  // out = sum_k tap[k] * from[k * stride]
  SSIM_DEVICE Statistics<A> filter(int axis, const Statistics<A>* from, int stride) const {
    Statistics<A> out = {};
    for (int k = 0; k <= halo(axis); ++k) {
      const Statistics<A> x = from[k * stride];
#pragma unroll
      for (int map = 0; map < 4; ++map) out.of[map] += tap<false>(axis, k) * x.of[map];
    }
    return out;
  }

  SSIM_DEVICE void filter_across() {
    const int items = g_.pixels[kY] * g_.windows[kX];
    for (int item = thread(); item < items; item += threads()) {
      const int row = quotient(item, g_.by_windows), column = item - row * g_.windows[kX];
      const auto* from =
          reinterpret_cast<const Statistics<A>*>(slice_) + row * g_.pixels[kX] + column;
      reinterpret_cast<Statistics<A>*>(across_)[item] = filter(kX, from, 1);
    }
  }

  SSIM_DEVICE void make_windows(int z) {
    const int items = g_.windows[kY] * g_.windows[kX];
    for (int item = thread(); item < items; item += threads()) {
      const int row = quotient(item, g_.by_windows), column = item - row * g_.windows[kX];
      const auto* from = reinterpret_cast<const Statistics<A>*>(across_) + item;
      make_window(z, row, column, filter(kY, from, g_.windows[kX]));
    }
  }

  // ---- a window ----

  SSIM_DEVICE bool is_own(int axis, int i) const {
    return i >= place_->begin[axis] && i < place_->end[axis];
  }

  // its share of the sum, its place in the map, its derivatives
  SSIM_DEVICE void make_window(int z, int row, int column, const Statistics<A>& filtered) {
    const int y = place_->first[kY] + row, x = place_->first[kX] + column;
    A out[kOut] = {};
    // as unsigned numbers, what lies in front of an axis lies beyond it
    if (y >= 0 && y < place_->last[kY] && x >= 0 && x < place_->last[kX]) {
      A coverage = A(1), weight = A(1);
      if (has_mask()) {
        coverage = p_.coverage[place_->coverage + offset(p_.coverage_stride, z, y, x)];
      }
      if (has_weight()) weight = p_.weight[place_->weight + offset(p_.weight_stride, z, y, x)];
      const Moments<A> m{filtered.of[0] * coverage, filtered.of[1] * coverage,
                         filtered.of[2] * coverage, filtered.of[3] * coverage};
      const Terms<A> t = terms<A>(m, pivot_u(), pivot_v(), p_.c1, p_.c2, A(0.5));
      if constexpr (makes_sums(kTask) || kTask == Task::map) {
        A loss = delta<A>(t, p_.kind, A(1));
        if (!(coverage > A(0))) loss = A(0);
        if constexpr (makes_sums(kTask)) {
          if (is_own(kZ, z) && is_own(kY, y) && is_own(kX, x)) sum_.add(weight * loss);
        } else {
          const Int64 line = (Int64(place_->volume) * g_.out[kZ] + z) * g_.out[kY] + y;
          from_arithmetic(loss, static_cast<Stored*>(p_.map)[line * g_.out[kX] + x]);
        }
      }
      if constexpr (kMaps > 0) {
        const Derivatives<A> d = derivatives<A>(t, m, p_.kind, A(0.5), A(1));
        weight *= coverage;
        // one gradient needs the sum of the means'
        out[0] = weight * (kBoth ? d.mean_u : d.mean_u + d.mean_v);
        out[1] = weight * d.square_u;
        out[2] = weight * d.square_v;
        if constexpr (kBoth) out[3] = weight * d.mean_v;
      }
    }
#pragma unroll
    for (int map = 0; map < kMaps; ++map) {
      slice_[(map * window_rows() + row) * derivatives_row() + column] = out[map];
    }
  }

  // ---- derivatives ----

  // lines of derivatives, one map after the other
  SSIM_DEVICE int window_rows() const { return kFast ? kWindows : g_.windows[kY]; }
  SSIM_DEVICE int derivatives_row() const {
    return kFast ? volume_moments_row(kBytes) : g_.windows[kX];
  }
  SSIM_DEVICE int across_row() const { return kFast ? volume_across_row(kBytes) : g_.tile[kX]; }

  SSIM_DEVICE void filter_derivatives_across() {
    if constexpr (kFast) {
      constexpr int kLines = kMaps * kWindows;
      const int run = thread() / kLines, line = thread() - run * kLines;
      const int column = run * kGradientRun;
      if (column >= place_->end[kX] - place_->begin[kX] || run >= kTile / kGradientRun) return;
      const A* from = slice_ + line * derivatives_row() + column;
      Pack<A, 2> out[kGradientRun / 2] = {};
#pragma unroll
      for (int i = 0; i < kGradientRun + kHalo; ++i) {
        const A x = from[i];
#pragma unroll
        for (int j = 0; j < kGradientRun; ++j) {
          if (i >= j && i - j < kTaps) out[j / 2].lane[j % 2] += tap<true>(kX, i - j) * x;
        }
      }
      auto* to = reinterpret_cast<Pack<A, 2>*>(across_ + line * across_row() + column);
#pragma unroll
      for (int j = 0; j < kGradientRun / 2; ++j) to[j] = out[j];
    } else {
      const int items = kMaps * g_.windows[kY] * g_.tile[kX];
      for (int item = thread(); item < items; item += threads()) {
        const int line = quotient(item, g_.by_tile), column = item - line * g_.tile[kX];
        const A* from = slice_ + line * derivatives_row() + column;
        A out = A(0);
        for (int k = 0; k <= halo(kX); ++k) out += tap<true>(kX, k) * from[k];
        across_[item] = out;
      }
    }
  }

  // the gradient of slice z, which the windows of z + pad complete; without `any` those are zero
  SSIM_DEVICE void make_gradient(int z, bool any) {
    if constexpr (kFast) {
      // Half a warp has a row, its other half the row half a tile below: across_row keeps those in
      // different banks.
      constexpr int kHalf = kTile / 2;
      const int line = thread() / kTile, column = thread() - line * kTile;
      const int row = line / 2 + line % 2 * kHalf;
      if (line >= kTile || row >= place_->end[kY] - place_->begin[kY] ||
          column >= place_->end[kX] - place_->begin[kX])
        return;
      A out[kOut];
#pragma unroll
      for (int map = 0; map < kMaps; ++map) {
        A x = A(0);
        if (any) {
          const A* from = across_ + (map * kWindows + row) * across_row() + column;
#pragma unroll
          for (int k = 0; k < kTaps; ++k) x += tap<true>(kY, k) * from[k * across_row()];
        }
        if constexpr (kKeeps) {
          out[map] = advance<true>(unfinished_gradient_[map], x);
        } else {
          out[map] =
              advance(history_ + (map * kHalo * kTile + row) * kTile + column, kTile * kTile, x);
        }
      }
      leave_gradient(z, row, column, out);
    } else {
      const int items = g_.tile[kY] * g_.tile[kX];
      for (int item = thread(); item < items; item += threads()) {
        const int row = quotient(item, g_.by_tile), column = item - row * g_.tile[kX];
        A out[kOut];
#pragma unroll
        for (int map = 0; map < kMaps; ++map) {
          A x = A(0);
          if (any) {
            const A* from = across_ + map * g_.windows[kY] * g_.tile[kX] + item;
            for (int k = 0; k <= halo(kY); ++k) x += tap<true>(kY, k) * from[k * g_.tile[kX]];
          }
          out[map] = advance(history_ + map * halo(kZ) * items + item, items, x);
        }
        leave_gradient(z, row, column, out);
      }
    }
  }

  // one pixel
  //     from_u = G*d_mean_u + u G*d_square_u       from_v = G*d_mean_v + v G*d_square_v
  //     d/dx = from_u + from_v                     d/dy = from_u - from_v
  SSIM_DEVICE void leave_gradient(int z, int row, int column, const A (&filtered)[kOut]) const {
    const int y = place_->begin[kY] + row, x = place_->begin[kX] + column;
    if (!is_own(kZ, z) || y >= place_->end[kY] || x >= place_->end[kX]) return;
    const Pack<A, 2> uv = sum_and_difference(input()[offset(p_.input_stride, z, y, x)],
                                             target()[offset(p_.target_stride, z, y, x)]);
    const A share = has_mask() ? seen(z, y, x) : A(1);
    const auto of_seen = [&](A grad) { return share > A(0) ? share * grad : A(0); };
    const A scale = p_.grad_scale * p_.inverse_range;
    const A from_u = filtered[0] + uv.lane[0] * filtered[1];
    A from_v = uv.lane[1] * filtered[2];
    if constexpr (kBoth) {
      from_v += filtered[3];
      T* grad_target = static_cast<T*>(p_.grad_target) + place_->grad_target;
      from_arithmetic(of_seen((from_u - from_v) * scale),
                      grad_target[offset(p_.grad_target_stride, z, y, x)]);
    }
    T* grad_input = static_cast<T*>(p_.grad_input) + place_->grad_input;
    from_arithmetic(of_seen((from_u + from_v) * scale),
                    grad_input[offset(p_.grad_input_stride, z, y, x)]);
  }

  // ---- sums ----

  // The threads' sums make the block's part. The block that leaves the last part of all adds them
  // up.
  SSIM_DEVICE void add_up() {
    __syncthreads();  // slice and across are read no more
    slice_[thread()] = sum_.sum + sum_.rest;
    auto* sums = reinterpret_cast<ExactSum<A>*>(across_);
    const double part = sum_parts(slice_, threads(), sums, threads());
    if (thread() == 0) {
      p_.parts[blockIdx.x] = static_cast<A>(part);
      if (p_.value != nullptr) {
        __threadfence();
        const Int64 arrived = Int64(atomicAdd(p_.arrived, 1u)) + 1;
        __threadfence();  // this thread's, so that it orders what all of the block read next
        *flag() = arrived == g_.parts() ? 1u : 0u;
      }
    }
    __syncthreads();
    if (*flag() == 0) return;
    const double sum = sum_parts(p_.parts, g_.parts(), sums, threads());
    if (thread() == 0) {
      p_.arrived[0] = 0;
      p_.value[0] = static_cast<A>(p_.value_scale * sum);
    }
  }
};

template <typename T, bool kFast, Task kTask>
__global__ void __launch_bounds__(kFast ? volume_threads(sizeof(typename Accumulate<T>::type))
                                        : kAnyVolumeThreads,
                                  kFast ? 1 : kAnyVolumeBlocks)
    volume_kernel(const __grid_constant__ VolumeProblem<typename Accumulate<T>::type> p) {
  SSIM_DYNAMIC_SHARED(shared);
  VolumeBlock<T, kFast, kTask>(p, shared).run();
}

#endif  // device

}  // namespace ssim_fused
