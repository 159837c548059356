// The CPU kernel: value, map and gradients of 1 - SSIM in one pass over the images.
//
// This file is compiled once for each instruction set (SSIM_ISA names the build). A separable
// window is one filter applied four times. It always runs down an axis that is *not* the vector's,
// so every load is aligned and serves several taps; between the axes a block of width x width is
// transposed in registers:
//
//     x, y --load--> u, v, u^2, v^2      rows, lanes are columns
//                    filter down         4 maps
//                    transpose           columns, lanes are rows
//                    filter across       window moments
//                    pointwise           delta, its sum; derivatives     (ssim_math.h)
//                    filter across       3 maps for one gradient, 4 for both
//                    transpose           rows, lanes are columns
//                    filter down         --combine with u, v--> gradient
//
// An item (a tile of columns in a band of rows) is walked down in rows of blocks, each row from
// left to right. What two neighbouring blocks share is kept: the last columns of moments and
// derivatives while a row is made (Columns), and the last `halo` = taps - 1 rows of pixels and
// derivatives of every block for the next row (the tails). So each pixel is read and filtered once;
// a gradient reads it a second time, from the cache, and needs the windows that reach into its item
// from outside.
//
// Channels that lie side by side are items of their own, but take turns at each row of blocks: all
// of them are in the cache lines that the first one fetches.
//
// Pixels are scaled to a data range of 1, and one pixel (the pivot) is subtracted from all of an
// item: variances do not change, and bright flat areas keep their digits.
#include "ssim_cpu.h"

#include <initializer_list>

#include "simd.h"
#include "ssim_math.h"

#define SSIM_CONCAT_(a, b) a##b
#define SSIM_CONCAT(a, b) SSIM_CONCAT_(a, b)
#define SSIM_STRING_(a) #a
#define SSIM_STRING(a) SSIM_STRING_(a)

namespace {

using namespace ssim_fused;

SSIM_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
SSIM_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
SSIM_INLINE int64_t round_up(int64_t a, int64_t b) { return (a + b - 1) / b * b; }
SSIM_INLINE int64_t round_down(int64_t a, int64_t b) { return a - (a % b + b) % b; }

// ---- the filter ----

// out[i] = sum_k window[k] * rows[i + k], or of its square, i < width; taps > 0 is a compile-time
// count
template <typename A, int taps, bool kSquared = false>
SSIM_INLINE void filter(const Vec<A>* rows, const A* window, int64_t run_time_taps,
                        Vec<A> (&out)[Simd<A>::width]) {
  constexpr int width = Simd<A>::width;
  const auto row = [rows](int64_t i) { return kSquared ? rows[i] * rows[i] : rows[i]; };
  if constexpr (taps > 0) {
    // The rows that a window covers stay in registers. The two that share a weight are added first:
    // many processors add beside their multiplications.
    constexpr int middle = taps / 2;
    Vec<A> x[width + taps - 1];
#pragma GCC unroll 32
    for (int i = 0; i < taps - 1; ++i) x[i] = row(i);
#pragma GCC unroll 16
    for (int i = 0; i < width; ++i) {
      x[i + taps - 1] = row(i + taps - 1);
      out[i] = window[middle] * x[i + middle];
#pragma GCC unroll 16
      for (int k = 0; k < middle; ++k) out[i] += window[k] * (x[i + k] + x[i + taps - 1 - k]);
    }
  } else {
    for (int i = 0; i < width; ++i) out[i] = Vec<A>{};
    for (int64_t k = 0; k < run_time_taps; ++k) {
#pragma GCC unroll 16
      for (int i = 0; i < width; ++i) out[i] += window[k] * row(i + k);
    }
  }
}

// ---- pixels in and out ----

// lanes [first, last) from p with the given stride between lanes, the rest zero
template <typename T, typename A>
SSIM_INLINE Vec<A> load_lanes(const T* p, int64_t stride, int64_t first, int64_t last) {
  constexpr int width = Simd<A>::width;
  if (stride == 1) {
    if (last - first == width) return load(p);
    if constexpr (kHasMaskedLoad<T>) return load_masked(p, first, last);
  }
  if constexpr (kHasGather<T>) {
    if (last - first == width && stride > 0 && stride <= width) return gather(p, stride);
  }
  A lanes[width] = {};
  for (int64_t i = first; i < last; ++i) lanes[i] = to_arithmetic(p[i * stride]);
  return load(lanes);
}

template <typename T, typename A>
SSIM_INLINE void store_lanes(Vec<A> v, T* p, int64_t stride, int64_t count) {
  constexpr int width = Simd<A>::width;
  if (stride == 1 && count >= width) return store(v, p);
  if constexpr (kHasScatter<T>) {
    if (count >= width && stride > 0 && stride <= width) return scatter(v, p, stride);
  }
  A lanes[width];
  store(v, lanes);
  for (int64_t i = 0; i < smaller(count, width); ++i) from_arithmetic(lanes[i], p[i * stride]);
}

template <typename T>
SSIM_INLINE T* plane(const Image& image, int64_t n, int64_t c) {
  return static_cast<T*>(image.data) + n * image.stride_n + c * image.stride_c;
}

template <typename A>
SSIM_INLINE A finite_or_zero(A x) {
  return x - x == A{} ? x : A{};
}

// ---- scratch ----

// the four maps that are filtered; the derivatives by them go by the same names
enum Map { kSquareU, kSquareV, kMeanU, kMeanV, kMaps };

// sizes of an item's buffers, in vectors
template <typename A>
struct Layout {
  static constexpr int width = Simd<A>::width;
  int64_t halo;          // taps - 1
  int64_t rows;          // that one block of filtered rows is made of
  int64_t columns;       // of moments, or of derivatives, that are kept
  int64_t pixel_blocks;  // blocks across the pixels whose last rows are kept
  int64_t grad_blocks;   // blocks across the gradient

