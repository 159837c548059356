// The CUDA kernel: value, map and gradients of 1 - SSIM in one pass over the images.
//
// Includes nothing of torch, CUDA's library or the host, so it compiles under nvcc, under NVRTC,
// and as plain C++ against tests/cuda_emulator, which runs it without a GPU.
//
// A block walks down a tile (a range of columns in a band of rows) of one plane, or of several
// small planes side by side, eight rows a step. Each step has four phases, a barrier after each:
//
//     down      a thread owns a column: 18 rows of u and v are in its registers, 8 of them new;
//               filtered down they give 8 rows of 4 maps                          -> moments
//     across    a thread takes 4 neighbours of a row: 16 values of each map serve 4 windows;
//               then the formula (ssim_math.h): delta, its sum, derivatives       -> derivatives
//     across    the same filter on the 3 maps of derivatives (4 for both images)  -> across
//     down      a thread owns a column: 10 earlier rows are in its registers;
//               combined with its u and v they give 8 rows of the gradient        -> memory
//
// A value or a map needs the first two phases only. Windows other than 11 have a run-time bound:
// the same phases, the rows read again from memory and from a shared history in place of registers.
//
// Counted for 11 taps and float32, for each pixel of a gradient, halos left out: 154 multiply-adds,
// 24 words of shared memory read (14 by `across`, 7 by the second, 3 by the last) in 10 loads, 7.75
// written in 8.5 stores; device memory: x and y read once, the gradient written once, 12 bytes, and
// at most 16 with the halo. What was counted beside it:
//   - a 32 x 32 tile, all of it in shared memory: x and y are read 2.6 times, 25 bytes a pixel;
//   - eight rows streamed with every row in shared memory: 35 words read a pixel, and three times
//     the shared memory a column, so a third of the threads that fit;
//   - fused-ssim's one pixel a thread: about 120 words, and four maps stored and read again.
// Rows in registers cost 30 moves for every 8 rows, and up to 168 registers a thread.
//
// Sums: one for each plane, band and tile, added up in a fixed order by the block that finishes
// last, so a scalar loss and its gradient are one launch; blocks are counted, no sum is atomic.
// Offsets are 64-bit.
#pragma once

#include "dtypes.h"
#include "ssim_cuda_geometry.h"
#include "ssim_math.h"

#if defined(SSIM_CUDA_EMULATOR)
#define SSIM_DEVICE inline
#else
#define SSIM_DEVICE __device__ __forceinline__
#define SSIM_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

