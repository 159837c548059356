// The CUDA kernel: value, map and gradients of 1 - SSIM in one pass over the images.
//
// Includes nothing of torch, CUDA's library or the host, so it compiles under nvcc, under NVRTC,
// and as plain C++ against tests/cuda_emulator, which runs it without a GPU.
//
// A block makes a tile (a range of columns in a band of rows) of one plane, or of several small
// planes side by side, in four phases with a barrier after each:
//
//     down      a thread filters a column of u, v, u^2, v^2                       -> moments
//     across    a thread filters neighbours of a row of the four maps, then the
//               formula (ssim_math.h): delta, its sum, derivatives                -> derivatives
//     across    the same filter on the 3 maps of derivatives (4 for both images)  -> across
//     down      a thread filters a column of them, combined with its u and v      -> memory
//
// A value or a map needs the first two phases only. Three layouts differ in what a thread takes:
//
//     streaming  a thread owns a column and goes down it, 8 rows a step: 18 rows of u and v and 10
//                rows of filtered derivatives stay in its registers. 4 windows of a row at once.
//     tile       for small pictures, where a GPU waits more than it works: one step makes the whole
//                tile, from pixels in shared memory, each read once. Hundreds of threads with 2
//                rows and 2 windows each, so every warp's way through the four phases is short.
//     any        as streaming, with a number of taps that only the launch knows: rows are read
//                again from memory and from a shared history in place of registers. Also for
//                double, and for masked images.
//
// Counted for streaming, 11 taps and float32, for each pixel of a gradient, halos left out: 154
// multiply-adds and 120 other instructions; 24 words of shared memory read (14 by
// `across`, 7 by the second, 3 by the last) in 10 loads; device memory: x and y read once, the
// gradient written once, 12 bytes, and at most 16 with the halo. What was counted beside it:
//   - a 32 x 32 tile, all of it in shared memory: x and y are read 2.6 times, 25 bytes a pixel;
//   - eight rows streamed with every row in shared memory: 35 words read a pixel, and three times
//     the shared memory a column, so a third of the threads that fit;
//   - fused-ssim's one pixel a thread: about 120 words, and four maps stored and read again.
// Streaming alone (simulated, an RTX 3070, a step of one 64 x 64 plane): 35,900 cycles where the
// tile takes 17,700, two thirds of it waiting. Tried for the tile too, and no faster: rows filtered
// first, each of the four maps by threads of its own, 18,000. Registers: 168 a thread for streaming,
// 64 for tile.
//
// Sums: one for each plane, band and tile (a part), added up in a fixed order by the block that
// finishes last, so a scalar loss and its gradient are one launch; parts are counted, no sum is
// atomic. Offsets are 64-bit.
//
// What only some calls ask for is compiled apart, so that the plain loss does not carry it: other
// maps than 1 - SSIM, weights of the windows in a sum, the sums of (x - y)^2 and |x - y| (the
// terms) with their gradients, and the images at half their size, for the next scale of MS-SSIM. A
// block takes them of its own pixels, which it reads once more, from a cache: the terms for a
// gradient where it is combined with u and v, all else after each step.
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
  const A* weight;  // [N, C, OH, OW]: is_weighted tasks; sums where it is not null
  void* map;        // [N, C, OH, OW], contiguous
  void* grad_input;
  void* grad_target;
  A* parts;           // [N, C, bands, tiles]: sums of 1 - SSIM
  A* term_parts;      // [2, blocks]: sums of (x - y)^2, of |x - y|; null without terms
  A* value;           // value_scale * all parts + the weighted terms; null: added up later
  A* terms;           // [3]: term_scale * the parts, the squares and the distances
  unsigned* arrived;  // parts that are there: 0 before a launch, and again after it
  double value_scale;
  double term_scale[3], term_weight[3];  // value = sum of term_weight * terms, see set_terms
  Int64 input_stride[4], target_stride[4], weight_stride[4];
  Int64 grad_input_stride[4], grad_target_stride[4];
  A c1, c2, inverse_range, grad_scale;
  A grad_square, grad_distance;  // gradient of the value by x: times x - y, times its sign
  // [N, C, (H + pool_y) / 2, (W + pool_x) / 2], contiguous: means of 2 x 2 pixels; null without
  A *pooled_input, *pooled_target;
  int pool_y, pool_x;  // 1 where the first mean begins one pixel before the image, with zero
  const A* mask;       // [N, C, H, W]: how much of each pixel is seen; or null
  const A* coverage;   // [N, C, OH, OW]: 1 / how much a window sees; 0 where that does not count
  Int64 mask_stride[4], coverage_stride[4];
  Kind kind;
  A window_y[kMostTaps], window_x[kMostTaps];

  // what every kernel can do
  SSIM_HOST_DEVICE bool is_plain() const {
    return kind == Kind::ssim && weight == nullptr && term_parts == nullptr &&
           pooled_input == nullptr;
  }
};

// a sum and what rounding took from it
template <typename A>
struct ExactSum {
  A sum, rest;

  SSIM_HOST_DEVICE void add(A x) {
    const A before = sum;
    sum = before + x;
    const A added = sum - before;
    rest += (before - (sum - added)) + (x - added);
  }
};

// of a block that adds up one value
constexpr int kReduceThreads = 128;

#if !defined(__CUDACC_RTC__)

// Adds terms to a mean. `weight`: of the mean of the map, of (x - y)^2 and of |x - y|; the gradient
// is that of the value, `multiplied`.
template <typename A>
void set_terms(Problem<A>& p, const double* weight, double multiplied, A* parts, A* terms) {
  const double planes = static_cast<double>(p.g.n) * p.g.c;
  const double windows = planes * p.g.out_h * p.g.out_w, pixels = planes * p.g.h * p.g.w;
  p.term_parts = parts;
  p.terms = terms;
  for (int i = 0; i < 3; ++i) {
    p.term_weight[i] = weight[i];
    p.term_scale[i] = i == 0 ? 1 / windows : 1 / pixels;
  }
  p.grad_scale = static_cast<A>(multiplied * weight[0] / windows);
  p.grad_square = static_cast<A>(multiplied * 2 * weight[1] / pixels);
  p.grad_distance = static_cast<A>(multiplied * weight[2] / pixels);
}

// whole numbers: values and maps only
template <typename T>
inline constexpr bool kHasGradient = true;
template <>
inline constexpr bool kHasGradient<uint8> = false;
template <>
inline constexpr bool kHasGradient<uint16> = false;

// Is a kernel without the rest compiled too? Not where it would hardly be faster, nor for tasks
// that sum nothing: they have no more than the kind to look at.
template <typename T>
constexpr bool has_plain(Layout layout, Task task) {
  return makes_sums(task) && layout != Layout::any && kHasGradient<T>;
}