  explicit Layout(const Problem& p) {
    halo = p.taps - 1;
    rows = halo + width;
    columns = round_up(halo, width) + 4 * width;
    // a larger window would keep more than it is worth: its rows are read again
    pixel_blocks = halo <= 2 * width ? (p.tile_w + 2 * halo) / width + 3 : 0;
    grad_blocks = p.wants_grad() ? (p.tile_w + width - 1) / width : 0;
  }
  int64_t strip() const { return kMaps * rows; }  // of two maps of pixels, or all derivatives
  int64_t window_of_columns() const { return kMaps * columns; }
  int64_t pixel_tails() const { return 2 * halo * pixel_blocks; }
  int64_t derivative_tails() const { return kMaps * halo * grad_blocks; }
  int64_t shared() const { return strip() + 2 * window_of_columns(); }
  int64_t tails() const { return pixel_tails() + derivative_tails(); }
};

// The last columns of each map, few enough to stay in the L1 cache. Columns count from 0; those in
// front of what is still needed make room for new ones.
template <typename A>
class Columns {
  using V = Vec<A>;
  V* data_;
  int64_t capacity_, first_;

 public:
  Columns(V* data, int64_t capacity) : data_(data), capacity_(capacity), first_(0) {}

  void clear() { first_ = 0; }
  SSIM_INLINE V* at(int map, int64_t column) { return data_ + map * capacity_ + column - first_; }

  // room for columns up to `end`; those in [needed, made) are kept
  SSIM_INLINE void make_room(int64_t needed, int64_t made, int64_t end) {
    if (end - first_ <= capacity_) return;
    const int64_t moved = needed - first_, count = made - needed;
    for (int map = 0; map < kMaps; ++map) {
      V* columns = data_ + map * capacity_;
      for (int64_t i = 0; i < count; ++i) columns[i] = columns[i + moved];
    }
    first_ = needed;
  }
};

// ---- one item ----

// kGrads: how many images a gradient is made for, 0, 1 (the one that is asked for) or 2
template <typename T, int taps, int kGrads>
class Item {
  using A = typename Accumulate<T>::type;
  using V = Vec<A>;
  using Mask = typename Simd<A>::Mask;
  static constexpr int width = Simd<A>::width;
  static constexpr int kChannels = 3;  // of a colour picture whose channels lie side by side
  // one gradient needs the sum of the means' derivatives only, which is kept as kMeanU
  static constexpr int kDerivatives = kGrads == 2 ? kMaps : kMaps - 1;

  const Problem& p_;
  const Layout<A> layout_;
  const int known_stride_;  // see below
  const A* window_;         // [taps]; symmetric, so that it carries gradients back, too
  V* strip_;                // [kMaps, rows]                   lanes are columns
  Columns<A> moments_;      // lanes are rows
  Columns<A> derivatives_;  // lanes are rows
  V* pixel_tails_;          // [pixel_blocks, 2, halo]         lanes are columns
  V* derivative_tails_;     // [grad_blocks, kMaps, halo]      lanes are columns