namespace ssim_fused {

// what a launch is given
template <typename A>
struct Problem {
  Geometry g;
  const void* input;
  const void* target;
  const A* weight;  // [N, C, OH, OW], is_weighted tasks
  void* map;        // [N, C, OH, OW], contiguous
  void* grad_input;
  void* grad_target;
  double* parts;      // [N, C, bands, tiles]: sums of 1 - SSIM
  A* value;           // value_scale * all of them; null where they are added up later
  unsigned* arrived;  // blocks that have left their parts: 0 before a launch, and again after it
  double value_scale;
  Int64 input_stride[4], target_stride[4], weight_stride[4];
  Int64 grad_input_stride[4], grad_target_stride[4];
  A c1, c2, inverse_range, grad_scale;
  A window[kMostTaps];
};

#if !defined(__CUDACC_RTC__)

// Calls launch.operator()<kTaps, kTask>() with the kernel that serves a task.
template <typename T, typename Launch>
void dispatch(Task task, const Geometry& g, Launch&& launch) {
  const auto with_taps = [&]<Task kTask>() {
    if constexpr (sizeof(T) < 8) {
      if (g.fast()) return launch.template operator()<kFastTaps, kTask>();
    }
    launch.template operator()<0, kTask>();
  };
  switch (task) {
    case Task::value:
      return with_taps.template operator()<Task::value>();
    case Task::map:
      return with_taps.template operator()<Task::map>();
    case Task::gradient:
      return with_taps.template operator()<Task::gradient>();
    case Task::gradients:
      return with_taps.template operator()<Task::gradients>();
    case Task::backward:
      return with_taps.template operator()<Task::backward>();
    case Task::backwards:
      return with_taps.template operator()<Task::backwards>();
  }
}

#endif  // host

// ---- device ----

#if defined(__CUDACC__) || defined(__CUDACC_RTC__) || defined(SSIM_CUDA_EMULATOR)

template <typename A>
struct alignas(4 * sizeof(A)) Four {
  A lane[4];
};

// item / runs and item % runs by a multiplication; exact while item * runs < 2^16
struct Divider {
  unsigned magic, by;
  SSIM_HOST_DEVICE explicit Divider(int by_)
      : magic((65536u + static_cast<unsigned>(by_) - 1u) / static_cast<unsigned>(by_)), by(by_) {}
  SSIM_HOST_DEVICE int quotient(int item) const {
    return static_cast<int>((static_cast<unsigned>(item) * magic) >> 16);
  }
};

// out = scale * sum of parts[0, count): by all threads of a block, in a fixed order
template <typename A>
SSIM_DEVICE void sum_parts(const double* parts, Int64 count, double scale, A* out, double* sums,
                           int threads) {
  const int thread = static_cast<int>(threadIdx.x);
  double sum = 0;
  for (Int64 i = thread; i < count; i += threads) sum += parts[i];
  sums[thread] = sum;
  __syncthreads();
  for (int left = threads; left > 1; left = (left + 1) / 2) {
    const int upper = (left + 1) / 2;
    if (thread < left - upper) sums[thread] += sums[upper + thread];
    __syncthreads();
  }
  if (thread == 0) *out = static_cast<A>(scale * sums[0]);
}

template <typename T, int kTaps, Task kTask>
class Block {
  using A = typename Accumulate<T>::type;
  static constexpr int kMaps = derivative_maps(kTask);
  static constexpr bool kBoth = kMaps == 4;
  static constexpr int kHalo = kTaps - 1;
  static constexpr int kRows = kStep + kHalo;  // rows of a column that one step needs
  static constexpr int kReach = kRun + round_up_4(kHalo > 0 ? kHalo : 0);
  enum { kMeanU, kMeanV, kSquareU, kSquareV };

  const Problem<A>& p_;
  const Geometry& g_;

  A *moments_, *derivatives_, *across_, *history_, *partials_, *pivots_;

  int x0_, x1_, y0_, y1_;  // the tile: gradient pixels, or windows for a value
  int first_x_, last_x_;   // columns of windows that it needs
  int first_y_, last_y_;   // rows of windows
  Int64 first_n_;
  int first_c_;
  int planes_;  // in this block; fewer in the last one

  // this thread's column
  bool owner_, in_tile_;
  int slot_, column_, x_;
  const T *input_, *target_;
  T *grad_input_, *grad_target_;
  A pivot_input_, pivot_target_, pivot_v_;
  A u_[kTaps > 0 ? kRows : 1], v_[kTaps > 0 ? kRows : 1];
  A kept_[kTaps > 0 && kMaps > 0 ? kMaps : 1][kTaps > 0 && kMaps > 0 ? kHalo : 1];

 public:
  SSIM_DEVICE Block(const Problem<A>& p, unsigned char* shared) : p_(p), g_(p.g) {
    moments_ = across_ = reinterpret_cast<A*>(shared);
    derivatives_ = moments_ + g_.moments;
    history_ = derivatives_ + g_.derivatives;
    partials_ = history_ + g_.history;
    pivots_ = partials_ + g_.partials;
  }

  SSIM_DEVICE void run() {
    locate();
    prepare();
    __syncthreads();
    const int end = kMaps > 0 ? y1_ + g_.pad : last_y_;
    for (int y = first_y_; y < end; y += kStep) {
      filter_pixels_down(y);
      if (y < last_y_) {  // below, derivatives are zero
        __syncthreads();
        filter_moments_across(y);
        if constexpr (kMaps > 0) {
          __syncthreads();
          filter_derivatives_across();
        }
        __syncthreads();
      }
      if constexpr (kMaps > 0) {
        filter_derivatives_down(y);
        __syncthreads();
      }
    }
    if constexpr (makes_sums(kTask)) add_up();
  }

 private:
  SSIM_DEVICE int thread() const { return static_cast<int>(threadIdx.x); }