// Calls launch.operator()<kLayout, kTask, kExtra>() with the kernel that serves a problem.
template <typename T, typename A, typename Launch>
void dispatch(Task task, const Problem<A>& p, Launch&& launch) {
  const auto with_extra = [&]<Layout kLayout, Task kTask>() {
    if constexpr (has_plain<T>(kLayout, kTask)) {
      if (p.is_plain()) return launch.template operator()<kLayout, kTask, false>();
    }
    launch.template operator()<kLayout, kTask, true>();
  };
  const auto with_layout = [&]<Task kTask>() {
    if constexpr (kHasGradient<T> || derivative_maps(kTask) == 0) {
      if constexpr (sizeof(T) < 8) {
        if (p.g.layout == Layout::streaming) {
          return with_extra.template operator()<Layout::streaming, kTask>();
        }
        if (p.g.layout == Layout::tile) {
          return with_extra.template operator()<Layout::tile, kTask>();
        }
      }
      with_extra.template operator()<Layout::any, kTask>();
    }
  };
  with_task(task, with_layout);
}

#endif  // host

// ---- device ----

#if defined(__CUDACC__) || defined(__CUDACC_RTC__) || defined(SSIM_CUDA_EMULATOR)

template <typename A, int kCount>
struct alignas(kCount * sizeof(A)) Pack {
  A lane[kCount];
};

SSIM_DEVICE int quotient(int item, const Divider& divider) {
  const unsigned of = static_cast<unsigned>(item);
  return static_cast<int>(divider.magic == 0 ? of : __umulhi(of, divider.magic));
}

// the sum of parts[0, count), for thread 0: by all threads of a block, in a fixed order
template <typename A>
SSIM_DEVICE double sum_parts(const A* parts, Int64 count, ExactSum<A>* sums, int threads) {
  const int thread = static_cast<int>(threadIdx.x);
  ExactSum<A> mine{A(0), A(0)};
  for (Int64 i = thread; i < count; i += threads) mine.add(parts[i]);
  sums[thread] = mine;
  __syncthreads();
  for (int left = count < threads ? static_cast<int>(count) : threads; left > 1;) {
    const int quarter = (left + 3) / 4;
    if (thread < quarter) {
      for (int i = thread + quarter; i < left; i += quarter) {
        mine.add(sums[i].sum);
        mine.rest += sums[i].rest;
      }
      sums[thread] = mine;
    }
    __syncthreads();
    left = quarter;
  }
  return static_cast<double>(mine.sum) + static_cast<double>(mine.rest);
}

template <typename T, Layout kLayout, Task kTask, bool kExtra>
class Block {
  using A = typename Accumulate<T>::type;
  using Stored = typename MapOf<T>::type;
  static constexpr bool kStreams = kLayout == Layout::streaming;
  static constexpr bool kIsTile = kLayout == Layout::tile;
  static constexpr int kTaps = kLayout == Layout::any ? 0 : kFastTaps;
  static constexpr int kRows = rows_each(kLayout);
  static constexpr int kWindows = windows_each(kLayout);
  static constexpr int kGradientRows = gradient_rows_each(kLayout);
  static constexpr int kTermRows = least(kGradientRows, 2);  // read at once: registers are few
  static constexpr int kMaps = derivative_maps(kTask);
  static constexpr bool kBoth = kMaps == 4;
  static constexpr bool kSums = makes_sums(kTask);
  static constexpr int kHalo = kTaps > 0 ? kTaps - 1 : 0;
  static constexpr int kReads = kRows + kHalo;  // rows of a column that a thread needs
  enum { kMeanU, kMeanV, kSquareU, kSquareV };

  struct Rows {
    int from, to;
  };

  // a column of pixels of one plane
  struct Column {
    const T *input, *target;  // row 0
    const A* mask;            // of Layout::any, where there is one
    T *grad_input, *grad_target;
    A pivot_input, pivot_target, pivot_v;  // in units of the data range
  };

  // sums of (x - y)^2 and |x - y|
  struct TermSums {
    A squares, distances;

    SSIM_DEVICE void add(A difference) {
      squares += difference * difference;
      distances += difference < A(0) ? -difference : difference;
    }
    SSIM_DEVICE void add(const TermSums& other) {
      squares += other.squares;
      distances += other.distances;
    }
  };

  const Problem<A>& p_;
  const Geometry& g_;

  A *moments_, *derivatives_, *across_, *history_, *partials_, *sums_, *pivots_;
  Pack<A, 2>* pixels_;

  int x0_, x1_, y0_, y1_;  // the tile: gradient pixels, or windows for a value
  int first_x_, last_x_;   // columns of windows, those outside the map included
  int first_y_, last_y_;   // rows of windows of the map
  // from column first_x on, windows of the map; from column first_x - pad on, pixels of the image
  int windows_from_, windows_to_, pixels_from_, pixels_to_;
  int planes_;  // in this block; fewer in the last one
  unsigned first_n_, first_c_;

  // streaming: this thread's column, and the one plane's pivots
  bool owner_, in_tile_;
  int x_;
  Column column_;
  A pivot_u_, pivot_v_;
  A u_[kStreams ? kReads : 1], v_[kStreams ? kReads : 1];
  A kept_[kStreams && kMaps > 0 ? kMaps : 1][kStreams && kMaps > 0 ? kReads : 1];
  TermSums term_sums_;  // this thread's; each step's apart first, as all at once would round more

 public:
  SSIM_DEVICE Block(const Problem<A>& p, unsigned char* shared) : p_(p), g_(p.g) {
    moments_ = across_ = reinterpret_cast<A*>(shared);
    derivatives_ = moments_ + g_.moments;
    pixels_ = reinterpret_cast<Pack<A, 2>*>(derivatives_);
    history_ = derivatives_ + g_.derivatives;
    partials_ = history_ + g_.history;
    sums_ = partials_ + g_.partials;
    pivots_ = sums_ + g_.sums;
  }

  SSIM_DEVICE void run() {
    locate();
    prepare();
    __syncthreads();
    if constexpr (kStreams) {
      pivot_u_ = pivots_[3];
      pivot_v_ = pivots_[2];
    }
    const int end = kMaps > 0 && !kIsTile ? y1_ + g_.pad_y : last_y_;
    for (int y = first_y_; y < end; y += step()) {
      filter_pixels_down(y);
      if (y < last_y_) {  // below, derivatives are zero
        __syncthreads();
        filter_moments_across(y);
        if constexpr (kMaps > 0) {
          __syncthreads();
          filter_derivatives_across();
        }
        __syncthreads();
      } else if constexpr (kMaps > 0 && !kIsTile) {
        clear_across();
        __syncthreads();
      }
      if constexpr (kMaps > 0 && !kIsTile) {
        filter_derivatives_down(y);
        __syncthreads();
      }
      if constexpr (kStreams) keep_rows();
      if constexpr (kMaps == 0) {
        if (has_terms()) add_own_pixels(y);
      }
      if constexpr (kExtra && kSums) {
        if (p_.pooled_input != nullptr) halve_own_pixels(y);
      }
    }
    // a tile's one step ends here, while the sums are on their way; but terms come from it
    if constexpr (kMaps > 0 && kIsTile && kExtra) filter_derivatives_down(first_y_);
    if constexpr (kSums) add_up();
    if constexpr (kMaps > 0 && kIsTile && !kExtra) filter_derivatives_down(first_y_);
    if constexpr (kSums) finish_value();
  }