  const T* input_;                          // [H, W] of this plane
  const T* target_;                         // [H, W]
  const A* weight_;                         // [OH, OW] or null
  int64_t n_, c_, y0_, y1_, x0_, x1_;       // what this item covers: see Problem::grid_h()
  int64_t first_x_, last_x_;                // columns of the map that it needs
  int64_t first_y_, last_y_;                // rows
  A pivot_input_, pivot_target_, pivot_v_;  // in the images' units
  double sum_[width];

 public:
  // `turn`: of the items that are done together
  Item(const Problem& p, const A* window, void* scratch, int64_t turn)
      : p_(p),
        layout_(p),
        known_stride_(known_stride(p)),
        window_(window),
        strip_(static_cast<V*>(scratch)),
        moments_(strip_ + layout_.strip(), layout_.columns),
        derivatives_(strip_ + layout_.strip() + layout_.window_of_columns(), layout_.columns),
        pixel_tails_(strip_ + layout_.shared() + turn * layout_.tails()),
        derivative_tails_(pixel_tails_ + layout_.pixel_tails()) {}

  int64_t first_y() const { return first_y_; }
  int64_t end_y() const { return kGrads ? y1_ + p_.pad : last_y_; }

  void store_sum(int64_t item) const {
    double total = 0;
    for (int i = 0; i < width; ++i) total += sum_[i];
    p_.sums[item] = total;
  }

  void locate(int64_t item) {
    c_ = item % p_.c;
    const int64_t tile = item / p_.c % p_.tiles;
    const int64_t band = item / p_.c / p_.tiles % p_.bands;
    n_ = item / p_.c / p_.tiles / p_.bands;
    y0_ = band * p_.band_h;
    x0_ = tile * p_.tile_w;
    y1_ = smaller(y0_ + p_.band_h, p_.grid_h());
    x1_ = smaller(x0_ + p_.tile_w, p_.grid_w());
    // a gradient's pixel (y, x) is in the windows [y + pad - halo, y + pad] x [x + pad - halo, ...]
    const int64_t reach = kGrads ? p_.pad : 0, back = kGrads ? layout_.halo - p_.pad : 0;
    first_y_ = larger(0, y0_ - back);
    first_x_ = larger(0, x0_ - back);
    last_y_ = smaller(p_.out_h, y1_ + reach);
    last_x_ = smaller(p_.out_w, x1_ + reach);
    input_ = plane<const T>(p_.input, n_, c_);
    target_ = plane<const T>(p_.target, n_, c_);
    weight_ = p_.weight.data ? plane<const A>(p_.weight, n_, c_) : nullptr;
    for (int i = 0; i < width; ++i) sum_[i] = 0;
    choose_pivot();
  }

  // ---- map rows [y, y + width) over all of the item's columns ----

  void block_row(int64_t y) {
    const int64_t left = round_down(first_x_ - p_.pad, width);      // column 0 of the moments
    const int64_t to_column = -p_.pad - left;                       // of the window at x
    const int64_t lead = first_x_ - (x0_ + p_.pad - layout_.halo);  // zero columns left of the map
    moments_.clear();
    if constexpr (kGrads > 0) start_derivatives(lead);
    int64_t ready = 0, next_block = 0;  // columns of moments, blocks of the gradient
    for (int64_t x = first_x_; x < last_x_ && y < last_y_; x += width) {
      const int64_t column = x + to_column;
      moments_.make_room(column, ready, round_up(column + width + layout_.halo, width));
      const int64_t needed = smaller(x + width, last_x_) + to_column + layout_.halo;
      for (; ready < needed; ready += width) filter_down(y, left + ready, ready);
      if constexpr (kGrads > 0) {
        const int64_t made = lead + x - first_x_;
        derivatives_.make_room(next_block * width, made, made + width);
      }
      windows(y, x, column, lead, ahead_of(y, left + ready, next_block + 1));
      if constexpr (kGrads > 0) {
        const int64_t made = lead + x - first_x_ + width;
        for (; made >= (next_block + 1) * width + layout_.halo; ++next_block) {
          gradient_block(y, next_block);
        }
      }
    }
    if constexpr (kGrads > 0) {
      finish_row(y, next_block, y < last_y_ ? lead + round_up(last_x_ - first_x_, width) : 0);
    }
  }