  SSIM_DEVICE Int64 first_plane() const {
    return Int64(blockIdx.x) / g_.tiles / g_.bands * g_.planes;
  }

  // What follows is made anew at each use: no register is left to keep it in.
  // Pixel columns that lie in the image:
  SSIM_DEVICE int first_pixel() const { return most(first_x_ - g_.pad, 0); }
  SSIM_DEVICE int last_pixel() const { return least(last_x_ - g_.pad + g_.halo(), g_.w); }

  // columns of derivatives left of the map; rounded up to 4; what that adds:
  SSIM_DEVICE int columns_before() const { return first_x_ - (x0_ + g_.pad - g_.halo()); }
  SSIM_DEVICE int lead() const { return round_up_4(columns_before()); }
  SSIM_DEVICE int shift() const { return lead() - columns_before(); }

  // where the plane in a slot starts
  SSIM_DEVICE Int64 offset(int slot, const Int64 (&stride)[4]) const {
    const unsigned c = static_cast<unsigned>(first_c_ + slot),
                   channels = static_cast<unsigned>(g_.c);
    return (first_n_ + c / channels) * stride[0] + c % channels * stride[1];
  }

  SSIM_DEVICE void locate() {
    const Int64 block = blockIdx.x;
    const int tile = static_cast<int>(block % g_.tiles);
    const int band = static_cast<int>(block / g_.tiles % g_.bands);
    first_n_ = first_plane() / g_.c;
    first_c_ = static_cast<int>(first_plane() % g_.c);
    const Int64 left = Int64(g_.n) * g_.c - first_plane();
    planes_ = left < g_.planes ? static_cast<int>(left) : g_.planes;

    const int height = kMaps > 0 ? g_.h : g_.out_h, width = kMaps > 0 ? g_.w : g_.out_w;
    x0_ = least(tile * g_.tile_w, width);
    y0_ = least(band * g_.band_h, height);
    x1_ = least(x0_ + g_.tile_w, width);
    y1_ = least(y0_ + g_.band_h, height);
    // windows of a gradient: all that hold one of its pixels
    const int before = kMaps > 0 ? g_.pad - g_.halo() : 0, after = kMaps > 0 ? g_.pad : 0;
    first_x_ = most(x0_ + before, 0);
    last_x_ = least(x1_ + after, g_.out_w);
    first_y_ = most(y0_ + before, 0);
    last_y_ = least(y1_ + after, g_.out_h);

    const int columns = last_pixel() - first_pixel();
    slot_ = thread() / g_.columns;
    column_ = thread() - slot_ * g_.columns;
    owner_ = slot_ < planes_ && column_ < columns;
    x_ = first_pixel() + column_;
    in_tile_ = owner_ && x_ >= x0_ && x_ < x1_;
  }

  SSIM_DEVICE void prepare() {
    if (owner_) {
      const T* input = static_cast<const T*>(p_.input) + offset(slot_, p_.input_stride);
      const T* target = static_cast<const T*>(p_.target) + offset(slot_, p_.target_stride);
      choose_pivot(input, target);
      input_ = input + x_ * p_.input_stride[3];
      target_ = target + x_ * p_.target_stride[3];
      if constexpr (kMaps > 0) {
        grad_input_ = static_cast<T*>(p_.grad_input) + offset(slot_, p_.grad_input_stride) +
                      x_ * p_.grad_input_stride[3];
      }
      if constexpr (kBoth) {
        grad_target_ = static_cast<T*>(p_.grad_target) + offset(slot_, p_.grad_target_stride) +
                       x_ * p_.grad_target_stride[3];
      }
      if (column_ == 0) {
        pivots_[2 * slot_] = (pivot_input_ + pivot_target_) * p_.inverse_range;
        pivots_[2 * slot_ + 1] = pivot_v_ * p_.inverse_range;
      }
      if constexpr (kTaps > 0) {
#pragma unroll
        for (int i = 0; i < kHalo; ++i) {
          pixel(first_y_ - g_.pad + i, u_[kStep + i], v_[kStep + i]);  // the first step shifts them
        }
      }
    }
    if constexpr (kTaps > 0 && kMaps > 0) {
#pragma unroll
      for (int map = 0; map < kMaps; ++map) {
#pragma unroll
        for (int i = 0; i < kHalo; ++i) kept_[map][i] = A(0);
      }
    }
    // columns beside the map contribute nothing to a gradient
    const int threads = g_.threads;
    for (int i = thread(); i < g_.derivatives; i += threads) derivatives_[i] = A(0);
    for (int i = thread(); i < g_.history; i += threads) history_[i] = A(0);
    for (int i = thread(); i < g_.partials; i += threads) partials_[i] = A(0);
  }