 private:
  SSIM_DEVICE static int thread() { return static_cast<int>(threadIdx.x); }

  // row lengths, which the compiler knows where the taps are known
  SSIM_DEVICE int moments_row() const {
    return kTaps > 0 ? fast_moments_row(kLayout) : g_.moments_row;
  }
  SSIM_DEVICE int derivatives_row() const {
    return kTaps > 0 ? fast_derivatives_row(kLayout) : g_.derivatives_row;
  }
  SSIM_DEVICE int across_row() const { return kTaps > 0 ? most_columns(kLayout) : g_.across_row; }
  SSIM_DEVICE int halo_y() const { return kTaps > 0 ? kHalo : g_.halo_y(); }
  SSIM_DEVICE int halo_x() const { return kTaps > 0 ? kHalo : g_.halo_x(); }
  SSIM_DEVICE int step() const { return kIsTile ? g_.step : kRows; }

  // what the compiler leaves out of a plain kernel
  SSIM_DEVICE Kind kind() const { return kExtra ? p_.kind : Kind::ssim; }
  SSIM_DEVICE bool has_terms() const { return kExtra && kSums && p_.term_parts != nullptr; }
  SSIM_DEVICE bool has_mask() const { return kLayout == Layout::any && p_.mask != nullptr; }
  SSIM_DEVICE bool has_weight() const {
    return is_weighted(kTask) || (kExtra && kSums && p_.weight != nullptr);
  }

  // runs of windows that hold one of the map
  SSIM_DEVICE int first_run() const { return windows_from_ / kWindows; }
  SSIM_DEVICE int last_run() const { return (windows_to_ + kWindows - 1) / kWindows; }

  // where the plane in a slot starts
  SSIM_DEVICE Int64 offset(int slot, const Int64 (&stride)[4]) const {
    unsigned n = first_n_, c = first_c_ + static_cast<unsigned>(slot);
    if (g_.planes > 1) {
      n += c / static_cast<unsigned>(g_.c);
      c %= static_cast<unsigned>(g_.c);
    }
    return n * stride[0] + c * stride[1];
  }

  SSIM_DEVICE Int64 first_plane() const { return Int64(first_n_) * g_.c + first_c_; }

  SSIM_DEVICE void locate() {
    const unsigned tiles = static_cast<unsigned>(g_.tiles), bands = static_cast<unsigned>(g_.bands);
    const unsigned line = blockIdx.x / tiles;
    const int tile = static_cast<int>(blockIdx.x - line * tiles);
    const int band = static_cast<int>(line % bands);
    const unsigned plane = line / bands * static_cast<unsigned>(g_.planes);
    planes_ = least(g_.planes, static_cast<int>(Int64(g_.n) * g_.c - plane));
    first_n_ = plane / static_cast<unsigned>(g_.c);
    first_c_ = plane - first_n_ * static_cast<unsigned>(g_.c);

    const int height = kMaps > 0 ? g_.h : g_.out_h, width = kMaps > 0 ? g_.w : g_.out_w;
    x0_ = least(tile * g_.tile_w, width);
    y0_ = least(band * g_.band_h, height);
    x1_ = least(x0_ + g_.tile_w, width);
    y1_ = least(y0_ + g_.band_h, height);
    // windows of a gradient: all that hold one of its pixels
    const int left = kMaps > 0 ? g_.pad_x - halo_x() : 0, right = kMaps > 0 ? g_.pad_x : 0;
    const int above = kMaps > 0 ? g_.pad_y - halo_y() : 0, below = kMaps > 0 ? g_.pad_y : 0;
    first_x_ = x0_ + left;
    last_x_ = x1_ + right;
    first_y_ = most(y0_ + above, 0);
    last_y_ = least(y1_ + below, g_.out_h);
    windows_from_ = most(-first_x_, 0);
    windows_to_ = least(last_x_, g_.out_w) - first_x_;
    pixels_from_ = most(g_.pad_x - first_x_, 0);
    pixels_to_ = least(windows_to_ + halo_x(), g_.w + g_.pad_x - first_x_);
  }

  SSIM_DEVICE void prepare() {
    const int threads = g_.threads;
    if constexpr (kExtra && kSums) term_sums_ = {A(0), A(0)};
    if constexpr (kStreams) {
      x_ = first_x_ - g_.pad_x + pixels_from_ + thread();
      owner_ = thread() < pixels_to_ - pixels_from_;
      in_tile_ = owner_ && x_ >= x0_ && x_ < x1_;
      if (owner_) {
        column_ = column_at(0, x_);
        choose_pivots(column_, x_);
        if (thread() == 0) leave_pivots(0, column_);
        pixels<kHalo>(column_, first_y_ - g_.pad_y, u_, v_);
      }
      if constexpr (kMaps > 0) {
#pragma unroll
        for (int map = 0; map < kMaps; ++map) {
#pragma unroll
          for (int i = 0; i < kHalo; ++i) kept_[map][i] = A(0);
        }
      }
    } else if constexpr (kIsTile) {
      for (int slot = 0; slot < planes_; ++slot) load_pixels(slot);
    } else {
      for (int slot = thread(); slot < planes_; slot += threads) {
        Column c = column_at(slot, 0);
        choose_pivots(c, 0);
        leave_pivots(slot, c);
      }
      for (int i = thread(); i < g_.history; i += threads) history_[i] = A(0);
    }
    if constexpr (!kIsTile) {
      for (int i = thread(); i < g_.partials; i += threads) partials_[i] = A(0);
      if constexpr (kMaps > 0) clear_outside();
    }
    if (thread() == 0) *flag() = 0;
  }

  // set in the block that leaves the last part
  SSIM_DEVICE unsigned* flag() const {
    return reinterpret_cast<unsigned*>(pivots_ + kPivotWords * g_.planes);
  }

  // Columns beside the map contribute nothing to a gradient. The others are written with windows.
  SSIM_DEVICE void clear_outside() {
    const int left = first_run() * kWindows, right = last_run() * kWindows;
    const int outside = left + most(last_x_ - first_x_ - right, 0);
    if (outside == 0) return;
    Divider by_outside;
    by_outside.set(outside);
    const int items = planes_ * step() * kMaps * outside, threads = g_.threads;
    for (int item = thread(); item < items; item += threads) {
      const int line = quotient(item, by_outside), i = item - line * outside;
      derivatives_[line * derivatives_row() + (i < left ? i : right + i - left)] = A(0);
    }
  }

  // ---- pixels ----