 private:
  // the stride between a row's pixels in every image, where there is code for it; else 0
  static int known_stride(const Problem& p) {
    const int64_t stride = p.input.stride_w;
    for (const Image* image : {&p.target, &p.grad_input, &p.grad_target}) {
      if (image->data != nullptr && image->stride_w != stride) return 0;
    }
    return stride == 1 || stride == kChannels ? static_cast<int>(stride) : 0;
  }

  // The item's centre pixel. Where every window reaches over the edge, the zeros outside make the
  // variance large: there is nothing to gain, and a pivot would cost digits of the mean.
  void choose_pivot() {
    pivot_input_ = pivot_target_ = pivot_v_ = 0;
    if (p_.h < p_.taps || p_.w < p_.taps) return;
    const int64_t mid_y = smaller((y0_ + y1_) / 2, p_.h - 1);
    const int64_t mid_x = smaller((x0_ + x1_) / 2, p_.w - 1);
    const A x = to_arithmetic(input_[mid_y * p_.input.stride_h + mid_x * p_.input.stride_w]);
    const A y = to_arithmetic(target_[mid_y * p_.target.stride_h + mid_x * p_.target.stride_w]);
    pivot_input_ = finite_or_zero(x);
    pivot_target_ = finite_or_zero(y);
    pivot_v_ = finite_or_zero(x - y);
  }

  // ---- pixels ----

  struct Pixels {
    V u, v;
  };

  struct Pivots {
    V input, target, v, scale;

    SSIM_INLINE Pixels pixels(V a, V b) const {
      // x + y would round away the last digits of large pixels, so the pivots come first there;
      // x - y is exact for images that are near each other, so it comes first here
      return {((a - input) + (b - target)) * scale, ((a - b) - v) * scale};
    }
  };
  SSIM_INLINE Pivots pivots() const {
    return {splat<A>(pivot_input_), splat<A>(pivot_target_), splat<A>(pivot_v_),
            splat<A>(static_cast<A>(p_.inverse_range))};
  }

  // A block's columns of the image. kStride: that of a row where all of them lie in the image, if
  // it is a known one; else 0.
  struct Lanes {
    int64_t first, last;
  };
  SSIM_INLINE Lanes lanes_in_image(int64_t x) const {
    return {larger(0, -x), smaller(width, p_.w - x)};
  }
  SSIM_INLINE int whole_stride(Lanes lanes) const {
    return lanes.last - lanes.first == width ? known_stride_ : 0;
  }
  template <int kStride>
  SSIM_INLINE static V load_row(const T* p, int64_t stride, Lanes lanes) {
    if constexpr (kStride == 1) return load(p);
    if constexpr (kStride > 1 && kHasGather<T>) return gather(p, kStride);
    return load_lanes<T, A>(p, stride, lanes.first, lanes.last);
  }

  // u and v of rows [y, y + count) and columns [x, x + width), rows in the image only
  template <int kStride>
  SSIM_INLINE void load_pixels(int64_t y, int64_t x, Lanes lanes, int64_t count, V* u, V* v) const {
    const Pivots taken = pivots();
    const int64_t step_a = p_.input.stride_h, step_b = p_.target.stride_h;
    const T* a = input_ + y * step_a + x * p_.input.stride_w;
    const T* b = target_ + y * step_b + x * p_.target.stride_w;
    for (int64_t i = 0; i < count; ++i, a += step_a, b += step_b) {
      const Pixels pixels = taken.pixels(load_row<kStride>(a, p_.input.stride_w, lanes),
                                         load_row<kStride>(b, p_.target.stride_w, lanes));
      u[i] = pixels.u;
      v[i] = pixels.v;
    }
  }