  // The tile's centre pixel, taken away from all of it: bright flat areas keep their digits. Where
  // every window reaches over the edge there is nothing to gain.
  SSIM_DEVICE void choose_pivot(const T* input, const T* target) {
    pivot_input_ = pivot_target_ = pivot_v_ = A(0);
    if (g_.h < g_.taps || g_.w < g_.taps) return;
    const Int64 y = least((y0_ + y1_) / 2, g_.h - 1), x = least((x0_ + x1_) / 2, g_.w - 1);
    const A a = to_arithmetic(input[y * p_.input_stride[2] + x * p_.input_stride[3]]);
    const A b = to_arithmetic(target[y * p_.target_stride[2] + x * p_.target_stride[3]]);
    pivot_input_ = finite_or_zero(a);
    pivot_target_ = finite_or_zero(b);
    pivot_v_ = finite_or_zero(a - b);
  }

  SSIM_DEVICE static A finite_or_zero(A x) { return x - x == A(0) ? x : A(0); }

  // u and v of two pixels, pivots taken away: x + y would round away the digits of large pixels, so
  // pivots come first there; x - y is exact for images that are near each other
  SSIM_DEVICE void sum_and_difference(A a, A b, A& u, A& v) const {
    u = ((a - pivot_input_) + (b - pivot_target_)) * p_.inverse_range;
    v = ((a - b) - pivot_v_) * p_.inverse_range;
  }

  // u and v of this thread's column; above and below the image lies zero
  SSIM_DEVICE void pixel(int y, A& u, A& v) const {
    A a = A(0), b = A(0);
    if (y >= 0 && y < g_.h) {
      a = to_arithmetic(input_[y * p_.input_stride[2]]);
      b = to_arithmetic(target_[y * p_.target_stride[2]]);
    }
    sum_and_difference(a, b, u, v);
  }

  // the window, or its mirror image, which carries gradients back
  template <bool kAdjoint>
  SSIM_DEVICE A tap(int k) const {
    return p_.window[kAdjoint ? (kTaps > 0 ? kTaps : g_.taps) - 1 - k : k];
  }

  // ---- phase 1 ----

  // moments of rows [y, y + 8) of windows, one column of pixels
  SSIM_DEVICE void filter_pixels_down(int y) {
    if (owner_) {
      if constexpr (kTaps > 0) {
#pragma unroll
        for (int i = 0; i < kHalo; ++i) {
          u_[i] = u_[i + kStep];
          v_[i] = v_[i + kStep];
        }
#pragma unroll
        for (int i = 0; i < kStep; ++i) {
          pixel(y - g_.pad + kHalo + i, u_[kHalo + i], v_[kHalo + i]);
        }
      }
      if (y < last_y_) {
        const int to =
            slot_ * kStep * g_.moments_row + first_pixel() - (first_x_ - g_.pad) + column_;
        A out[kStep];
#pragma unroll
        for (int map = 0; map < 4; ++map) {
          filter_column(map, y, out);
#pragma unroll
          for (int i = 0; i < kStep; ++i) {
            moments_[(map * g_.rows() + i) * g_.moments_row + to] = out[i];
          }
        }
      }
    }
    if (y < last_y_) fill_outside();
  }