  SSIM_DEVICE Column column_at(int slot, int x) const {
    Column c;
    c.input =
        static_cast<const T*>(p_.input) + offset(slot, p_.input_stride) + x * p_.input_stride[3];
    c.target =
        static_cast<const T*>(p_.target) + offset(slot, p_.target_stride) + x * p_.target_stride[3];
    c.mask = has_mask() ? p_.mask + offset(slot, p_.mask_stride) + x * p_.mask_stride[3] : nullptr;
    if constexpr (kMaps > 0) {
      c.grad_input = static_cast<T*>(p_.grad_input) + offset(slot, p_.grad_input_stride) +
                     x * p_.grad_input_stride[3];
    }
    if constexpr (kBoth) {
      c.grad_target = static_cast<T*>(p_.grad_target) + offset(slot, p_.grad_target_stride) +
                      x * p_.grad_target_stride[3];
    }
    return c;
  }

  // the pixels that a pivot may be made of; false where they are masked and have no part in anything
  SSIM_DEVICE bool pivot_pixels(const Column& c, int column_x, int k, A& a, A& b) const {
    const int y = least(pivot_place(y0_, y1_, k), g_.h - 1);
    const int x = least(pivot_place(x0_, x1_, k), g_.w - 1) - column_x;
    a = to_arithmetic(c.input[y * p_.input_stride[2] + x * p_.input_stride[3]]);
    b = to_arithmetic(c.target[y * p_.target_stride[2] + x * p_.target_stride[3]]);
    return !has_mask() || c.mask[y * p_.mask_stride[2] + x * p_.mask_stride[3]] > A(0);
  }

  // What is taken away from all of the tile: bright flat areas keep their digits. Where every window
  // sees the zeros over the edge there is nothing to gain.
  SSIM_DEVICE void choose_pivots(Column& c, int column_x) const {
    Pivot<A> pivot;
    if (has_mask() || (g_.h > halo_y() && g_.w > halo_x())) {
      const auto pixels = [&](int k, A& a, A& b) { return pivot_pixels(c, column_x, k, a, b); };
      pivot.choose(pixels, p_.inverse_range);
    }
    c.pivot_input = pivot.input * p_.inverse_range;
    c.pivot_target = pivot.target * p_.inverse_range;
    c.pivot_v = (pivot.input - pivot.target) * p_.inverse_range;
  }

  // for the other threads; the last is that of u
  SSIM_DEVICE void leave_pivots(int slot, const Column& c) {
    A* to = pivots_ + kPivotWords * slot;
    to[0] = c.pivot_input;
    to[1] = c.pivot_target;
    to[2] = c.pivot_v;
    to[3] = c.pivot_input + c.pivot_target;
  }
  SSIM_DEVICE void take_pivots(int slot, Column& c) const {
    const A* from = pivots_ + kPivotWords * slot;
    c.pivot_input = from[0];
    c.pivot_target = from[1];
    c.pivot_v = from[2];
  }
  SSIM_DEVICE A pivot_u(int slot) const {
    return kStreams ? pivot_u_ : pivots_[kPivotWords * slot + 3];
  }
  SSIM_DEVICE A pivot_v(int slot) const {
    return kStreams ? pivot_v_ : pivots_[kPivotWords * slot + 2];
  }

  // u and v of two pixels, pivots taken away: x + y would round away the digits of large pixels, so
  // pivots come first there; x - y is exact for images that are near each other
  SSIM_DEVICE void sum_and_difference(const Column& c, A a, A b, A& u, A& v) const {
    u = fma(a, p_.inverse_range, -c.pivot_input) + fma(b, p_.inverse_range, -c.pivot_target);
    v = fma(a - b, p_.inverse_range, -c.pivot_v);
  }