  // u and v of rows [y, y + rows) and columns [x, x + width); outside the image lies zero. `kept`:
  // where the rows that this block shares with the one below are kept, or null.
  SSIM_INLINE void fill_strip(int64_t y, int64_t x, V* kept, bool is_kept) {
    const int64_t rows = layout_.rows, halo = layout_.halo;
    V *u = strip_, *v = strip_ + rows;
    const int64_t from = is_kept ? halo : 0;  // rows that the row of blocks above has kept
    if (is_kept) {
      copy_rows(kept, u);
      copy_rows(kept + halo, v);
    }
    const Pixels outside = pivots().pixels(V{}, V{});
    const int64_t top = smaller(larger(from, -y), rows);
    const int64_t bottom = smaller(larger(top, p_.h - y), rows);
    for (int64_t i = from; i < top; ++i) u[i] = outside.u, v[i] = outside.v;
    for (int64_t i = bottom; i < rows; ++i) u[i] = outside.u, v[i] = outside.v;
    const Lanes lanes = lanes_in_image(x);
    const int stride = whole_stride(lanes);
    if (stride == 1) {
      load_pixels<1>(y + top, x, lanes, bottom - top, u + top, v + top);
    } else if (stride == kChannels) {
      load_pixels<kChannels>(y + top, x, lanes, bottom - top, u + top, v + top);
    } else {
      load_pixels<0>(y + top, x, lanes, bottom - top, u + top, v + top);
    }
    if (kept != nullptr) {
      copy_rows(u + width, kept);
      copy_rows(v + width, kept + halo);
    }
  }

  // the rows that two blocks of rows share
  SSIM_INLINE void copy_rows(const V* from, V* to) const {
    const int64_t count = taps > 0 ? taps - 1 : layout_.halo;
#pragma GCC unroll 16
    for (int64_t i = 0; i < count; ++i) to[i] = from[i];
  }

  // moments of the columns [x, x + width), filtered down
  SSIM_INLINE void filter_down(int64_t y, int64_t x, int64_t column) {
    if (x + width <= 0 || x >= p_.w) return fill_outside(column);
    const bool keeps = layout_.pixel_blocks > 0;
    V* kept = keeps ? pixel_tails_ + column / width * 2 * layout_.halo : nullptr;
    fill_strip(y - p_.pad, x, kept, keeps && y > first_y_);
    for (int map = 0; map < 2; ++map) {
      V out[width];
      filter<A, taps, true>(strip_ + map * layout_.rows, window_, p_.taps, out);
      store_columns(out, moments_.at(kSquareU + map, column));
    }
    for (int map = 0; map < 2; ++map) {
      V out[width];
      filter<A, taps>(strip_ + map * layout_.rows, window_, p_.taps, out);
      store_columns(out, moments_.at(kMeanU + map, column));
    }
  }

  // moments of the zeros beside the image
  SSIM_INLINE void fill_outside(int64_t column) {
    const Pixels outside = pivots().pixels(V{}, V{});
    const V values[kMaps] = {outside.u * outside.u, outside.v * outside.v, outside.u, outside.v};
    for (int map = 0; map < kMaps; ++map) {
      V* to = moments_.at(map, column);
      for (int i = 0; i < width; ++i) to[i] = values[map];
    }
  }

  SSIM_INLINE static void store_columns(V (&rows)[width], V* to) {
    transpose<A>(rows);
#pragma GCC unroll 16
    for (int i = 0; i < width; ++i) to[i] = rows[i];
  }

  // lane i is set where first <= y + i < last
  SSIM_INLINE static Mask lanes_between(int64_t y, int64_t first, int64_t last) {
    Mask lane{};
    for (int i = 0; i < width; ++i) lane[i] = i;
    const int from = smaller(larger(first - y, 0), width), to = smaller(larger(last - y, 0), width);
    return (lane >= from) & (lane < to);
  }

  // Blocks go down the image, which no processor foresees. So the pixels that come next are asked
  // for in time, and a few at once: all of them together would keep other reads waiting. The same
  // for the gradient's rows, which would be fetched one after the other when they are written.
  struct Ahead {
    const T *input, *target;
    const T *to_input, *to_target;  // or null
    int64_t lines;                  // of the cache that a block's row of pixels covers

    SSIM_INLINE void prefetch(const Problem& p, int64_t row) const {
      constexpr int64_t kLine = 64 / sizeof(T);
      for (int64_t line = 0; line < lines; ++line) {
        __builtin_prefetch(input + row * p.input.stride_h + line * kLine);
        __builtin_prefetch(target + row * p.target.stride_h + line * kLine);
      }
      if (kGrads > 0 && to_input) __builtin_prefetch(to_input + row * p.grad_input.stride_h, 1);
      if (kGrads > 1 && to_target) __builtin_prefetch(to_target + row * p.grad_target.stride_h, 1);
    }
  };