  SSIM_DEVICE void filter_column(int map, int y, A (&out)[kStep]) const {
#pragma unroll
    for (int i = 0; i < kStep; ++i) out[i] = A(0);
    if constexpr (kTaps > 0) {
#pragma unroll
      for (int row = 0; row < kRows; ++row) {
        const A x = statistic(map, u_[row], v_[row]);
#pragma unroll
        for (int i = 0; i < kStep; ++i) {
          if (row >= i && row - i < kTaps) out[i] += tap<false>(row - i) * x;
        }
      }
    } else {
      for (int row = 0; row < g_.halo() + kStep; ++row) {
        A u, v;
        pixel(y - g_.pad + row, u, v);
        const A x = statistic(map, u, v);
#pragma unroll
        for (int i = 0; i < kStep; ++i) {
          if (row >= i && row - i < g_.taps) out[i] += tap<false>(row - i) * x;
        }
      }
    }
  }

  SSIM_DEVICE static A statistic(int map, A u, A v) {
    return map == kMeanU ? u : map == kMeanV ? v : map == kSquareU ? u * u : v * v;
  }

  // columns left and right of the image are constant: zero, less the pivot
  SSIM_DEVICE void fill_outside() {
    const int left = first_pixel() - (first_x_ - g_.pad);
    const int right = left + last_pixel() - first_pixel();
    const int outside = left + (last_x_ - first_x_ + g_.halo()) - right;
    if (outside == 0) return;
    const int threads = g_.threads;
    for (int i = thread(); i < planes_ * kStep * outside; i += threads) {
      const int row = i / outside, j = i - row * outside;
      const int column = j < left ? j : right + j - left;
      const A u = A(0) - pivots_[row / kStep * 2], v = A(0) - pivots_[row / kStep * 2 + 1];
#pragma unroll
      for (int map = 0; map < 4; ++map) {
        moments_[(map * g_.rows() + row) * g_.moments_row + column] = statistic(map, u, v);
      }
    }
  }

  // ---- the filter along a row ----

  // out[i] = sum_k window[k] * row[i + k], i < 4; row is aligned to 4
  template <bool kAdjoint>
  SSIM_DEVICE void filter_row(const A* row, A (&out)[kRun]) const {
#pragma unroll
    for (int i = 0; i < kRun; ++i) out[i] = A(0);
    if constexpr (kTaps > 0) {
#pragma unroll
      for (int from = 0; from < kReach; from += 4) {
        const Four<A> x = *reinterpret_cast<const Four<A>*>(row + from);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
#pragma unroll
          for (int i = 0; i < kRun; ++i) {
            const int k = from + j - i;
            if (k >= 0 && k < kTaps) out[i] += tap<kAdjoint>(k) * x.lane[j];
          }
        }
      }
    } else {
      A x[kRun];
#pragma unroll
      for (int i = 0; i < kRun - 1; ++i) x[i + 1] = row[i];
      for (int k = 0; k < g_.taps; ++k) {
#pragma unroll
        for (int i = 0; i < kRun - 1; ++i) x[i] = x[i + 1];
        x[kRun - 1] = row[k + kRun - 1];
#pragma unroll
        for (int i = 0; i < kRun; ++i) out[i] += tap<kAdjoint>(k) * x[i];
      }
    }
  }

  // ---- phase 2 ----

  SSIM_DEVICE void filter_moments_across(int y) {
    const Divider divider(g_.runs);
    const int items = planes_ * kStep * g_.runs, threads = g_.threads;
    for (int item = thread(); item < items; item += threads) {
      const int row = divider.quotient(item), run = item - row * g_.runs;
      windows(y, row, run, item);
    }
  }