  // Rows [y, y + count) of a column; above and below the image lies zero. All reads come first,
  // from rows that exist, so that none waits for another.
  template <int kCount>
  SSIM_DEVICE void read(const Column& c, int y, T (&a)[kCount], T (&b)[kCount]) const {
    if (y >= 0 && y + kCount <= g_.h) {
      const T *input = c.input + y * p_.input_stride[2],
              *target = c.target + y * p_.target_stride[2];
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        a[i] = *input;
        b[i] = *target;
        input += p_.input_stride[2];
        target += p_.target_stride[2];
      }
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const int existing = least(most(y + i, 0), g_.h - 1);
        a[i] = c.input[existing * p_.input_stride[2]];
        b[i] = c.target[existing * p_.target_stride[2]];
        if (existing != y + i) a[i] = b[i] = T{};
      }
    }
  }

  // their u and v
  template <int kCount>
  SSIM_DEVICE void pixels(const Column& c, int y, A* u, A* v) const {
    T a[kCount], b[kCount];
    read(c, y, a, b);
    sums_and_differences(c, a, b, u, v);
  }
  template <int kCount>
  SSIM_DEVICE void sums_and_differences(const Column& c, const T (&a)[kCount], const T (&b)[kCount],
                                        A* u, A* v) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      sum_and_difference(c, to_arithmetic(a[i]), to_arithmetic(b[i]), u[i], v[i]);
    }
  }

  // How much of row y of a column is seen; of what is not, u and v are 0, whatever the pixel holds.
  // Outside the image nothing is.
  SSIM_DEVICE A seen(const Column& c, int y, A& u, A& v) const {
    if (!has_mask()) return A(1);
    const A share = y >= 0 && y < g_.h ? c.mask[y * p_.mask_stride[2]] : A(0);
    if (!(share > A(0))) u = v = A(0);
    return share;
  }

  // and x - y, of which no pivot is taken away
  template <int kCount>
  SSIM_DEVICE void differences(const Column& c, int y, A (&out)[kCount]) const {
    T a[kCount], b[kCount];
    read(c, y, a, b);
#pragma unroll
    for (int i = 0; i < kCount; ++i) out[i] = to_arithmetic(a[i]) - to_arithmetic(b[i]);
  }

  // tile: u and v of all its pixels of one plane, each read once, into shared memory
  SSIM_DEVICE void load_pixels(int slot) {
    const int from = pixels_from_, rows = step() + kHalo;
    const int row = quotient(thread(), g_.by_columns), i = thread() - row * g_.columns;
    const int x = first_x_ - g_.pad_x + from + i;
    const bool reads = i < pixels_to_ - from && row < g_.load_rows;
    Column c = column_at(slot, x);
    const Int64 input_step = g_.load_rows * p_.input_stride[2],
                target_step = g_.load_rows * p_.target_stride[2];
    int y = first_y_ - g_.pad_y + row;
    const T *input = c.input + y * p_.input_stride[2], *target = c.target + y * p_.target_stride[2];
    Pack<A, 2>* to = pixels_ + (slot * rows + row) * moments_row() + from + i;
    for (int start = row; start < rows; start += kLoads * g_.load_rows) {
      T a[kLoads] = {}, b[kLoads] = {};
#pragma unroll
      for (int k = 0; k < kLoads; ++k) {
        if (reads && static_cast<unsigned>(y) < static_cast<unsigned>(g_.h)) {
          a[k] = *input;
          b[k] = *target;
        }
        y += g_.load_rows;
        input += input_step;
        target += target_step;
      }
      if (start == row) {  // behind the first pixels, so that it waits with them
        choose_pivots(c, x);
        if (thread() == 0) leave_pivots(slot, c);
      }
      if (!reads) break;
#pragma unroll
      for (int k = 0; k < kLoads; ++k) {
        if (start + k * g_.load_rows >= rows) break;
        Pack<A, 2> uv;
        sum_and_difference(c, to_arithmetic(a[k]), to_arithmetic(b[k]), uv.lane[0], uv.lane[1]);
        *to = uv;
        to += g_.load_rows * moments_row();
      }
    }
  }

  // the windows, or their mirror images, which carry gradients back
  template <bool kAdjoint>
  SSIM_DEVICE A tap_y(int k) const {
    return p_.window_y[kAdjoint ? halo_y() - k : k];
  }
  template <bool kAdjoint>
  SSIM_DEVICE A tap_x(int k) const {
    return p_.window_x[kAdjoint ? halo_x() - k : k];
  }

  SSIM_DEVICE static A statistic(int map, A u, A v) {
    return map == kMeanU ? u : map == kMeanV ? v : map == kSquareU ? u * u : v * v;
  }

  // ---- phase 1 ----

  // moments of rows [y, y + step) of windows
  SSIM_DEVICE void filter_pixels_down(int y) {
    if constexpr (kStreams) {
      if (owner_) {
        pixels<kRows>(column_, y - g_.pad_y + kHalo, u_ + kHalo, v_ + kHalo);
        if (y < last_y_) filter_column(u_, v_, moments_ + pixels_from_ + thread());
      }
    } else if (y < last_y_) {
      const int from = pixels_from_, columns = pixels_to_ - from;
      const int groups = kIsTile ? g_.groups() : 1, threads = g_.threads;
      for (int item = thread(); item < planes_ * groups * g_.columns; item += threads) {
        const int line = quotient(item, g_.by_columns), i = item - line * g_.columns;
        if (i >= columns) continue;
        const int slot = g_.planes == 1 ? 0 : line / groups, group = line - slot * groups;
        A* to = moments_ + line * kRows * 4 * moments_row() + from + i;
        if constexpr (kIsTile) {
          const int row = slot * (step() + kHalo) + group * kRows;
          A u[kReads], v[kReads];
#pragma unroll
          for (int k = 0; k < kReads; ++k) {
            const Pack<A, 2> pixel = pixels_[(row + k) * moments_row() + from + i];
            u[k] = pixel.lane[0];
            v[k] = pixel.lane[1];
          }
          filter_column(u, v, to);
        } else {
          Column c = column_at(slot, first_x_ - g_.pad_x + from + i);
          take_pivots(slot, c);
          filter_column(c, y - g_.pad_y, to);
        }
      }
    }
    if (y < last_y_) fill_outside();
  }

  // `to`: moments, the first row
  SSIM_DEVICE void filter_column(const A* u, const A* v, A* to) const {
#pragma unroll
    for (int map = 0; map < 4; ++map) {
      A out[kRows];
#pragma unroll
      for (int i = 0; i < kRows; ++i) out[i] = A(0);
#pragma unroll
      for (int row = 0; row < kReads; ++row) {
        const A x = statistic(map, u[row], v[row]);
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
          if (row >= i && row - i < kTaps) out[i] += tap_y<false>(row - i) * x;
        }
      }
#pragma unroll
      for (int i = 0; i < kRows; ++i) to[(i * 4 + map) * moments_row()] = out[i];
    }
  }

  // the same with a number of taps that only the launch knows
  SSIM_DEVICE void filter_column(const Column& c, int y, A* to) const {
    A out[4][kRows] = {};
    for (int row = 0; row < halo_y() + kRows; ++row) {
      A u, v;
      pixels<1>(c, y + row, &u, &v);
      const A share = seen(c, y + row, u, v);
#pragma unroll
      for (int map = 0; map < 4; ++map) {
        const A x = share * statistic(map, u, v);
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
          if (row >= i && row - i <= halo_y()) out[map][i] += tap_y<false>(row - i) * x;
        }
      }
    }
