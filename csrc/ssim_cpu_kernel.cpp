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
// An item (a tile of columns in a band of rows) is walked down in blocks of `width` rows:
//
//          x0 - halo      x0             x1      x1 + halo
//             +-----------+--------------+-----------+      halo = taps - 1 for a gradient
//      block  |  moments and derivatives of these    |      (half of it with padding on each side),
//             +-----------+--------------+-----------+      0 for a value
//      block  |  ...      |   gradient   |           |      gradient rows follow when the
//      derivative
//             +-----------+--------------+-----------+      rows below them are there
//
// Pixels are scaled to a data range of 1, and one pixel (the pivot) is subtracted from all of an
// item: variances do not change, and bright flat areas keep their digits.
#include "ssim_cpu.h"

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

// ---- the filter ----

// out[i] = sum_k window[k] * rows[i + k], i < width; taps > 0 is a compile-time count
template <typename A, int taps>
SSIM_INLINE void filter(const Vec<A>* rows, const A* window, int64_t run_time_taps,
                        Vec<A> (&out)[Simd<A>::width]) {
  constexpr int width = Simd<A>::width;
#pragma GCC unroll 16
  for (int i = 0; i < width; ++i) out[i] = Vec<A>{};
  if constexpr (taps > 0) {
    // each row is loaded once and added to every output that it serves
#pragma GCC unroll 32
    for (int row = 0; row < width + taps - 1; ++row) {
      const Vec<A> x = rows[row];
#pragma GCC unroll 16
      for (int i = 0; i < width; ++i) {
        const int k = row - i;
        if (k >= 0 && k < taps) out[i] += window[k] * x;
      }
    }
  } else {
    for (int64_t k = 0; k < run_time_taps; ++k) {
#pragma GCC unroll 16
      for (int i = 0; i < width; ++i) out[i] += window[k] * rows[i + k];
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
  A lanes[width] = {};
  for (int64_t i = first; i < last; ++i) lanes[i] = to_arithmetic(p[i * stride]);
  return load(lanes);
}

template <typename T, typename A>
SSIM_INLINE void store_lanes(Vec<A> v, T* p, int64_t stride, int64_t count) {
  constexpr int width = Simd<A>::width;
  if (stride == 1 && count >= width) return store(v, p);
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

enum Map { kMeanU, kMeanV, kSquareU, kSquareV, kMaps };

// sizes of an item's buffers, in vectors
template <typename A>
struct Layout {
  static constexpr int width = Simd<A>::width;
  int64_t halo;         // taps - 1
  int64_t strip_rows;   // rows of pixels behind one block of moments
  int64_t columns;      // columns of moments, or of derivatives, that are kept
  int64_t grad_rows;    // rows of derivatives kept for the gradient
  int64_t grad_blocks;  // blocks across the gradient

  explicit Layout(const Problem& p) {
    halo = p.taps - 1;
    strip_rows = width + halo;
    columns = round_up(halo, width) + 4 * width;
    grad_blocks = p.wants_grad() ? round_up(p.tile_w, width) / width : 0;
    grad_rows = 2 * width + halo;
  }
  int64_t strip() const { return kMaps * strip_rows; }
  int64_t window_of_columns() const { return kMaps * columns; }
  int64_t derivative_rows() const { return kMaps * grad_blocks * grad_rows; }
  int64_t vectors() const { return strip() + 2 * window_of_columns() + derivative_rows(); }
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

  // room for columns up to `end`, where those from `needed` on are kept
  SSIM_INLINE void make_room(int64_t needed, int64_t end) {
    if (end - first_ <= capacity_) return;
    const int64_t moved = needed - first_, count = capacity_ - moved;
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

  const Problem& p_;
  const Layout<A> layout_;
  const A* window_;          // [taps]
  const A* adjoint_window_;  // [taps], mirrored
  V* strip_;                 // [kMaps, strip_rows]                    lanes are columns
  Columns<A> moments_;       // lanes are rows
  Columns<A> derivatives_;   // lanes are rows
  V* rows_;                  // [kMaps, grad_blocks, grad_rows]        lanes are columns

  const T* input_;                          // [H, W] of this plane
  const T* target_;                         // [H, W]
  const A* weight_;                         // [OH, OW] or null
  int64_t n_, c_, y0_, y1_, x0_, x1_;       // what this item covers
  A pivot_input_, pivot_target_, pivot_v_;  // in the images' units
  double sum_[width];

 public:
  Item(const Problem& p, const A* window, void* scratch)
      : p_(p),
        layout_(p),
        window_(window),
        adjoint_window_(window + p.taps),
        strip_(static_cast<V*>(scratch)),
        moments_(strip_ + layout_.strip(), layout_.columns),
        derivatives_(strip_ + layout_.strip() + layout_.window_of_columns(), layout_.columns),
        rows_(strip_ + layout_.strip() + 2 * layout_.window_of_columns()) {}

  void run(int64_t item) {
    locate(item);
    // map rows and columns that this item needs: its own, and those that reach its gradient
    const int64_t first_y = kGrads ? larger(0, y0_ + p_.pad - layout_.halo) : y0_;
    const int64_t last_y = smaller(p_.out_h, kGrads ? y1_ + p_.pad : y1_);
    if constexpr (kGrads > 0) start_gradient(first_y);
    for (int64_t y = first_y; y < last_y; y += width) {
      block_row(y, last_y);
      if constexpr (kGrads > 0) advance_gradient();
    }
    if constexpr (kGrads > 0) finish_gradient();
    if (p_.sums != nullptr) {
      double total = 0;
      for (int i = 0; i < width; ++i) total += sum_[i];
      p_.sums[item] = total;
    }
  }

 private:
  void locate(int64_t item) {
    const int64_t tile = item % p_.tiles, band = item / p_.tiles % p_.bands;
    const int64_t plane_index = item / p_.tiles / p_.bands;
    n_ = plane_index / p_.c;
    c_ = plane_index % p_.c;
    y0_ = band * p_.band_h;
    x0_ = tile * p_.tile_w;
    y1_ = smaller(y0_ + p_.band_h, p_.grid_h());
    x1_ = smaller(x0_ + p_.tile_w, p_.grid_w());
    input_ = plane<const T>(p_.input, n_, c_);
    target_ = plane<const T>(p_.target, n_, c_);
    weight_ = p_.weight.data ? plane<const A>(p_.weight, n_, c_) : nullptr;
    for (int i = 0; i < width; ++i) sum_[i] = 0;
    choose_pivot();
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

  struct Pivots {
    V input, target, v, scale;
  };
  SSIM_INLINE Pivots pivots() const {
    return {splat<A>(pivot_input_), splat<A>(pivot_target_), splat<A>(pivot_v_),
            splat<A>(static_cast<A>(p_.inverse_range))};
  }

  // u and v, pivots taken away, of `width` pixels from (y, x); outside the image lies zero
  SSIM_INLINE void pixels(int64_t y, int64_t x, const Pivots& pivots, V& u, V& v) const {
    V a{}, b{};
    const int64_t first = larger(0, -x), last = smaller(width, p_.w - x);  // lanes in the image
    if (y >= 0 && y < p_.h && first < last) {
      a = row_of(input_ + y * p_.input.stride_h, p_.input.stride_w, x, first, last);
      b = row_of(target_ + y * p_.target.stride_h, p_.target.stride_w, x, first, last);
    }
    // x + y would round away the last digits of large pixels, so the pivots come first there;
    // x - y is exact for images that are near each other, so it comes first here
    u = ((a - pivots.input) + (b - pivots.target)) * pivots.scale;
    v = ((a - b) - pivots.v) * pivots.scale;
  }

  SSIM_INLINE static V row_of(const T* row, int64_t stride, int64_t x, int64_t first,
                              int64_t last) {
    if (stride == 1) {
      // blocks go down the image, which no processor foresees: ask for the next one's pixels
      __builtin_prefetch(row + x + 2 * width);
      if (last - first == width) return load(row + x);
    }
    return load_lanes<T, A>(row + x * stride, stride, first, last);
  }

  // map rows [y, y + width) over all of the item's columns: moments, what follows from them, and
  // the derivatives filtered across
  void block_row(int64_t y, int64_t last_y) {
    const int64_t first_x = kGrads ? larger(0, x0_ + p_.pad - layout_.halo) : x0_;
    const int64_t last_x = smaller(p_.out_w, kGrads ? x1_ + p_.pad : x1_);
    const int64_t lead = first_x - (x0_ + p_.pad - layout_.halo);  // zero columns left of the map
    moments_.clear();
    if constexpr (kGrads > 0) start_derivatives(lead);
    int64_t ready = 0, next_block = 0;  // columns of moments, blocks of derivatives filtered across
    for (int64_t x = first_x; x < last_x; x += width) {
      const int64_t column = x - first_x;
      for (; ready < column + width + layout_.halo; ready += width) {
        if (first_x + ready >= last_x + layout_.halo) break;
        moments_.make_room(column, ready + width);
        filter_down(y - p_.pad, first_x - p_.pad + ready, ready);
      }
      if constexpr (kGrads > 0) derivatives_.make_room(next_block * width, lead + column + width);
      windows(y, last_y, x, last_x, column, lead);
      if constexpr (kGrads > 0) {
        const int64_t made = lead + column + width;
        for (; made >= (next_block + 1) * width + layout_.halo; ++next_block) {
          filter_derivatives_across(next_block);
        }
      }
    }
    if constexpr (kGrads > 0) finish_across(next_block, lead + round_up(last_x - first_x, width));
  }

  SSIM_INLINE void filter_down(int64_t y, int64_t x, int64_t column) {
    const int64_t rows = layout_.strip_rows;
    const Pivots taken = pivots();
    for (int64_t i = 0; i < rows; ++i) {
      V u, v;
      pixels(y + i, x, taken, u, v);
      strip_[kMeanU * rows + i] = u;
      strip_[kMeanV * rows + i] = v;
      strip_[kSquareU * rows + i] = u * u;
      strip_[kSquareV * rows + i] = v * v;
    }
    for (int map = 0; map < kMaps; ++map) {
      V out[width];
      filter<A, taps>(strip_ + map * rows, window_, p_.taps, out);
      transpose<A>(out);
      V* to = moments_.at(map, column);
#pragma GCC unroll 16
      for (int i = 0; i < width; ++i) to[i] = out[i];
    }
  }

  // lane i is set where first <= y + i < last
  SSIM_INLINE static Mask lanes_between(int64_t y, int64_t first, int64_t last) {
    Mask mask{};
    for (int i = 0; i < width; ++i) mask[i] = (y + i >= first && y + i < last) ? -1 : 0;
    return mask;
  }

  // the windows of one block: moments filtered across, then the formula
  SSIM_INLINE void windows(int64_t y, int64_t last_y, int64_t x, int64_t last_x, int64_t column,
                           int64_t lead) {
    V filtered[kMaps][width];
    for (int map = 0; map < kMaps; ++map) {
      filter<A, taps>(moments_.at(map, column), window_, p_.taps, filtered[map]);
    }

    const V half = splat<A>(A(0.5)), zero{};
    const V c1 = splat<A>(static_cast<A>(p_.c1)), c2 = splat<A>(static_cast<A>(p_.c2));
    const A scale = static_cast<A>(p_.inverse_range);
    const V pivot_u = splat<A>((pivot_input_ + pivot_target_) * scale);
    const V pivot_v = splat<A>(pivot_v_ * scale);
    const Mask inside = lanes_between(y, 0, last_y);
    const Mask own = lanes_between(y, y0_, smaller(y1_, p_.out_h));
    V weights[width];
    if (weight_ != nullptr) load_weights(y, last_y, x, last_x, weights);
    V values[width], sum{};
    for (int i = 0; i < width; ++i) {
      const Moments<V> m{filtered[kMeanU][i], filtered[kMeanV][i], filtered[kSquareU][i],
                         filtered[kSquareV][i]};
      const Terms<V> t = terms<V>(m, pivot_u, pivot_v, c1, c2, half);
      values[i] = delta<V>(t);
      if (x + i >= x0_ && x + i < smaller(x1_, last_x)) sum += own ? values[i] : zero;
      if constexpr (kGrads > 0) {
        Derivatives<V> d = derivatives<V>(t, m, half);
        if (x + i >= last_x) d = Derivatives<V>{zero, zero, zero, zero};
        if (weight_ != nullptr) {
          d.mean_u *= weights[i];
          d.mean_v *= weights[i];
          d.square_u *= weights[i];
          d.square_v *= weights[i];
        }
        const int64_t to = lead + column + i;
        const V mean = kGrads == 2 ? d.mean_u : d.mean_u + d.mean_v;  // one needs their sum
        *derivatives_.at(kMeanU, to) = inside ? mean : zero;
        if constexpr (kGrads == 2) *derivatives_.at(kMeanV, to) = inside ? d.mean_v : zero;
        *derivatives_.at(kSquareU, to) = inside ? d.square_u : zero;
        *derivatives_.at(kSquareV, to) = inside ? d.square_v : zero;
      }
    }
    if (p_.sums != nullptr) {
      for (int i = 0; i < width; ++i) sum_[i] += static_cast<double>(sum[i]);
    }
    if (p_.map.data != nullptr) store_map(y, x, last_x, values);
  }

  // the block's weights, transposed as the moments are; zero outside the map
  SSIM_INLINE void load_weights(int64_t y, int64_t last_y, int64_t x, int64_t last_x,
                                V (&weights)[width]) const {
    for (int i = 0; i < width; ++i) {
      weights[i] = V{};
      if (y + i < last_y) {
        weights[i] =
            load_lanes<A, A>(weight_ + (y + i) * p_.weight.stride_h + x * p_.weight.stride_w,
                             p_.weight.stride_w, 0, smaller(width, last_x - x));
      }
    }
    transpose<A>(weights);
  }

  SSIM_INLINE void store_map(int64_t y, int64_t x, int64_t last_x, V (&values)[width]) const {
    transpose<A>(values);
    T* map = plane<T>(p_.map, n_, c_);
    for (int64_t i = 0; i < smaller(width, y1_ - y); ++i) {
      store_lanes<T, A>(values[i], map + (y + i) * p_.map.stride_h + x * p_.map.stride_w,
                        p_.map.stride_w, last_x - x);
    }
  }

  // ---- gradient ----

  int64_t row_count_;  // rows of derivatives that rows_ holds
  int64_t next_y_;     // first gradient row not yet written

  void start_gradient(int64_t first_y) {
    row_count_ = first_y - (y0_ + p_.pad - layout_.halo);
    next_y_ = y0_;
    for (int64_t i = 0; i < kMaps * layout_.grad_blocks; ++i) {  // zero above the map
      for (int64_t row = 0; row < row_count_; ++row) rows_[i * layout_.grad_rows + row] = V{};
    }
  }

  // maps of derivatives that the gradients are made of: see combine()
  SSIM_INLINE static constexpr bool is_used(int map) { return map != kMeanV || kGrads == 2; }

  // the columns left of the map contribute nothing
  SSIM_INLINE void start_derivatives(int64_t lead) {
    derivatives_.clear();
    zero_derivatives(0, lead);
  }

  SSIM_INLINE void zero_derivatives(int64_t from, int64_t to) {
    for (int map = 0; map < kMaps; ++map) {
      for (int64_t i = from; i < to; ++i) *derivatives_.at(map, i) = V{};
    }
  }

  SSIM_INLINE void filter_derivatives_across(int64_t block) {
#pragma GCC unroll 4
    for (int map = 0; map < kMaps; ++map) {
      if (!is_used(map)) continue;
      V out[width];
      filter<A, taps>(derivatives_.at(map, block * width), adjoint_window_, p_.taps, out);
      transpose<A>(out);
      V* to = rows_ + (map * layout_.grad_blocks + block) * layout_.grad_rows + row_count_;
#pragma GCC unroll 16
      for (int i = 0; i < width; ++i) to[i] = out[i];
    }
  }

  // the blocks whose windows reach beyond the last column of the map, where derivatives are zero
  void finish_across(int64_t next_block, int64_t made) {
    for (; x0_ + next_block * width < x1_; ++next_block) {
      const int64_t needed = (next_block + 1) * width + layout_.halo;
      derivatives_.make_room(next_block * width, needed);
      zero_derivatives(made, needed);
      made = larger(made, needed);
      filter_derivatives_across(next_block);
    }
  }

  // the block row is filtered across; write the gradient rows that are complete
  void advance_gradient() {
    row_count_ += width;
    if (row_count_ >= width + layout_.halo && next_y_ < y1_) combine();
  }

  // below the last row of the map the derivatives are zero
  void finish_gradient() {
    while (next_y_ < y1_) {
      for (int64_t i = 0; i < kMaps * layout_.grad_blocks; ++i) {
        V* column = rows_ + i * layout_.grad_rows;
        for (int64_t row = row_count_; row < width + layout_.halo; ++row) column[row] = V{};
      }
      row_count_ = larger(row_count_, width + layout_.halo);
      combine();
    }
  }

  // gradient rows [next_y_, next_y_ + width):
  //     from_u = G*d_mean_u + u G*d_square_u       from_v = G*d_mean_v + v G*d_square_v
  //     d/dx = from_u + from_v                     d/dy = from_u - from_v
  void combine() {
    const V scale = splat<A>(static_cast<A>(p_.grad_scale * p_.inverse_range));
    const Pivots taken = pivots();
    const int64_t rows = smaller(width, y1_ - next_y_);
    for (int64_t block = 0; x0_ + block * width < x1_; ++block) {
      const int64_t x = x0_ + block * width;
      V filtered[kMaps][width];
      for (int map = 0; map < kMaps; ++map) {
        if (!is_used(map)) continue;
        filter<A, taps>(rows_ + (map * layout_.grad_blocks + block) * layout_.grad_rows,
                        adjoint_window_, p_.taps, filtered[map]);
      }
      for (int64_t i = 0; i < rows; ++i) {
        V u, v;
        pixels(next_y_ + i, x, taken, u, v);
        const V from_u = filtered[kMeanU][i] + u * filtered[kSquareU][i];
        const V from_v = v * filtered[kSquareV][i] + (kGrads == 2 ? filtered[kMeanV][i] : V{});
        if (p_.grad_input.data)
          store_gradient(p_.grad_input, next_y_ + i, x, (from_u + from_v) * scale);
        if (p_.grad_target.data)
          store_gradient(p_.grad_target, next_y_ + i, x, (from_u - from_v) * scale);
      }
    }
    next_y_ += width;
    keep_rows();
  }

  // move the rows that the next gradient rows need to the front
  void keep_rows() {
    const int64_t left = larger(0, row_count_ - width);
    for (int64_t i = 0; i < kMaps * layout_.grad_blocks; ++i) {
      V* column = rows_ + i * layout_.grad_rows;
      for (int64_t row = 0; row < left; ++row) column[row] = column[row + width];
    }
    row_count_ = left;
  }

  SSIM_INLINE void store_gradient(const Image& grad, int64_t y, int64_t x, V value) const {
    T* to = plane<T>(grad, n_, c_) + y * grad.stride_h + x * grad.stride_w;
    store_lanes<T, A>(value, to, grad.stride_w, x1_ - x);
  }
};

// ---- launcher ----

constexpr int64_t kAlign = 64;

template <typename T>
int64_t window_bytes(const Problem& p) {
  using A = typename Accumulate<T>::type;
  return round_up(2 * p.taps * static_cast<int64_t>(sizeof(A)), kAlign);
}

template <typename T, int taps, int kGrads>
void run_items(const Problem& p, int64_t begin, int64_t end, void* scratch) {
  using A = typename Accumulate<T>::type;
  A* window = static_cast<A*>(scratch);
  for (int64_t k = 0; k < p.taps; ++k) {
    window[k] = static_cast<A>(p.window[k]);
    window[2 * p.taps - 1 - k] = window[k];
  }
  Item<T, taps, kGrads> item(p, window, static_cast<char*>(scratch) + window_bytes<T>(p));
  for (int64_t i = begin; i < end; ++i) item.run(i);
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

int64_t scratch_bytes(const Problem& p) {
  return p.dtype == Dtype::float64
             ? window_bytes<double>(p) + Layout<double>(p).vectors() * kVectorBytes
             : window_bytes<float>(p) + Layout<float>(p).vectors() * kVectorBytes;
}

}  // namespace

namespace ssim_fused {

Kernel SSIM_CONCAT(kernel_, SSIM_ISA)() { return {SSIM_STRING(SSIM_ISA), scratch_bytes, run}; }

}  // namespace ssim_fused