  // pixels from column x on, of the rows that the block row at y reads first; a gradient's block
  SSIM_INLINE Ahead ahead_of(int64_t y, int64_t x, int64_t block) const {
    const int64_t first = y - p_.pad + layout_.halo, grad_x = x0_ + block * width;
    Ahead ahead{at<const T>(p_.input, first, x), at<const T>(p_.target, first, x), nullptr, nullptr,
                c_ == 0 ? smaller(p_.input.stride_w, 4) : 1};  // channels side by side share lines
    if (p_.grad_input.data) ahead.to_input = at<const T>(p_.grad_input, y - p_.pad, grad_x);
    if (p_.grad_target.data) ahead.to_target = at<const T>(p_.grad_target, y - p_.pad, grad_x);
    return ahead;
  }

  // the windows of one block: moments filtered across, then the formula
  SSIM_INLINE void windows(int64_t y, int64_t x, int64_t column, int64_t lead, const Ahead& ahead) {
    V filtered[kMaps][width];
    for (int map = 0; map < kMaps; ++map) {
      filter<A, taps>(moments_.at(map, column), window_, p_.taps, filtered[map]);
    }
    const V half = splat<A>(A(0.5));
    const V c1 = splat<A>(static_cast<A>(p_.c1)), c2 = splat<A>(static_cast<A>(p_.c2));
    const A scale = static_cast<A>(p_.inverse_range);
    const V pivot_u = splat<A>((pivot_input_ + pivot_target_) * scale);
    const V pivot_v = splat<A>(pivot_v_ * scale);
    V weights[width];
    if (kGrads > 0 && weight_ != nullptr) load_weights(y, x, weights);
    const int64_t to = lead + x - first_x_;
    V values[width];
    for (int i = 0; i < width; ++i) {
      ahead.prefetch(p_, i);
      const Moments<V> m{filtered[kMeanU][i], filtered[kMeanV][i], filtered[kSquareU][i],
                         filtered[kSquareV][i]};
      const Terms<V> t = terms<V>(m, pivot_u, pivot_v, c1, c2, half);
      values[i] = delta<V>(t);
      if constexpr (kGrads > 0) {
        Derivatives<V> d = derivatives<V>(t, m, half);
        if constexpr (kGrads == 1) d.mean_u += d.mean_v;
        *derivatives_.at(kSquareU, to + i) = d.square_u;
        *derivatives_.at(kSquareV, to + i) = d.square_v;
        *derivatives_.at(kMeanU, to + i) = d.mean_u;
        if constexpr (kGrads == 2) *derivatives_.at(kMeanV, to + i) = d.mean_v;
      }
    }
    if constexpr (kGrads > 0) {
      if (weight_ != nullptr) weigh_derivatives(to, weights);
      clear_outside(y, x, to);
    }
    if (p_.sums != nullptr) add_up(y, x, values);
    if (p_.map.data != nullptr) store_map(y, x, values);
  }

  // adds this item's own windows to its sums
  SSIM_INLINE void add_up(int64_t y, int64_t x, const V (&values)[width]) {
    const int64_t from = larger(x0_ - x, 0);
    const int64_t to = smaller(smaller(x1_, last_x_) - x, width);
    V sum{};
    if (from == 0 && to == width) {
#pragma GCC unroll 16
      for (int i = 0; i < width; ++i) sum += values[i];
    } else {
      for (int64_t i = from; i < to; ++i) sum += values[i];
    }
    sum = lanes_between(y, y0_, smaller(y1_, p_.out_h)) ? sum : V{};
    for (int i = 0; i < width; ++i) sum_[i] += static_cast<double>(sum[i]);
  }

  SSIM_INLINE void store_map(int64_t y, int64_t x, V (&values)[width]) const {
    transpose<A>(values);
    T* map = plane<T>(p_.map, n_, c_);
    for (int64_t i = 0; i < smaller(width, y1_ - y); ++i) {
      store_lanes<T, A>(values[i], map + (y + i) * p_.map.stride_h + x * p_.map.stride_w,
                        p_.map.stride_w, last_x_ - x);
    }
  }

  // ---- derivatives ----

  // the block's weights, transposed as the moments are; zero outside the map
  SSIM_INLINE void load_weights(int64_t y, int64_t x, V (&weights)[width]) const {
    for (int i = 0; i < width; ++i) {
      weights[i] = V{};
      if (y + i < last_y_) {
        weights[i] =
            load_lanes<A, A>(weight_ + (y + i) * p_.weight.stride_h + x * p_.weight.stride_w,
                             p_.weight.stride_w, 0, smaller(width, last_x_ - x));
      }
    }
    transpose<A>(weights);
  }