#pragma unroll
    for (int map = 0; map < 4; ++map) {
#pragma unroll
      for (int i = 0; i < kRows; ++i) to[(i * 4 + map) * moments_row()] = out[map][i];
    }
  }

  // pixels left and right of the image are constant: zero, less the pivot; or masked
  SSIM_DEVICE void fill_outside() {
    const int start = windows_from_, left = pixels_from_ - start, right = pixels_to_;
    const int outside = left + windows_to_ + halo_x() - right;
    if (outside == 0) return;
    Divider by_outside;
    by_outside.set(outside);
    const int items = planes_ * step() * outside, threads = g_.threads;
    for (int item = thread(); item < items; item += threads) {
      const int row = quotient(item, by_outside), i = item - row * outside;
      const int slot = g_.planes == 1 ? 0 : row / step();
      A* to = moments_ + row * 4 * moments_row() + (i < left ? start + i : right + i - left);
      const A u = has_mask() ? A(0) : -pivot_u(slot), v = has_mask() ? A(0) : -pivot_v(slot);
#pragma unroll
      for (int map = 0; map < 4; ++map) to[map * moments_row()] = statistic(map, u, v);
    }
  }

  // ---- the filter along a row ----

  // out[j][i] = sum_k window[k] * row[j * stride + i + k]; rows are aligned to kCount
  template <bool kAdjoint, int kLines, int kCount>
  SSIM_DEVICE void filter_rows(const A* row, int stride, A (&out)[kLines][kCount]) const {
#pragma unroll
    for (int j = 0; j < kLines; ++j) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) out[j][i] = A(0);
    }
    if constexpr (kTaps > 0) {
#pragma unroll
      for (int from = 0; from < kHalo + kCount; from += kCount) {
#pragma unroll
        for (int j = 0; j < kLines; ++j) {
          const auto x = *reinterpret_cast<const Pack<A, kCount>*>(row + j * stride + from);
#pragma unroll
          for (int lane = 0; lane < kCount; ++lane) {
#pragma unroll
            for (int i = 0; i < kCount; ++i) {
              const int k = from + lane - i;
              if (k >= 0 && k < kTaps) out[j][i] += tap_x<kAdjoint>(k) * x.lane[lane];
            }
          }
        }
      }
    } else {
      A x[kLines][kCount];
#pragma unroll
      for (int j = 0; j < kLines; ++j) {
#pragma unroll
        for (int i = 0; i < kCount - 1; ++i) x[j][i + 1] = row[j * stride + i];
      }
      for (int k = 0; k <= halo_x(); ++k) {
#pragma unroll
        for (int j = 0; j < kLines; ++j) {
#pragma unroll
          for (int i = 0; i < kCount - 1; ++i) x[j][i] = x[j][i + 1];
          x[j][kCount - 1] = row[j * stride + k + kCount - 1];
#pragma unroll
          for (int i = 0; i < kCount; ++i) out[j][i] += tap_x<kAdjoint>(k) * x[j][i];
        }
      }
    }
  }

  // ---- phase 2 ----

  SSIM_DEVICE void filter_moments_across(int y) {
    if constexpr (kIsTile && kMaps > 0) clear_outside();  // where the pixels were
    const int first = first_run(), runs = last_run() - first;
    const int items = planes_ * step() * g_.runs, threads = g_.threads;
    for (int item = thread(); item < items; item += threads) {
      const int row = quotient(item, g_.by_runs), run = item - row * g_.runs;
      if (run < runs) {
        windows(y, row, first + run, item);
      } else if constexpr (kIsTile && kSums) {
        partials_[item] = A(0);
      }
    }
  }

  // is column x beside the windows of the map that this block makes?
  SSIM_DEVICE bool is_outside(int x) const { return x < 0 || x >= first_x_ + windows_to_; }

  // neighbouring windows of row y + row % step of plane row / step; what lies outside the map is
  // computed too where nothing is read for it, and then cleared
  SSIM_DEVICE void windows(int y, int row, int run, int item) {
    const int slot = g_.planes == 1 ? 0 : row / step();
    const int window_y = y + row - slot * step(), x = first_x_ + run * kWindows;
    A sum = A(0);
    Pack<A, kWindows> out[kMaps > 0 ? kMaps : 1] = {};
    if (window_y < last_y_) {
      A filtered[4][kWindows];
      filter_rows<false>(moments_ + row * 4 * moments_row() + run * kWindows, moments_row(),
                         filtered);
      // as unsigned numbers, what lies left of a range lies beyond it
      const bool own_row = window_y >= y0_ && window_y < y1_;
      const unsigned own =
          own_row ? static_cast<unsigned>(most(least(x1_, g_.out_w) - x0_, 0)) : 0u;
#pragma unroll
      for (int i = 0; i < kWindows; ++i) {
        if (kExtra && is_outside(x + i)) continue;
        A coverage = A(1);
        if (has_mask()) {
          coverage =
              p_.coverage[offset(slot, p_.coverage_stride) + window_y * p_.coverage_stride[2] +
                          (x + i) * p_.coverage_stride[3]];
        }
        const Moments<A> m{filtered[kMeanU][i] * coverage, filtered[kMeanV][i] * coverage,
                           filtered[kSquareU][i] * coverage, filtered[kSquareV][i] * coverage};
        const Terms<A> t = terms<A>(m, pivot_u(slot), pivot_v(slot), p_.c1, p_.c2, A(0.5));
        A loss = kind() == Kind::ssim ? delta<A>(t) : delta<A>(t, kind(), A(1));
        if (has_mask() && !(coverage > A(0))) loss = A(0);
        A weight = A(1);
        if (has_weight()) {
          weight = p_.weight[offset(slot, p_.weight_stride) + window_y * p_.weight_stride[2] +
                             (x + i) * p_.weight_stride[3]];
        }
        if (static_cast<unsigned>(x + i - x0_) < own) sum += kExtra ? weight * loss : loss;
        if constexpr (kTask == Task::map) {
          Stored* map = static_cast<Stored*>(p_.map);
          const Int64 line = Int64(first_plane() + slot) * g_.out_h + window_y;
          from_arithmetic(loss, map[line * g_.out_w + x + i]);
        }
        if constexpr (kMaps > 0) {
          Derivatives<A> d = kind() == Kind::ssim ? derivatives<A>(t, m, A(0.5))
                                                  : derivatives<A>(t, m, kind(), A(0.5), A(1));
          if (has_weight() || has_mask()) {
            weight *= coverage;
            d = {d.mean_u * weight, d.mean_v * weight, d.square_u * weight, d.square_v * weight};
          }
          out[0].lane[i] = kBoth ? d.mean_u : d.mean_u + d.mean_v;  // one gradient needs their sum
          out[1].lane[i] = d.square_u;
          out[2].lane[i] = d.square_v;
          if constexpr (kBoth) out[3].lane[i] = d.mean_v;
        }
      }
    }
    if constexpr (kSums) {
      partials_[item] = kIsTile ? sum : partials_[item] + sum;  // this thread's alone
    }
#pragma unroll
    for (int map = 0; map < kMaps; ++map) {
      A* to = derivatives_ + (row * kMaps + map) * derivatives_row() + run * kWindows;
      *reinterpret_cast<Pack<A, kWindows>*>(to) = out[map];
    }
    if constexpr (kMaps > 0 && !kExtra) {
      if (is_outside(x) || is_outside(x + kWindows - 1)) {
#pragma unroll 1
        for (int i = 0; i < kWindows; ++i) {
          if (!is_outside(x + i)) continue;
#pragma unroll
          for (int map = 0; map < kMaps; ++map) {
            derivatives_[(row * kMaps + map) * derivatives_row() + run * kWindows + i] = A(0);
          }
        }
      }
    }
  }

  // ---- phase 3 ----

  // A line is one map of one row. The tile's lines start above the map and end below it, where
  // derivatives are zero.
  SSIM_DEVICE void filter_derivatives_across() {
    constexpr int kLines = kIsTile ? 1 : kMaps;  // that a thread takes
    const int rows = kIsTile ? y1_ - y0_ + kHalo : step();
    const int items = planes_ * rows * (kMaps / kLines) * g_.gradient_runs, threads = g_.threads;
    for (int item = thread(); item < items; item += threads) {
      const int lines = quotient(item, g_.by_gradient_runs), line = lines * kLines;
      const int column = (item - lines * g_.gradient_runs) * kRun;
      int from = line;
      bool is_zero = false;
      if constexpr (kIsTile) {
        const int slot = g_.planes == 1 ? 0 : line / (rows * kMaps);
        const int above = first_y_ - (y0_ + g_.pad_y - kHalo);  // rows above the map
        from += (slot * (step() - rows) - above) * kMaps;
        const int first = slot * step() * kMaps;
        is_zero = from < first || from >= first + (last_y_ - first_y_) * kMaps;
      }
      A filtered[kLines][kRun] = {};
      if (!is_zero) {
        filter_rows<true>(derivatives_ + from * derivatives_row() + column, derivatives_row(),
                          filtered);
      }
#pragma unroll
      for (int j = 0; j < kLines; ++j) {
        Pack<A, kRun> out;
#pragma unroll
        for (int i = 0; i < kRun; ++i) out.lane[i] = filtered[j][i];
        *reinterpret_cast<Pack<A, kRun>*>(across_ + (line + j) * across_row() + column) = out;
      }
    }
  }

  // the same below the map
  SSIM_DEVICE void clear_across() {
    const int count = kMaps * g_.rows() * across_row(), threads = g_.threads;
    for (int i = thread(); i < count; i += threads) across_[i] = A(0);
  }

  // ---- phase 4 ----

  // gradient rows that the windows of [y, y + step) complete
  SSIM_DEVICE void filter_derivatives_down(int y) {
    if constexpr (kStreams) {
      if (!in_tile_) return;
      A filtered[kMaps][kRows];
#pragma unroll
      for (int map = 0; map < kMaps; ++map) {
#pragma unroll
        for (int row = 0; row < kRows; ++row) {
          kept_[map][kHalo + row] = across_[(row * kMaps + map) * across_row() + x_ - x0_];
        }
        filter_derivative_column(kept_[map], filtered[map]);
      }
      leave_gradient(column_, y - g_.pad_y, u_, v_, filtered);
    } else {
      const int columns = x1_ - x0_, threads = g_.threads;
      const int groups = kIsTile ? y1_ - y0_ : 1;
      for (int item = thread(); item < planes_ * groups * g_.tile_w; item += threads) {
        const int line = quotient(item, g_.by_tile_w), i = item - line * g_.tile_w;
        if (i >= columns) continue;
        const int slot = g_.planes == 1 ? 0 : line / groups, group = line - slot * groups;
        const int row = kIsTile ? y0_ + group : y - g_.pad_y;
        Column c = column_at(slot, x0_ + i);
        take_pivots(slot, c);
        T a[kGradientRows], b[kGradientRows];
        read(c, row, a, b);
        A u[kGradientRows], v[kGradientRows], filtered[kMaps][kGradientRows];
        if constexpr (kIsTile) {
          const A* from = across_ + (slot * (groups + kHalo) + group) * kMaps * across_row() + i;
#pragma unroll
          for (int map = 0; map < kMaps; ++map) filtered[map][0] = A(0);
#pragma unroll
          for (int k = 0; k < kTaps; ++k) {
#pragma unroll
            for (int map = 0; map < kMaps; ++map) {
              filtered[map][0] += tap_y<true>(k) * from[(k * kMaps + map) * across_row()];
            }
          }
        } else {
#pragma unroll
          for (int map = 0; map < kMaps; ++map) {
            filter_derivative_column(map, slot, i, filtered[map]);
          }
        }
        sums_and_differences(c, a, b, u, v);
        leave_gradient(c, row, u, v, filtered);
      }
    }
  }

  // streaming: the last rows of this step are the first of the next
  SSIM_DEVICE void keep_rows() {
#pragma unroll
    for (int i = 0; i < kHalo; ++i) {
      u_[i] = u_[i + kRows];
      v_[i] = v_[i + kRows];
#pragma unroll
      for (int map = 0; map < kMaps; ++map) kept_[map][i] = kept_[map][i + kRows];
    }
  }

  template <int kCount>
  SSIM_DEVICE void filter_derivative_column(const A (&x)[kCount + kHalo], A (&out)[kCount]) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) out[i] = A(0);