  // four windows of row y + row % 8 of plane row / 8
  SSIM_DEVICE void windows(int y, int row, int run, int item) {
    A filtered[4][kRun];
    const int window_y = y + row % kStep, x = first_x_ + run * kRun;
    const bool in_band = window_y < last_y_;
    if (in_band) {
#pragma unroll
      for (int map = 0; map < 4; ++map) {
        filter_row<false>(moments_ + (map * g_.rows() + row) * g_.moments_row + run * kRun,
                          filtered[map]);
      }
    }
    const A pivot_u = pivots_[row / kStep * 2], pivot_v = pivots_[row / kStep * 2 + 1];
    const bool own_row = window_y >= y0_ && window_y < y1_;
    Four<A> out[kMaps > 0 ? kMaps : 1];
    A sum = A(0);
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      const bool inside = in_band && x + i < last_x_;
      Derivatives<A> d{A(0), A(0), A(0), A(0)};
      if (inside) {
        const Moments<A> m{filtered[kMeanU][i], filtered[kMeanV][i], filtered[kSquareU][i],
                           filtered[kSquareV][i]};
        const Terms<A> t = terms<A>(m, pivot_u, pivot_v, p_.c1, p_.c2, A(0.5));
        const A loss = delta<A>(t);
        if (own_row && x + i >= x0_ && x + i < x1_) sum += loss;
        if constexpr (kTask == Task::map) {
          const Int64 plane = first_plane() + row / kStep;
          T* map = static_cast<T*>(p_.map);
          from_arithmetic(loss, map[(plane * g_.out_h + window_y) * g_.out_w + x + i]);
        }
        if constexpr (kMaps > 0) d = derivatives<A>(t, m, A(0.5));
        if constexpr (is_weighted(kTask)) {
          const A weight =
              p_.weight[offset(row / kStep, p_.weight_stride) + window_y * p_.weight_stride[2] +
                        (x + i) * p_.weight_stride[3]];
          d = {d.mean_u * weight, d.mean_v * weight, d.square_u * weight, d.square_v * weight};
        }
      }
      if constexpr (kMaps > 0) {
        out[0].lane[i] = kBoth ? d.mean_u : d.mean_u + d.mean_v;  // one gradient needs their sum
        out[1].lane[i] = d.square_u;
        out[2].lane[i] = d.square_v;
        if constexpr (kBoth) out[3].lane[i] = d.mean_v;
      }
    }
    if constexpr (makes_sums(kTask)) partials_[item] += sum;  // this thread's alone
#pragma unroll
    for (int map = 0; map < kMaps; ++map) {
      A* to = derivatives_ + (map * g_.rows() + row) * g_.derivatives_row + lead() + run * kRun;
      *reinterpret_cast<Four<A>*>(to) = out[map];
    }
  }

  // ---- phase 3 ----

  // column x0 + i of the gradient is column i + shift of `across`
  SSIM_DEVICE void filter_derivatives_across() {
    const Divider divider(g_.gradient_runs);
    const int items = planes_ * kStep * g_.gradient_runs, threads = g_.threads;
    for (int item = thread(); item < items; item += threads) {
      const int row = divider.quotient(item), run = item - row * g_.gradient_runs;
#pragma unroll
      for (int map = 0; map < kMaps; ++map) {
        Four<A> out;
        filter_row<true>(derivatives_ + (map * g_.rows() + row) * g_.derivatives_row + run * kRun,
                         out.lane);
        A* to = across_ + (map * g_.rows() + row) * g_.across_row + run * kRun;
        *reinterpret_cast<Four<A>*>(to) = out;
      }
    }
  }

  // ---- phase 4 ----

  // gradient rows [y - pad, y - pad + 8), one column
  //     from_u = G*d_mean_u + u G*d_square_u       from_v = G*d_mean_v + v G*d_square_v
  //     d/dx = from_u + from_v                     d/dy = from_u - from_v
  SSIM_DEVICE void filter_derivatives_down(int y) {
    if (!in_tile_) return;
    A filtered[kMaps][kStep];
#pragma unroll
    for (int map = 0; map < kMaps; ++map) {
      const A* rows =
          across_ + (map * g_.rows() + slot_ * kStep) * g_.across_row + x_ - x0_ + shift();
      filter_derivative_column(map, rows, y < last_y_, filtered[map]);
    }
    const A scale = p_.grad_scale * p_.inverse_range;
#pragma unroll
    for (int i = 0; i < kStep; ++i) {
      const int row = y - g_.pad + i;
      if (row < y0_ || row >= y1_) continue;
      A u, v;
      if constexpr (kTaps > 0) {
        u = u_[i];
        v = v_[i];
      } else {
        pixel(row, u, v);
      }
      const A from_u = filtered[0][i] + u * filtered[1][i];
      A from_v = v * filtered[2][i];
      if constexpr (kBoth) {
        from_v += filtered[3][i];
        from_arithmetic((from_u - from_v) * scale, grad_target_[row * p_.grad_target_stride[2]]);
      }
      from_arithmetic((from_u + from_v) * scale, grad_input_[row * p_.grad_input_stride[2]]);
    }
  }

  // `rows`: 8 new ones in shared memory, where there still are any; the earlier ones are kept
  SSIM_DEVICE void filter_derivative_column(int map, const A* rows, bool any, A (&out)[kStep]) {
#pragma unroll
    for (int i = 0; i < kStep; ++i) out[i] = A(0);
    if constexpr (kTaps > 0) {
      A x[kRows];
#pragma unroll
      for (int row = 0; row < kRows; ++row) {
        x[row] = row < kHalo ? kept_[map][row < kHalo ? row : 0]
                             : (any ? rows[(row - kHalo) * g_.across_row] : A(0));
#pragma unroll
        for (int i = 0; i < kStep; ++i) {
          if (row >= i && row - i < kTaps) out[i] += tap<true>(row - i) * x[row];
        }
      }
#pragma unroll
      for (int row = 0; row < kHalo; ++row) kept_[map][row] = x[row + kStep];
    } else {
      const int halo = g_.halo(), stride = g_.planes * g_.tile_w;
      A* kept = history_ + map * halo * stride + slot_ * g_.tile_w + x_ - x0_;
      for (int row = 0; row < halo + kStep; ++row) {
        const A x =
            row < halo ? kept[row * stride] : (any ? rows[(row - halo) * g_.across_row] : A(0));
        if (row >= kStep && row - kStep < halo) kept[(row - kStep) * stride] = x;
#pragma unroll
        for (int i = 0; i < kStep; ++i) {
          if (row >= i && row - i < g_.taps) out[i] += tap<true>(row - i) * x;
        }
      }
    }
  }

  // ---- sums ----

  // each plane's partial sums, halved until one is left
  SSIM_DEVICE void add_up() {
    const int threads = g_.threads;
    const int each = kStep * g_.runs;
    for (int count = each; count > 1; count = (count + 1) / 2) {
      const int upper = (count + 1) / 2, pairs = count - upper;
      for (int i = thread(); i < planes_ * pairs; i += threads) {
        const int slot = i / pairs, j = i - slot * pairs;
        partials_[slot * each + j] += partials_[slot * each + upper + j];
      }
      __syncthreads();
    }
    if (thread() < planes_) {
      const Int64 place = Int64(blockIdx.x) % (Int64(g_.tiles) * g_.bands);
      p_.parts[(first_plane() + thread()) * g_.bands * g_.tiles + place] =
          static_cast<double>(partials_[thread() * each]);
      __threadfence();
    }
    __syncthreads();
    if (p_.value != nullptr && is_last_block()) {
      sum_parts(p_.parts, g_.parts(), p_.value_scale, p_.value, reinterpret_cast<double*>(moments_),
                g_.threads);
    }
  }

  // The last block to arrive here finds the parts of all the others in memory.
  SSIM_DEVICE bool is_last_block() {
    unsigned* before = reinterpret_cast<unsigned*>(pivots_);
    if (thread() == 0) {
      *before = atomicAdd(p_.arrived, 1u);
      if (*before == g_.blocks - 1) *p_.arrived = 0;
    }
    __syncthreads();
    __threadfence();
    return *before == g_.blocks - 1;
  }
};

template <typename T, int kTaps, Task kTask>
__global__ void __launch_bounds__(kMostThreads, kTaps > 0 && sizeof(T) < 8 ? kResident : 1)
    ssim_kernel(const __grid_constant__ Problem<typename Accumulate<T>::type> p) {
  SSIM_DYNAMIC_SHARED(shared);
  Block<T, kTaps, kTask>(p, shared).run();
}

// ---- one value for each image ----

constexpr int kReduceThreads = 128;

// out[i] = scale * sum of parts[i * each, (i + 1) * each); one block for each i
template <typename A>
__global__ void __launch_bounds__(kReduceThreads)
    reduce_kernel(const double* parts, Int64 each, double scale, A* out) {
  SSIM_DYNAMIC_SHARED(shared);
  sum_parts(parts + blockIdx.x * each, each, scale, out + blockIdx.x,
            reinterpret_cast<double*>(shared), kReduceThreads);
}

#endif  // device

}  // namespace ssim_fused