  SSIM_INLINE void weigh_derivatives(int64_t column, const V (&weights)[width]) {
    for (int map = 0; map < kDerivatives; ++map) {
      V* d = derivatives_.at(map, column);
      for (int i = 0; i < width; ++i) d[i] *= weights[i];
    }
  }

  // windows that the map does not have contribute nothing
  SSIM_INLINE void clear_outside(int64_t y, int64_t x, int64_t column) {
    if (y + width > last_y_) {
      const Mask inside = lanes_between(y, 0, last_y_);
      for (int map = 0; map < kDerivatives; ++map) {
        V* d = derivatives_.at(map, column);
        for (int i = 0; i < width; ++i) d[i] = inside ? d[i] : V{};
      }
    }
    if (x + width > last_x_) zero_derivatives(column + last_x_ - x, column + width);
  }

  SSIM_INLINE void zero_derivatives(int64_t from, int64_t to) {
    for (int map = 0; map < kDerivatives; ++map) {
      for (int64_t i = from; i < to; ++i) *derivatives_.at(map, i) = V{};
    }
  }

  SSIM_INLINE void start_derivatives(int64_t lead) {
    derivatives_.clear();
    zero_derivatives(0, lead);
  }

  // the blocks whose windows reach beyond the last of the `made` columns
  SSIM_INLINE void finish_row(int64_t y, int64_t next_block, int64_t made) {
    for (; x0_ + next_block * width < x1_; ++next_block) {
      const int64_t needed = (next_block + 1) * width + layout_.halo;
      derivatives_.make_room(next_block * width, made, needed);
      zero_derivatives(made, needed);
      made = larger(made, needed);
      gradient_block(y, next_block);
    }
  }

  // ---- gradient ----

  // Derivatives of the map rows [y, y + width) complete the gradient rows [y - pad, y - pad +
  // width):
  //     from_u = G*d_mean_u + u G*d_square_u       from_v = G*d_mean_v + v G*d_square_v
  //     d/dx = from_u + from_v                     d/dy = from_u - from_v
  void gradient_block(int64_t y, int64_t block) {
    V filtered[kMaps][width];
    for (int map = 0; map < kDerivatives; ++map) {
      V* rows = strip_ + map * layout_.rows;
      V* kept = derivative_tails_ + (block * kMaps + map) * layout_.halo;
      if (y > first_y_) {
        copy_rows(kept, rows);
      } else {
        for (int64_t i = 0; i < layout_.halo; ++i) rows[i] = V{};
      }
      if (y < last_y_) {
        V out[width];
        filter<A, taps>(derivatives_.at(map, block * width), window_, p_.taps, out);
        store_columns(out, rows + layout_.halo);
      } else {  // below the map
        for (int i = 0; i < width; ++i) rows[layout_.halo + i] = V{};
      }
      filter<A, taps>(rows, window_, p_.taps, filtered[map]);
      copy_rows(rows + width, kept);
    }
    const int64_t x = x0_ + block * width;
    const Lanes lanes = lanes_in_image(x);
    const int stride = x + width <= x1_ ? whole_stride(lanes) : 0;
    if (stride == 1) {
      combine<1>(y - p_.pad, x, lanes, filtered);
    } else if (stride == kChannels) {
      combine<kChannels>(y - p_.pad, x, lanes, filtered);
    } else {
      combine<0>(y - p_.pad, x, lanes, filtered);
    }
  }

  template <int kStride>
  SSIM_INLINE void combine(int64_t y, int64_t x, Lanes lanes, const V (&filtered)[kMaps][width]) {
    const V scale = splat<A>(static_cast<A>(p_.grad_scale * p_.inverse_range));
    const Pivots taken = pivots();
    const int64_t from = larger(y0_ - y, 0), to = smaller(y1_ - y, width);
    const T* a = at<const T>(p_.input, y + from, x);
    const T* b = at<const T>(p_.target, y + from, x);
    T* to_input = p_.grad_input.data ? at<T>(p_.grad_input, y + from, x) : nullptr;
    T* to_target = p_.grad_target.data ? at<T>(p_.grad_target, y + from, x) : nullptr;
    for (int64_t i = from; i < to; ++i) {
      const auto [u, v] = taken.pixels(load_row<kStride>(a, p_.input.stride_w, lanes),
                                       load_row<kStride>(b, p_.target.stride_w, lanes));
      a += p_.input.stride_h;
      b += p_.target.stride_h;
      const V from_u = filtered[kMeanU][i] + u * filtered[kSquareU][i];
      const V from_v = v * filtered[kSquareV][i] + (kGrads == 2 ? filtered[kMeanV][i] : V{});
      if (kGrads == 1 || to_input != nullptr) {
        store_row<kStride>((from_u + from_v) * scale, to_input, p_.grad_input.stride_w, x);
        to_input += p_.grad_input.stride_h;
      }
      if (kGrads == 2 && to_target != nullptr) {
        store_row<kStride>((from_u - from_v) * scale, to_target, p_.grad_target.stride_w, x);
        to_target += p_.grad_target.stride_h;
      }
    }
  }