#pragma unroll
    for (int row = 0; row < kCount + kHalo; ++row) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        if (row >= i && row - i < kTaps) out[i] += tap_y<true>(row - i) * x[row];
      }
    }
  }

  // The same with a number of taps that only the launch knows: earlier rows are kept in shared
  // memory.
  SSIM_DEVICE void filter_derivative_column(int map, int slot, int column, A (&out)[kRows]) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) out[i] = A(0);
    const int stride = g_.planes * g_.tile_w;
    A* kept = history_ + map * halo_y() * stride + slot * g_.tile_w + column;
    const A* rows = across_ + (slot * kRows * kMaps + map) * across_row() + column;
    for (int row = 0; row < halo_y() + kRows; ++row) {
      const A x =
          row < halo_y() ? kept[row * stride] : rows[(row - halo_y()) * kMaps * across_row()];
      if (row >= kRows && row - kRows < halo_y()) kept[(row - kRows) * stride] = x;
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        if (row >= i && row - i <= halo_y()) out[i] += tap_y<true>(row - i) * x;
      }
    }
  }

  // rows [y, y + kGradientRows) of one column
  //     from_u = G*d_mean_u + u G*d_square_u       from_v = G*d_mean_v + v G*d_square_v
  //     d/dx = from_u + from_v                     d/dy = from_u - from_v
  // and the terms': 2 (x - y) and the sign of x - y, each times its weight; for y the same, less
  template <int kCount>
  SSIM_DEVICE void leave_gradient(const Column& c, int y, const A* u, const A* v,
                                  const A (&filtered)[kCount][kGradientRows]) {
    T* grad_input = c.grad_input + y * p_.grad_input_stride[2];
    T* grad_target = nullptr;
    if constexpr (kBoth) grad_target = c.grad_target + y * p_.grad_target_stride[2];
    const A scale = p_.grad_scale * p_.inverse_range;
    A difference[kTermRows];
    TermSums sums{A(0), A(0)};
#pragma unroll
    for (int i = 0; i < kGradientRows; ++i) {
      if (i % kTermRows == 0 && has_terms()) differences(c, y + i, difference);
      if (static_cast<unsigned>(y + i - y0_) < static_cast<unsigned>(y1_ - y0_)) {
        A from_terms = A(0);
        if (has_terms()) {
          sums.add(difference[i % kTermRows]);
          from_terms = gradient_of_terms(difference[i % kTermRows]);
        }
        A share = A(1);
        if (has_mask()) share = c.mask[(y + i) * p_.mask_stride[2]];
        const auto of_seen = [&](A grad) { return share > A(0) ? share * grad : A(0); };
        const A from_u = filtered[0][i] + u[i] * filtered[1][i];
        A from_v = v[i] * filtered[2][i];
        if constexpr (kBoth) {
          from_v += filtered[3][i];
          const A to_target = of_seen((from_u - from_v) * scale);
          from_arithmetic(kExtra && kSums ? to_target - from_terms : to_target, *grad_target);
        }
        const A to_input = of_seen((from_u + from_v) * scale);
        from_arithmetic(kExtra && kSums ? to_input + from_terms : to_input, *grad_input);
      }
      grad_input += p_.grad_input_stride[2];
      if constexpr (kBoth) grad_target += p_.grad_target_stride[2];
    }
    if (has_terms()) term_sums_.add(sums);
  }

  // ---- a block's own pixels: each pixel of an image is one block's ----

  // those that it comes to with windows [y, y + step); where the map is smaller than the image, the
  // last band of a value takes the rows that are left
  SSIM_DEVICE Rows own_rows(int y) const {
    if constexpr (kMaps > 0) {
      if (kIsTile) return {y0_, y1_};
      return {most(y - g_.pad_y, y0_), least(y - g_.pad_y + step(), y1_)};
    }
    return {y, y + step() < last_y_ ? y + step() : y1_ == g_.out_h ? g_.h : y1_};
  }

  // columns from x0 on, the last tile as the last band
  SSIM_DEVICE int own_columns() const {
    return (kMaps == 0 && x0_ < x1_ && x1_ == g_.out_w ? g_.w : x1_) - x0_;
  }

  // the means of 2 x 2 pixels of which the last one is among these
  SSIM_DEVICE void halve_own_pixels(int y) const {
    const Rows rows = own_rows(y);
    const int first_i = (rows.from + p_.pool_y) / 2, first_j = (x0_ + p_.pool_x) / 2;
    const int lines = (rows.to + p_.pool_y) / 2 - first_i;
    const int columns = (x0_ + own_columns() + p_.pool_x) / 2 - first_j;
    if (lines <= 0 || columns <= 0) return;
    const int pooled_h = (g_.h + p_.pool_y) / 2, pooled_w = (g_.w + p_.pool_x) / 2;
    Divider by_columns;
    by_columns.set(columns);
    const int items = planes_ * lines * columns, threads = g_.threads;
    for (int item = thread(); item < items; item += threads) {
      const int line = quotient(item, by_columns), j = first_j + item - line * columns;
      const int slot = g_.planes == 1 ? 0 : line / lines, i = first_i + line - slot * lines;
      const int top = 2 * i - p_.pool_y, left = 2 * j - p_.pool_x;
      const Column c = column_at(slot, left);
      const Int64 to = ((first_plane() + slot) * pooled_h + i) * pooled_w + j;
      p_.pooled_input[to] = mean_of_four(c.input, p_.input_stride, top, left);
      p_.pooled_target[to] = mean_of_four(c.target, p_.target_stride, top, left);
    }
  }

  // `column`: row 0 of column x; before the image lies zero
  SSIM_DEVICE static A mean_of_four(const T* column, const Int64 (&stride)[4], int y, int x) {
    const auto at = [&](int below, int beside) {
      if (y + below < 0 || x + beside < 0) return A(0);
      return A(to_arithmetic(column[(y + below) * stride[2] + beside * stride[3]]));
    };
    return A(0.25) * ((at(0, 0) + at(0, 1)) + (at(1, 0) + at(1, 1)));
  }

  // ---- terms ----

  SSIM_DEVICE A gradient_of_terms(A difference) const {
    const A sign = difference > A(0) ? A(1) : difference < A(0) ? A(-1) : A(0);
    return p_.grad_square * difference + p_.grad_distance * sign;
  }

  // the terms of a value
  SSIM_DEVICE void add_own_pixels(int y) {
    const auto [from, to] = own_rows(y);
    const int columns = own_columns(), rows = to - from;
    if (columns == 0) return;
    Divider by_columns;
    by_columns.set(columns);
    const int items = planes_ * rows * columns, threads = g_.threads;
    TermSums sums{A(0), A(0)};
    for (int item = thread(); item < items; item += threads) {
      const int line = quotient(item, by_columns), i = item - line * columns;
      const int slot = g_.planes == 1 ? 0 : line / rows, row = line - slot * rows;
      A difference[1];
      differences(column_at(slot, x0_ + i), from + row, difference);
      sums.add(difference[0]);
    }
    term_sums_.add(sums);
  }

  // kLanes sums of squares, or of distances
  SSIM_DEVICE A* lanes_of_term(int which) const { return moments_ + which * g_.threads; }

  // This block's sums, kLanes of each; no thread may need `moments` or `across` any more.
  SSIM_DEVICE void leave_terms() {
    const int threads = g_.threads;
    __syncthreads();
    lanes_of_term(0)[thread()] = term_sums_.squares;
    lanes_of_term(1)[thread()] = term_sums_.distances;
    __syncthreads();
    for (int i = thread(); i < 2 * kLanes; i += threads) {
      A *lanes = lanes_of_term(i / kLanes), sum = A(0);
      for (int j = i % kLanes; j < threads; j += kLanes) sum += lanes[j];
      lanes[i % kLanes] = sum;  // which no other thread reads
    }
  }

  // ---- sums ----

  SSIM_DEVICE static A sum_of_lanes(const A* lanes) {
    A sum[4] = {};
#pragma unroll
    for (int i = 0; i < kLanes; ++i) sum[i % 4] += lanes[i];
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
  }

  // Each plane's partial sums make one part; then the parts are counted. The thread that leaves the
  // last one of all blocks sets its block's flag.
  SSIM_DEVICE void add_up() {
    const int each = step() * g_.runs, threads = g_.threads;
    if (has_terms()) leave_terms();
    for (int i = thread(); i < planes_ * kLanes; i += threads) {
      const int slot = i / kLanes;
      A sum = A(0);
#pragma unroll 4
      for (int j = i % kLanes; j < each; j += kLanes) sum += partials_[slot * each + j];
      sums_[i] = sum;
    }
    __syncthreads();
    // the last threads have least to do meanwhile
    for (int slot = threads - 1 - thread(); slot < planes_; slot += threads) {
      const unsigned place = blockIdx.x % static_cast<unsigned>(g_.tiles * g_.bands);
      p_.parts[Int64(first_plane() + slot) * (g_.tiles * g_.bands) + place] =
          sum_of_lanes(sums_ + slot * kLanes);
      if (has_terms() && slot == 0) {
        p_.term_parts[blockIdx.x] = sum_of_lanes(lanes_of_term(0));
        p_.term_parts[g_.blocks + blockIdx.x] = sum_of_lanes(lanes_of_term(1));
      }
      if (p_.value != nullptr) {
        __threadfence();
        if (atomicAdd(p_.arrived, 1u) + 1 == g_.parts()) {
          __threadfence();  // this thread's, so that it orders what all of the block read next
          *flag() = 1;
        }
      }
    }
  }

  SSIM_DEVICE void finish_value() {
    __syncthreads();
    if (*flag() == 0) return;
    if (thread() == 0) *p_.arrived = 0;
    auto* sums = reinterpret_cast<ExactSum<A>*>(moments_);
    if (!has_terms()) {
      const double sum = sum_parts(p_.parts, g_.parts(), sums, g_.threads);
      if (thread() == 0) *p_.value = static_cast<A>(p_.value_scale * sum);
      return;
    }
    double value = 0;
#pragma unroll 1
    for (int i = 0; i < 3; ++i) {
      const bool wanted = p_.term_weight[i] != 0;  // and if not, no NaN of it is
      const A* parts = i == 0 ? p_.parts : p_.term_parts + (i - 1) * g_.blocks;
      const double sum = sum_parts(parts, i == 0 ? g_.parts() : g_.blocks, sums, g_.threads);
      const double term = wanted ? p_.term_scale[i] * sum : 0;
      value += p_.term_weight[i] * term;
      if (thread() == 0) p_.terms[i] = static_cast<A>(term);
    }
    if (thread() == 0) *p_.value = static_cast<A>(value);
  }
};

template <typename T, Layout kLayout, Task kTask, bool kExtra>
__global__ void __launch_bounds__(most_threads(kLayout), sizeof(T) < 8 ? resident(kLayout) : 1)
    ssim_kernel(const __grid_constant__ Problem<typename Accumulate<T>::type> p) {
  SSIM_DYNAMIC_SHARED(shared);
  Block<T, kLayout, kTask, kExtra>(p, shared).run();
}

// ---- one value for each plane ----

// out[i] = scale * sum of parts[i * each, (i + 1) * each); one block for each i
template <typename A>
__global__ void __launch_bounds__(kReduceThreads)
    reduce_kernel(const A* parts, Int64 each, double scale, A* out) {
  SSIM_DYNAMIC_SHARED(shared);
  const double sum = sum_parts(parts + blockIdx.x * each, each,
                               reinterpret_cast<ExactSum<A>*>(shared), kReduceThreads);
  if (threadIdx.x == 0) out[blockIdx.x] = static_cast<A>(scale * sum);
}

#endif  // device

}  // namespace ssim_fused