  template <typename To>
  SSIM_INLINE To* at(const Image& image, int64_t y, int64_t x) const {
    return plane<To>(image, n_, c_) + y * image.stride_h + x * image.stride_w;
  }

  template <int kStride>
  SSIM_INLINE void store_row(V value, T* to, int64_t stride, int64_t x) const {
    if constexpr (kStride == 1) return store(value, to);
    if constexpr (kStride > 1 && kHasScatter<T>) return scatter(value, to, kStride);
    store_lanes<T, A>(value, to, stride, x1_ - x);
  }
};

// ---- launcher ----

constexpr int64_t kAlign = 64;

template <typename T>
int64_t window_bytes(const Problem& p) {
  using A = typename Accumulate<T>::type;
  return round_up(p.taps * static_cast<int64_t>(sizeof(A)), kAlign);
}

template <typename T, int taps, int kGrads>
void run_items(const Problem& p, int64_t begin, int64_t end, void* scratch) {
  using A = typename Accumulate<T>::type;
  A* window = static_cast<A*>(scratch);
  for (int64_t k = 0; k < p.taps; ++k) window[k] = static_cast<A>(p.window[k]);
  void* buffers = static_cast<char*>(scratch) + window_bytes<T>(p);
  Item<T, taps, kGrads> items[Problem::kMaxTogether] = {{p, window, buffers, 0},
                                                        {p, window, buffers, 1},
                                                        {p, window, buffers, 2},
                                                        {p, window, buffers, 3}};
  for (int64_t first = begin; first < end; first += p.together) {
    for (int64_t i = 0; i < p.together; ++i) items[i].locate(first + i);
    for (int64_t y = items[0].first_y(); y < items[0].end_y(); y += Simd<A>::width) {
      for (int64_t i = 0; i < p.together; ++i) items[i].block_row(y);
    }
    if (p.sums == nullptr) continue;
    for (int64_t i = 0; i < p.together; ++i) items[i].store_sum(first + i);
  }
}

template <typename T, int taps>
void run_taps(const Problem& p, int64_t begin, int64_t end, void* scratch) {
  if (!p.wants_grad()) return run_items<T, taps, 0>(p, begin, end, scratch);
  if (p.grad_target.data == nullptr) return run_items<T, taps, 1>(p, begin, end, scratch);
  run_items<T, taps, 2>(p, begin, end, scratch);
}

template <typename T>
void run_typed(const Problem& p, int64_t begin, int64_t end, void* scratch) {
  if (p.taps == 11) return run_taps<T, 11>(p, begin, end, scratch);
  run_taps<T, 0>(p, begin, end, scratch);
}

void run(const Problem& p, int64_t begin, int64_t end, void* scratch) {
  switch (p.dtype) {
    case Dtype::float32:
      return run_typed<float>(p, begin, end, scratch);
    case Dtype::float64:
      return run_typed<double>(p, begin, end, scratch);
    case Dtype::float16:
      return run_typed<float16>(p, begin, end, scratch);
    case Dtype::bfloat16:
      return run_typed<bfloat16>(p, begin, end, scratch);
  }
}

template <typename T>
int64_t scratch_bytes_of(const Problem& p) {
  const Layout<typename Accumulate<T>::type> layout(p);
  return window_bytes<T>(p) + (layout.shared() + p.together * layout.tails()) * kVectorBytes;
}

int64_t scratch_bytes(const Problem& p) {
  return p.dtype == Dtype::float64 ? scratch_bytes_of<double>(p) : scratch_bytes_of<float>(p);
}

}  // namespace

namespace ssim_fused {

Kernel SSIM_CONCAT(kernel_, SSIM_ISA)() { return {SSIM_STRING(SSIM_ISA), scratch_bytes, run}; }

}  // namespace ssim_fused
