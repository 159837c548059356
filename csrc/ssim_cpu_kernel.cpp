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
// item: variances do not change, and bright flat areas keep their digits. Here u and v are half the
// sum and half the difference, which saves the formula four multiplications: see Constants.
//
// Volumes and masked images take the same way from products that are made one by one (kGeneral): a
// volume's slices are added up, each times its weight along z, before they are filtered down, and
// its gradient is filtered along z in a pass of its own, since each slice gets a share of 2 x pad
// others.
#include <initializer_list>
#include <type_traits>

#include "simd.h"
// simd.h has the vectors' own functions, which the formulas need to know
#include "ssim_cpu.h"
#include "ssim_math.h"

// for lambdas
#define SSIM_FORCE_INLINE __attribute__((always_inline))
// What makes one block. With narrow vectors that is little work; inlined, it would begin with what a
// compiler prepares for every layout of pixels, which took a tenth of a value's time with AVX2.
#if defined(__AVX512F__)
#define SSIM_BLOCK_INLINE SSIM_INLINE
#else
#define SSIM_BLOCK_INLINE __attribute__((noinline))
#endif
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

// Of a window's weights. Divided by the middle one, they need one multiplication less, and sum to
// more than 1: see Windows::sum. Not where a mask's coverage was made with the window as it is, nor
// where a window of any length may have next to nothing in its middle.
enum class Middle { one, any };

// the weights of each axis's window, [taps]; symmetric, so that they carry gradients back, too
template <typename A>
struct Windows {
  const A *z, *y, *x;
  A sum_y;  // of the weights along y
  A sum;    // of both axes' weights, which is exactly what they sum to; 1 as they are
};

// out[i] = sum_k window[k] * row(i + k), i < width; taps > 0 is a compile-time count
template <typename A, int taps, Middle kMiddle, typename Row>
SSIM_INLINE void filter(Row&& row, const A* window, int64_t run_time_taps,
                        Vec<A> (&out)[Simd<A>::width]) {
  constexpr int width = Simd<A>::width;
  if constexpr (taps > 0) {
    // The rows that a window covers stay in registers. The two that share a weight are added first:
    // many processors add beside their multiplications. Outputs are made in groups, as each is a
    // chain of sums that wait for one another.
    constexpr int middle = taps / 2, group = width < 4 ? width : 4;
    Vec<A> x[width + taps - 1];
#pragma GCC unroll 32
    for (int i = 0; i < taps - 1; ++i) x[i] = row(i);
#pragma GCC unroll 16
    for (int first = 0; first < width; first += group) {
#pragma GCC unroll 4
      for (int i = first; i < first + group; ++i) {
        x[i + taps - 1] = row(i + taps - 1);
        out[i] = x[i + middle];
        if constexpr (kMiddle == Middle::any) out[i] *= window[middle];
      }
#pragma GCC unroll 16
      for (int k = 0; k < middle; ++k) {
#pragma GCC unroll 4
        for (int i = first; i < first + group; ++i) {
          out[i] += window[k] * (x[i + k] + x[i + taps - 1 - k]);
        }
      }
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

// Lane by lane: at the images' edges, and for strides that have no code of their own. Not inlined:
// there are many places where it is called seldom.
template <typename T, typename A>
__attribute__((noinline)) Vec<A> load_each_lane(const T* p, int64_t stride, int64_t first,
                                                int64_t last) {
  A lanes[Simd<A>::width] = {};
  for (int64_t i = first; i < last; ++i) lanes[i] = to_arithmetic(p[i * stride]);
  return load(lanes);
}

template <typename T, typename A>
__attribute__((noinline)) void store_each_lane(Vec<A> v, T* p, int64_t stride, int64_t count) {
  A lanes[Simd<A>::width];
  store(v, lanes);
  for (int64_t i = 0; i < count; ++i) from_arithmetic(lanes[i], p[i * stride]);
}

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
  return load_each_lane<T, A>(p, stride, first, last);
}

template <typename T, typename A>
SSIM_INLINE void store_lanes(Vec<A> v, T* p, int64_t stride, int64_t count) {
  constexpr int width = Simd<A>::width;
  if (stride == 1 && count >= width) return store(v, p);
  if constexpr (kHasScatter<T>) {
    if (count >= width && stride > 0 && stride <= width) return scatter(v, p, stride);
  }
  store_each_lane<T, A>(v, p, stride, smaller(count, width));
}

template <typename T>
SSIM_INLINE T* plane(const Image& image, int64_t n, int64_t c) {
  return static_cast<T*>(image.data) + n * image.stride_n + c * image.stride_c;
}

// ---- scratch ----

// sizes of an item's buffers, in vectors
template <typename A>
struct Layout {
  static constexpr int width = Simd<A>::width;
  int64_t halo_y, halo_x;  // taps - 1
  int64_t rows;            // that one block of filtered rows is made of
  int64_t columns;         // of moments, or of derivatives, that are kept
  int64_t pixel_maps;      // filtered down from rows of pixels: u and v, or the products too
  int64_t pixel_blocks;    // blocks across the pixels whose last rows are kept
  int64_t grad_blocks;     // blocks across the gradient

  explicit Layout(const Problem& p) {
    halo_y = p.y.halo();
    halo_x = p.x.halo();
    rows = halo_y + width;
    columns = round_up(halo_x, width) + 8 * width;  // fewer would be moved more often
    pixel_maps = p.is_general() ? kMaps : 2;
    pixel_blocks = keeps(halo_y) ? (p.tile_w + 2 * halo_x) / width + 3 : 0;
    grad_blocks = p.wants_grad() ? (p.tile_w + width - 1) / width : 0;
  }
  // a larger window would keep more than it is worth: its rows are read again
  static constexpr bool keeps(int64_t halo) { return halo <= 2 * width; }
  int64_t strip() const { return kMaps * rows; }  // of all maps of pixels, or all derivatives
  int64_t window_of_columns() const { return kMaps * columns; }
  int64_t pixel_tails() const { return pixel_maps * halo_y * pixel_blocks; }
  int64_t derivative_tails() const { return kMaps * halo_y * grad_blocks; }
  int64_t shared() const { return strip() + 2 * window_of_columns(); }
  int64_t tails() const { return pixel_tails() + derivative_tails(); }
};

// The last columns of each map, few enough to stay in the nearest caches. Columns count from 0; those
// in front of what is still needed make room for new ones.
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

// ---- the formula ----

// What it needs beside the moments. With u and v halved, a and b are made without ssim_math.h's half,
//
//     a = m_u^2 + C1 / 2     p = m_v^2     A = a + p
//     b = V_u + C2 / 2       q = V_v       B = b + q     1 - SSIM = 2 (a q + p b) / (A B)
//
// and so are the derivatives; those by u's moments, which the half would belong to, are doubled.
template <typename A>
struct Constants {
  Vec<A> pivot_u, pivot_v, c1, c2, sum;
  static SSIM_INLINE Vec<A> half() { return splat<A>(A(1)); }  // ssim_math.h's

  // Pixels come divided by the windows' sum. So filtered means are right, and filtered squares are
  // to be multiplied by it, which joins the subtraction that follows.
  SSIM_INLINE Moments<Vec<A>> moments(const Vec<A> (&filtered)[kMaps][Simd<A>::width],
                                      int i) const {
    return {filtered[kMeanU][i], filtered[kMeanV][i], sum * filtered[kSquareU][i],
            sum * filtered[kSquareV][i]};
  }

  SSIM_INLINE Terms<Vec<A>> terms_of(const Moments<Vec<A>>& m) const {
    return terms<Vec<A>>(m, pivot_u, pivot_v, c1, c2, half());
  }
};

template <typename V>
SSIM_INLINE V twice(V x) {
  return x + x;
}

// the derivatives that are filtered, from those of ssim_math.h
template <int kGrads, typename V>
SSIM_INLINE Derivatives<V> of_halves(Derivatives<V> d) {
  d.mean_u = twice(d.mean_u);
  d.square_u = twice(d.square_u);
  if (kGrads == 1) d.mean_u += d.mean_v;
  return d;
}

// The maps that are not SSIM itself, as Item::formula makes that one; out: of each map.
template <typename A, int kGrads>
__attribute__((noinline)) void any_kind(Kind kind, const Constants<A>& constant,
                                        const Vec<A> (&filtered)[kMaps][Simd<A>::width],
                                        Vec<A>* const (&out)[kMaps],
                                        Vec<A> (&values)[Simd<A>::width]) {
  using V = Vec<A>;
  const V one = splat<A>(A(0.5));  // the halved map's
  for (int i = 0; i < Simd<A>::width; ++i) {
    const Moments<V> m = constant.moments(filtered, i);
    const Terms<V> t = constant.terms_of(m);
    values[i] = twice(delta<V>(t, kind, one));
    if constexpr (kGrads > 0) {
      const auto d = of_halves<kGrads>(derivatives<V>(t, m, kind, constant.half(), one));
      out[kSquareU][i] = d.square_u;
      out[kSquareV][i] = d.square_v;
      out[kMeanU][i] = d.mean_u;
      if constexpr (kGrads == 2) out[kMeanV][i] = d.mean_v;
    }
  }
}

// ---- one item ----

// taps: along y and x, 0 where only the problem knows. kGrads: how many images a gradient is made
// for, 0, 1 (the input) or 2. kGeneral: volumes and masks
template <typename T, int taps, int kGrads, bool kGeneral>
class Item {
 public:
  static constexpr Middle kMiddle = taps > 0 && !kGeneral ? Middle::one : Middle::any;

 private:
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
  const Windows<A> window_;
  const A scale_;           // of pixels that are filtered
  const A whole_scale_;     // of u and v: to a data range of 1, and halved
  V* strip_;                // [kMaps, rows]                   lanes are columns
  Columns<A> moments_;      // lanes are rows
  Columns<A> derivatives_;  // lanes are rows
  V* pixel_tails_;          // [pixel_blocks, pixel_maps, halo_y]   lanes are columns
  V* derivative_tails_;     // [grad_blocks, kMaps, halo_y]         lanes are columns

  const T* input_;                          // [D, H, W] of this plane
  const T* target_;                         // [D, H, W]
  const A* weight_;                         // [OH, OW] or null
  int64_t n_, c_, z_;                       // z_: slice of the map, or of the gradient along z
  int64_t y0_, y1_, x0_, x1_;               // what this item covers: see Problem::grid_h()
  int64_t first_x_, last_x_;                // columns of the map that it needs
  int64_t first_y_, last_y_;                // rows
  A pivot_input_, pivot_target_, pivot_v_;  // in the images' units
  Constants<A> constants_;
  double sum_[width];  // of the map
  double squares_[width], absolute_[width];

 public:
  // `turn`: of the items that are done together
  Item(const Problem& p, const Windows<A>& window, void* scratch, int64_t turn)
      : p_(p),
        layout_(p),
        known_stride_(known_stride(p)),
        window_(window),
        scale_(static_cast<A>(p.inverse_range / 2 / window.sum)),
        whole_scale_(scale_ * window.sum),
        strip_(static_cast<V*>(scratch)),
        moments_(strip_ + layout_.strip(), layout_.columns),
        derivatives_(strip_ + layout_.strip() + layout_.window_of_columns(), layout_.columns),
        pixel_tails_(strip_ + layout_.shared() + turn * layout_.tails()),
        derivative_tails_(pixel_tails_ + layout_.pixel_tails()) {}

  int64_t first_y() const { return first_y_; }
  int64_t end_y() const { return kGrads ? y1_ + p_.y.pad : last_y_; }

  void store_sums(int64_t item) const {
    Sums total{};
    for (int i = 0; i < width; ++i) {
      total.map += sum_[i];
      total.squares += squares_[i];
      total.absolute += absolute_[i];
    }
    p_.sums[item] = total;
  }

  // `slices`: of the map, or of the gradient along z
  void locate(int64_t item, int64_t slices) {
    c_ = item % p_.c;
    const int64_t tile = item / p_.c % p_.tiles;
    const int64_t band = item / p_.c / p_.tiles % p_.bands;
    const int64_t slice = item / p_.c / p_.tiles / p_.bands;
    z_ = slice % slices;
    n_ = slice / slices;
    y0_ = band * p_.band_h;
    x0_ = tile * p_.tile_w;
    y1_ = smaller(y0_ + p_.band_h, p_.grid_h());
    x1_ = smaller(x0_ + p_.tile_w, p_.grid_w());
    // a gradient's pixel (y, x) is in the windows [y + pad - halo, y + pad] x [x + pad - halo, ...]
    first_y_ = larger(0, kGrads ? y0_ + p_.y.pad - layout_.halo_y : y0_);
    first_x_ = larger(0, kGrads ? x0_ + p_.x.pad - layout_.halo_x : x0_);
    last_y_ = smaller(p_.out_h, kGrads ? y1_ + p_.y.pad : y1_);
    last_x_ = smaller(p_.out_w, kGrads ? x1_ + p_.x.pad : x1_);
    input_ = plane<const T>(p_.input, n_, c_);
    target_ = plane<const T>(p_.target, n_, c_);
    weight_ =
        p_.weight.data ? plane<const A>(p_.weight, n_, c_) + z_ * p_.weight.stride_d : nullptr;
    for (int i = 0; i < width; ++i) sum_[i] = squares_[i] = absolute_[i] = 0;
    choose_pivot();
    make_constants();
  }

  // ---- map rows [y, y + width) over all of the item's columns ----

  void block_row(int64_t y) {
    const int64_t left = round_down(first_x_ - p_.x.pad, width);  // column 0 of the moments
    const int64_t to_column = -p_.x.pad - left;                   // of the window at x
    // zero columns left of the map
    const int64_t lead = first_x_ - (x0_ + p_.x.pad - layout_.halo_x);
    moments_.clear();
    if constexpr (kGrads > 0) start_derivatives(lead);
    int64_t ready = 0, next_block = 0;  // columns of moments, blocks of the gradient
    for (int64_t x = first_x_; x < last_x_ && y < last_y_; x += width) {
      const int64_t column = x + to_column;
      moments_.make_room(column, ready, round_up(column + width + layout_.halo_x, width));
      const int64_t needed = smaller(x + width, last_x_) + to_column + layout_.halo_x;
      for (; ready < needed; ready += width) filter_down(y, left + ready, ready);
      if constexpr (kGrads > 0) {
        const int64_t made = lead + x - first_x_;
        derivatives_.make_room(next_block * width, made, made + width);
      }
      windows(y, x, column, lead, ahead_of(y, left + ready, next_block));
      if constexpr (kGrads > 0) {
        const int64_t made = lead + x - first_x_ + width;
        for (; made >= (next_block + 1) * width + layout_.halo_x; ++next_block) {
          gradient_block(y, next_block);
        }
      }
    }
    if constexpr (kGrads > 0) {
      finish_row(y, next_block, y < last_y_ ? lead + round_up(last_x_ - first_x_, width) : 0);
    }
  }

  // Means of 2 x 2 pixels, of which the block row at map row y was the first to need the last one.
  // Straight from the images, whose rows are still in the cache.
  void pool_block_row(int64_t y) const {
    const Owned own = owned();
    const int64_t top = y - p_.y.pad + (y > first_y_ ? layout_.halo_y : 0);
    const int64_t first = larger(top, own.y0);
    const int64_t last = smaller(y - p_.y.pad + layout_.rows, own.y1);
    for (int64_t row = first; row < last; ++row) {
      if ((row + p_.pool_y) % 2 == 0) continue;
      pool_row(input_, p_.input, p_.pooled_input, row, own);
      pool_row(target_, p_.target, p_.pooled_target, row, own);
    }
  }

  // a slice of the gradient: what the slices of the map have left for it, filtered along z
  void filter_along_z() {
    const int64_t from = larger(0, z_ + p_.z.pad - p_.z.halo());
    const int64_t to = smaller(p_.out_d, z_ + p_.z.pad + 1);
    input_ += z_ * p_.input.stride_d;
    target_ += z_ * p_.target.stride_d;
    for (int64_t y = y0_; y < y1_; y += width) {
      for (int64_t x = x0_; x < x1_; x += width) {
        V filtered[kMaps][width] = {};
        const int64_t rows = smaller(width, y1_ - y), count = smaller(width, x1_ - x);
        for (int64_t slice = from; slice < to; ++slice) {
          const V weight = splat<A>(window_.z[z_ + p_.z.pad - slice]);
          for (int map = 0; map < kDerivatives; ++map) {
            const A* row = adjoint(slice, map) + y * p_.w + x;
            for (int64_t i = 0; i < rows; ++i, row += p_.w) {
              filtered[map][i] += weight * load_lanes<A, A>(row, 1, 0, count);
            }
          }
        }
        combine<0>(y, x, lanes_in_image(x), filtered);
      }
    }
  }

 private:
  // The pixels that are this item's own: each pixel of the images is one item's, also those around
  // a map that is smaller.
  struct Owned {
    int64_t y0, y1, x0, x1;
  };
  Owned owned() const {
    return {y0_, y1_ == p_.grid_h() ? p_.h : y1_, x0_, x1_ == p_.grid_w() ? p_.w : x1_};
  }

  // slice `slice` of the map's share in the gradient, one of its maps, [H, W]
  A* adjoint(int64_t slice, int map) const {
    const int64_t slices = (n_ * p_.c + c_) * p_.out_d + slice;
    return static_cast<A*>(p_.adjoint) + (slices * kMaps + map) * p_.h * p_.w;
  }

  // row `row` and the one above it, halved
  void pool_row(const T* from, const Image& image, const Image& to, int64_t row,
                const Owned& own) const {
    const int64_t i = (row + p_.pool_y) / 2;
    if (i >= p_.pooled_h) return;
    const T *low = from + row * image.stride_h, *up = row > 0 ? low - image.stride_h : nullptr;
    A* out = plane<A>(to, n_, c_) + i * to.stride_h;
    const A quarter = A(0.25);
    // of the columns 2 j - pool_x and 2 j - pool_x + 1, the item owns the second
    int64_t j = (own.x0 + p_.pool_x) / 2;
    const int64_t end = smaller((own.x1 + p_.pool_x) / 2, p_.pooled_w);
    const auto at = [&](const T* line, int64_t x) {
      return line == nullptr || x < 0 ? A(0) : to_arithmetic(line[x * image.stride_w]);
    };
    const auto scalar = [&](int64_t j) {
      const int64_t x = 2 * j - p_.pool_x;
      out[j] = quarter * ((at(up, x) + at(up, x + 1)) + (at(low, x) + at(low, x + 1)));
    };
    if (j < end && 2 * j < p_.pool_x) scalar(j++);
    if (image.stride_w == 1 && up != nullptr) {
      constexpr auto lanes = std::make_integer_sequence<int, width>{};
      for (; j + width <= end; j += width) {
        const int64_t x = 2 * j - p_.pool_x;
        const V first = load(up + x) + load(low + x);
        const V second = load(up + x + width) + load(low + x + width);
        const V sum =
            every_second<false>(first, second, lanes) + every_second<true>(first, second, lanes);
        store(quarter * sum, out + j);
      }
    }
    for (; j < end; ++j) scalar(j);
  }

  // the stride between a row's pixels in every image, where there is code for it; else 0
  static int known_stride(const Problem& p) {
    const int64_t stride = p.input.stride_w;
    for (const Image* image : {&p.target, &p.grad_input, &p.grad_target}) {
      if (image->data != nullptr && image->stride_w != stride) return 0;
    }
    return stride == 1 || (kHasGather<T> && stride == kChannels) ? static_cast<int>(stride) : 0;
  }

  // the pixels that a pivot may be made of; false where they are masked and have no part in anything
  bool pivot_pixels(const A* mask, int k, A& a, A& b) const {
    // not the item's slice: all slices of a gradient have one pivot
    const int64_t z = pivot_place(int64_t{0}, p_.d, k);
    const int64_t y = smaller(pivot_place(y0_, y1_, k), p_.h - 1);
    const int64_t x = smaller(pivot_place(x0_, x1_, k), p_.w - 1);
    const auto pixel = [&](auto* image, const Image& of) {
      return to_arithmetic(image[z * of.stride_d + y * of.stride_h + x * of.stride_w]);
    };
    a = pixel(input_, p_.input);
    b = pixel(target_, p_.target);
    return mask == nullptr || pixel(mask, p_.mask) > 0;
  }

  // What is taken away from all of the item. Where every window reaches over the edge, the zeros
  // outside make the variance large: there is nothing to gain, and a pivot would cost digits of the
  // mean.
  void choose_pivot() {
    Pivot<A> pivot;
    const A* mask = kGeneral && p_.mask.data ? plane<const A>(p_.mask, n_, c_) : nullptr;
    const bool is_small = p_.d < p_.z.taps || p_.h < p_.y.taps || p_.w < p_.x.taps;
    if (mask != nullptr || !is_small) {
      const auto pixels = [&](int k, A& a, A& b) { return pivot_pixels(mask, k, a, b); };
      pivot.choose(pixels, static_cast<A>(p_.inverse_range));
    }
    pivot_input_ = pivot.input;
    pivot_target_ = pivot.target;
    pivot_v_ = pivot.input - pivot.target;
  }

  // once there is a pivot
  void make_constants() {
    // what pixels are scaled by once they are filtered, and what of a data range of 1 that leaves
    const double scale = static_cast<double>(scale_) * window_.sum;
    const double range = scale / (p_.inverse_range / 2), half = range * range / 2;
    const auto constant = [](double x) { return splat<A>(static_cast<A>(x)); };
    constants_ = {constant((static_cast<double>(pivot_input_) + pivot_target_) * scale),
                  constant(pivot_v_ * scale), constant(p_.c1 * half), constant(p_.c2 * half),
                  constant(window_.sum)};
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
  SSIM_INLINE Pivots pivots(A scale) const {
    return {splat<A>(pivot_input_), splat<A>(pivot_target_), splat<A>(pivot_v_), splat<A>(scale)};
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
  template <typename Do>
  SSIM_INLINE static void with_stride(int stride, Do&& run) {
    if (stride == 1) return run.template operator()<1>();
    if constexpr (kHasGather<T>) {
      if (stride == kChannels) return run.template operator()<kChannels>();
    }
    run.template operator()<0>();
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
    const Pivots taken = pivots(scale_);
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

  // Adds up what the images differ by in the item's own pixels of rows [y, y + count) and columns
  // [x, x + width): just loaded, so they come from the nearest cache.
  template <int kStride>
  void add_differences(int64_t y, int64_t x, int64_t count) {
    const Owned own = owned();
    const int64_t from = larger(y, own.y0), to = smaller(y + count, own.y1);
    const Lanes lanes{larger(0, own.x0 - x), smaller(width, own.x1 - x)};
    if (lanes.first >= lanes.last) return;
    const bool whole = lanes.last - lanes.first == width;
    V squares{}, absolute{};
    for (int64_t row = from; row < to; ++row) {
      const T* a = input_ + row * p_.input.stride_h + x * p_.input.stride_w;
      const T* b = target_ + row * p_.target.stride_h + x * p_.target.stride_w;
      const V difference =
          kStride > 0 && whole
              ? load_row<kStride>(a, p_.input.stride_w, lanes) -
                    load_row<kStride>(b, p_.target.stride_w, lanes)
              : load_lanes<T, A>(a, p_.input.stride_w, lanes.first, lanes.last) -
                    load_lanes<T, A>(b, p_.target.stride_w, lanes.first, lanes.last);
      squares += difference * difference;
      absolute += difference < V{} ? -difference : difference;
    }
    for (int i = 0; i < width; ++i) {
      squares_[i] += static_cast<double>(squares[i]);
      absolute_[i] += static_cast<double>(absolute[i]);
    }
  }

  // Rows [y, y + count) and columns [x, x + width) of the maps that are filtered down, each `stride`
  // after the one before; outside the image lies zero.
  SSIM_INLINE void fill_rows(int64_t y, int64_t x, int64_t count, V* to, int64_t stride) const {
    if constexpr (kGeneral) {
      fill_products(y, x, count, to, stride);
    } else {
      fill_pixels(y, x, count, to, to + stride);
    }
  }

  // u and v, whose squares are made while they are filtered
  SSIM_INLINE void fill_pixels(int64_t y, int64_t x, int64_t count, V* u, V* v) const {
    const Pixels outside = pivots(scale_).pixels(V{}, V{});
    const int64_t top = smaller(larger(0, -y), count);
    const int64_t bottom = smaller(larger(top, p_.h - y), count);
    for (int64_t i = 0; i < top; ++i) u[i] = outside.u, v[i] = outside.v;
    for (int64_t i = bottom; i < count; ++i) u[i] = outside.u, v[i] = outside.v;
    const Lanes lanes = lanes_in_image(x);
    with_stride(whole_stride(lanes), [&]<int kStride>() SSIM_FORCE_INLINE {
      load_pixels<kStride>(y + top, x, lanes, bottom - top, u + top, v + top);
    });
  }

  // The same for volumes and masks: all four maps, filtered along z. Where there is a mask, pixels
  // outside the image are masked, too.
  SSIM_INLINE void fill_products(int64_t y, int64_t x, int64_t count, V* to, int64_t stride) const {
    const Pivots taken = pivots(scale_);
    const Pixels outside = p_.mask.data ? Pixels{} : taken.pixels(V{}, V{});
    const Lanes lanes = lanes_in_image(x);
    const int64_t top = z_ - p_.z.pad;
    const A* mask = p_.mask.data ? plane<const A>(p_.mask, n_, c_) : nullptr;
    for (int64_t i = 0; i < count; ++i) {
      V sums[kMaps] = {};
      for (int64_t k = 0; k < p_.z.taps; ++k) {
        const int64_t z = top + k, row = y + i;
        V weight = splat<A>(window_.z[k]);
        Pixels pixels = outside;
        if (z >= 0 && z < p_.d && row >= 0 && row < p_.h) {
          pixels = taken.pixels(
              load_row<0>(voxel(input_, p_.input, z, row, x), p_.input.stride_w, lanes),
              load_row<0>(voxel(target_, p_.target, z, row, x), p_.target.stride_w, lanes));
          if (mask != nullptr) {
            const V m = load_lanes<A, A>(voxel(mask, p_.mask, z, row, x), p_.mask.stride_w,
                                         lanes.first, lanes.last);
            pixels.u = m > V{} ? pixels.u : V{};
            pixels.v = m > V{} ? pixels.v : V{};
            weight *= m;
          }
        }
        const V u = weight * pixels.u, v = weight * pixels.v;
        sums[kSquareU] += u * pixels.u;
        sums[kSquareV] += v * pixels.v;
        sums[kMeanU] += u;
        sums[kMeanV] += v;
      }
      for (int map = 0; map < kMaps; ++map) to[map * stride + i] = sums[map];
    }
  }

  template <typename From>
  SSIM_INLINE static From* voxel(From* of, const Image& image, int64_t z, int64_t y, int64_t x) {
    return of + z * image.stride_d + y * image.stride_h + x * image.stride_w;
  }

  // Rows that two blocks of rows share. Where the window's length is known, what one keeps for the
  // next is read where it lies: copies took a tenth of a value's time.
  static constexpr bool kTailsInPlace = taps > 0 && Layout<A>::keeps(taps - 1);
  SSIM_INLINE int64_t shared_rows() const { return taps > 0 ? taps - 1 : layout_.halo_y; }
  SSIM_INLINE bool keeps_pixels() const { return Layout<A>::keeps(shared_rows()); }

  SSIM_INLINE void copy_rows(const V* from, V* to) const {
    const int64_t count = shared_rows();
#pragma GCC unroll 16
    for (int64_t i = 0; i < count; ++i) to[i] = from[i];
  }

  // what the block below shares with this one
  template <typename Row>
  SSIM_INLINE void keep_rows(Row&& row, V* kept) const {
    const int64_t count = shared_rows();
#pragma GCC unroll 16
    for (int64_t i = 0; i < count; ++i) kept[i] = row(i + width);
  }

  // moments of the columns [x, x + width), filtered down
  SSIM_BLOCK_INLINE void filter_down(int64_t y, int64_t x, int64_t column) {
    if (x + width <= 0 || x >= p_.w) return fill_outside(column);
    V* kept = pixel_tails_ + column / width * layout_.pixel_maps * layout_.halo_y;
    fill_strip(y - p_.y.pad, x, kept, y == first_y_);
    const auto filter_map = [&]<bool kSquared>(int map, int of) {
      const V* rows = strip_ + of * layout_.rows;
      V* tail = kept + of * layout_.halo_y;
      const auto plain = [&](int64_t i) {
        return kTailsInPlace && i < taps - 1 ? tail[i] : rows[i];
      };
      // the square as one product: joined with what it is added to, it would be made many times
      const auto row = [&](int64_t i) { return kSquared ? square(plain(i)) : plain(i); };
      V out[width];
      filter<A, taps, kMiddle>(row, window_.y, p_.y.taps, out);
      if (!kSquared && keeps_pixels()) keep_rows(plain, tail);  // no other filter reads them
      store_columns(out, moments_.at(map, column));
    };
    if constexpr (kGeneral) {
      for (int map = 0; map < kMaps; ++map) filter_map.template operator()<false>(map, map);
    } else {
      for (int map = 0; map < 2; ++map) filter_map.template operator()<true>(kSquareU + map, map);
      for (int map = 0; map < 2; ++map) filter_map.template operator()<false>(kMeanU + map, map);
    }
  }

  // The rows of pixels, or of their products, that a block is made of. `kept`: those that the block
  // above has kept, where it keeps any.
  SSIM_INLINE void fill_strip(int64_t y, int64_t x, V* kept, bool is_first) {
    const int64_t halo = layout_.halo_y;
    const bool keeps = keeps_pixels();
    if (keeps && is_first) fill_first(y, x, kept);
    if (keeps && !kTailsInPlace) {
      for (int64_t map = 0; map < layout_.pixel_maps; ++map) {
        copy_rows(kept + map * halo, strip_ + map * layout_.rows);
      }
    }
    const int64_t from = keeps ? halo : 0;
    fill_rows(y + from, x, layout_.rows - from, strip_ + from, layout_.rows);
    if (!kGeneral && p_.wants_differences) {
      const int64_t fresh = is_first ? 0 : halo;  // also where rows are read again
      with_stride(whole_stride(lanes_in_image(x)), [&]<int kStride>() {
        add_differences<kStride>(y + fresh, x, layout_.rows - fresh);
      });
    }
  }
  __attribute__((noinline)) void fill_first(int64_t y, int64_t x, V* kept) const {
    fill_rows(y, x, layout_.halo_y, kept, layout_.halo_y);
  }

  // moments of the zeros beside the image
  SSIM_INLINE void fill_outside(int64_t column) {
    const bool masked = kGeneral && p_.mask.data;
    const Pixels outside = masked ? Pixels{} : pivots(scale_).pixels(V{}, V{});
    const V values[kMaps] = {outside.u * outside.u, outside.v * outside.v, outside.u, outside.v};
    for (int map = 0; map < kMaps; ++map) {
      V* to = moments_.at(map, column);
      for (int i = 0; i < width; ++i) to[i] = window_.sum_y * values[map];
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

  // Blocks go down the image, which no processor foresees. So pixels are asked for three blocks
  // before they are needed, which is when they arrive from memory, and a few at once, the input's
  // while a block is filtered and the target's while the formula is made: all of them together would
  // keep other reads waiting. The same for the gradient's rows, which would be fetched one after the
  // other when they are written.
  static constexpr int64_t kBlocksAhead = 3;
  struct Ahead {
    const T *input, *target;
    const T *to_input, *to_target;  // or null
    int64_t lines;                  // of the cache that a block's row of pixels covers

    SSIM_INLINE void prefetch_input(const Problem& p, int64_t row) const {
      prefetch_lines(input + row * p.input.stride_h);
    }
    SSIM_INLINE void prefetch_others(const Problem& p, int64_t row) const {
      prefetch_lines(target + row * p.target.stride_h);
      if (kGrads > 0) __builtin_prefetch(to_input + row * p.grad_input.stride_h, 1);
      if (kGrads == 2) __builtin_prefetch(to_target + row * p.grad_target.stride_h, 1);
    }
    SSIM_INLINE void prefetch_lines(const T* from) const {
      constexpr int64_t kLine = 64 / sizeof(T);
      for (int64_t line = 0; line < lines; ++line) __builtin_prefetch(from + line * kLine);
    }
  };

  // for when pixels from column x on, of the rows that the block row at y reads first, and a
  // gradient's block come next
  SSIM_INLINE Ahead ahead_of(int64_t y, int64_t x, int64_t block) const {
    const Place pixels = in_turn(y - p_.y.pad + layout_.halo_y, x + (kBlocksAhead - 1) * width,
                                 larger(0, round_down(first_x_ - p_.x.pad, width)),
                                 smaller(last_x_ - p_.x.pad + layout_.halo_x, p_.w));
    Ahead ahead{at<const T>(p_.input, pixels.y, pixels.x),
                at<const T>(p_.target, pixels.y, pixels.x), nullptr, nullptr,
                c_ == 0 ? smaller(p_.input.stride_w, 4) : 1};  // channels side by side share lines
    if constexpr (kGrads > 0) {
      const Place grad = in_turn(y - p_.y.pad, x0_ + (block + kBlocksAhead) * width, x0_, x1_);
      ahead.to_input = at<const T>(p_.grad_input, grad.y, grad.x);
      if (kGrads == 2) ahead.to_target = at<const T>(p_.grad_target, grad.y, grad.x);
    }
    return ahead;
  }

  // the block at column x of a row of blocks from `begin` to `end`, or the one of the next row that
  // comes so much later
  struct Place {
    int64_t y, x;
  };
  SSIM_INLINE static Place in_turn(int64_t y, int64_t x, int64_t begin, int64_t end) {
    if (x < end) return {y, x};
    return {y + width, x - round_up(end - begin, width)};
  }

  // the windows of one block: moments filtered across, then the formula
  SSIM_INLINE void windows(int64_t y, int64_t x, int64_t column, int64_t lead, const Ahead& ahead) {
    V filtered[kMaps][width];
    for (int map = 0; map < kMaps; ++map) {
      if constexpr (!kGeneral) {
        constexpr int rows = (width + kMaps - 1) / kMaps;
        for (int i = 0; i < rows; ++i) ahead.prefetch_input(p_, map * rows + i);
      }
      const V* columns = moments_.at(map, column);
      const auto at = [columns](int64_t i) { return columns[i]; };
      filter<A, taps, kMiddle>(at, window_.x, p_.x.taps, filtered[map]);
    }
    V weights[width];  // of the derivatives
    const bool is_weighted = weight_ != nullptr, is_masked = kGeneral && p_.mask.data;
    if (is_weighted) load_windows(weight_, p_.weight, y, x, weights);
    V coverage[kGeneral ? width : 1];
    if constexpr (kGeneral) {
      if (is_masked) {
        const A* from = plane<const A>(p_.coverage, n_, c_) + z_ * p_.coverage.stride_d;
        load_windows(from, p_.coverage, y, x, coverage);
        for (int map = 0; map < kMaps; ++map) {
          for (int i = 0; i < width; ++i) filtered[map][i] *= coverage[i];
        }
      }
    }
    const int64_t to = lead + x - first_x_;
    V values[width];
    formula(filtered, to, ahead, values);
    if (is_weighted && p_.sums != nullptr) {
      for (int i = 0; i < width; ++i) values[i] *= weights[i];
    }
    if constexpr (kGeneral) {
      if (is_masked) {
        for (int i = 0; i < width; ++i) {
          values[i] = coverage[i] > V{} ? values[i] : V{};
          weights[i] = is_weighted ? weights[i] * coverage[i] : coverage[i];
        }
      }
    }
    if constexpr (kGrads > 0) {
      if (is_weighted || is_masked) weigh_derivatives(to, weights);
      clear_outside(y, x, to);
    }
    if (p_.sums != nullptr) add_up(y, x, values);
    if (p_.map.data != nullptr) store_map(y, x, values);
  }

  // the map of one block, and its derivatives, at column `to`
  SSIM_INLINE void formula(const V (&filtered)[kMaps][width], int64_t to, const Ahead& ahead,
                           V (&values)[width]) {
    const Constants<A> constant = constants_;
    if (p_.kind != Kind::ssim) {
      if constexpr (!kGeneral) {
        for (int i = 0; i < width; ++i) ahead.prefetch_others(p_, i);
      }
      V* const out[] = {derivatives_.at(0, to), derivatives_.at(1, to), derivatives_.at(2, to),
                        derivatives_.at(3, to)};
      return any_kind<A, kGrads>(p_.kind, constant, filtered, out, values);
    }
    for (int i = 0; i < width; ++i) {
      if constexpr (!kGeneral) ahead.prefetch_others(p_, i);
      const Moments<V> m = constant.moments(filtered, i);
      const Terms<V> t = constant.terms_of(m);
      values[i] = twice(delta<V>(t));
      if constexpr (kGrads > 0) {
        const auto d = of_halves<kGrads>(derivatives<V>(t, m, constant.half()));
        *derivatives_.at(kSquareU, to + i) = d.square_u;
        *derivatives_.at(kSquareV, to + i) = d.square_v;
        *derivatives_.at(kMeanU, to + i) = d.mean_u;
        if constexpr (kGrads == 2) *derivatives_.at(kMeanV, to + i) = d.mean_v;
      }
    }
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
    using Out = typename MapOf<T>::type;
    transpose<A>(values);
    Out* map = plane<Out>(p_.map, n_, c_) + z_ * p_.map.stride_d;
    for (int64_t i = 0; i < smaller(width, y1_ - y); ++i) {
      store_lanes<Out, A>(values[i], map + (y + i) * p_.map.stride_h + x * p_.map.stride_w,
                          p_.map.stride_w, last_x_ - x);
    }
  }

  // one number for each window of a block, transposed as the moments are; what it is outside the
  // map does not matter
  SSIM_INLINE void load_windows(const A* from, const Image& image, int64_t y, int64_t x,
                                V (&out)[width]) const {
    if (image.stride_h == 0 && image.stride_w == 0) {  // one number for the plane
      for (int i = 0; i < width; ++i) out[i] = splat<A>(*from);
      return;
    }
    for (int i = 0; i < width; ++i) {
      out[i] = V{};
      if (y + i < last_y_) {
        out[i] = load_lanes<A, A>(from + (y + i) * image.stride_h + x * image.stride_w,
                                  image.stride_w, 0, smaller(width, last_x_ - x));
      }
    }
    transpose<A>(out);
  }

  // ---- derivatives ----

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
      const int64_t needed = (next_block + 1) * width + layout_.halo_x;
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
    const int64_t shared = shared_rows();
    for (int map = 0; map < kDerivatives; ++map) {
      V* rows = strip_ + map * layout_.rows;
      V* kept = derivative_tails_ + (block * kMaps + map) * layout_.halo_y;
      if (y == first_y_) {
        for (int64_t i = 0; i < shared; ++i) kept[i] = V{};
      }
      if (y < last_y_) {
        const V* columns = derivatives_.at(map, block * width);
        const auto at = [columns](int64_t i) { return columns[i]; };
        V out[width];
        filter<A, taps, kMiddle>(at, window_.x, p_.x.taps, out);
        store_columns(out, rows + layout_.halo_y);
      } else {  // below the map
        for (int i = 0; i < width; ++i) rows[layout_.halo_y + i] = V{};
      }
      // where the filter's length is known, what is kept is read where it lies
      if constexpr (taps == 0) copy_rows(kept, rows);
      const auto row = [kept, rows](int64_t i) { return i < taps - 1 ? kept[i] : rows[i]; };
      filter<A, taps, kMiddle>(row, window_.y, p_.y.taps, filtered[map]);
      keep_rows(row, kept);
    }
    const int64_t x = x0_ + block * width;
    y -= p_.y.pad;
    if constexpr (kGeneral) {
      if (p_.adjoint != nullptr) return store_adjoint(y, x, filtered);
    }
    const Lanes lanes = lanes_in_image(x);
    const int stride = x + width <= x1_ ? whole_stride(lanes) : 0;
    with_stride(stride,
                [&]<int kStride>() SSIM_FORCE_INLINE { combine<kStride>(y, x, lanes, filtered); });
  }

  SSIM_INLINE void store_adjoint(int64_t y, int64_t x, const V (&filtered)[kMaps][width]) const {
    for (int map = 0; map < kDerivatives; ++map) {
      A* to = adjoint(z_, map);
      for (int64_t i = larger(y0_ - y, 0); i < smaller(y1_ - y, width); ++i) {
        store_lanes<A, A>(filtered[map][i], to + (y + i) * p_.w + x, 1, x1_ - x);
      }
    }
  }

  template <int kStride>
  SSIM_INLINE void combine(int64_t y, int64_t x, Lanes lanes, const V (&filtered)[kMaps][width]) {
    const V scale = splat<A>(static_cast<A>(p_.grad_scale * p_.inverse_range / window_.sum));
    const Pivots taken = pivots(whole_scale_);
    const int64_t from = larger(y0_ - y, 0), to = smaller(y1_ - y, width);
    const T* a = at<const T>(p_.input, y + from, x);
    const T* b = at<const T>(p_.target, y + from, x);
    T* to_input = at<T>(p_.grad_input, y + from, x);
    T* to_target = kGrads == 2 ? at<T>(p_.grad_target, y + from, x) : nullptr;
    const V square = splat<A>(static_cast<A>(p_.grad_square));
    const V absolute = splat<A>(static_cast<A>(p_.grad_absolute));
    for (int64_t i = from; i < to; ++i) {
      const V pixel_a = load_row<kStride>(a, p_.input.stride_w, lanes);
      const V pixel_b = load_row<kStride>(b, p_.target.stride_w, lanes);
      const auto [u, v] = taken.pixels(pixel_a, pixel_b);
      a += p_.input.stride_h;
      b += p_.target.stride_h;
      const V from_u = filtered[kMeanU][i] + u * filtered[kSquareU][i];
      const V from_v = v * filtered[kSquareV][i] + (kGrads == 2 ? filtered[kMeanV][i] : V{});
      V for_input = (from_u + from_v) * scale, for_target = (from_u - from_v) * scale;
      if (p_.wants_differences) {
        const V difference = pixel_a - pixel_b, zero{};
        const V slope = difference > zero ? absolute : (difference < zero ? -absolute : zero);
        for_input += square * difference + slope;
        for_target -= square * difference + slope;
      }
      if constexpr (kGeneral) {
        if (p_.mask.data != nullptr) {
          const V m = load_lanes<A, A>(at<const A>(p_.mask, y + i, x), p_.mask.stride_w,
                                       lanes.first, lanes.last);
          for_input = m > V{} ? m * for_input : V{};
          for_target = m > V{} ? m * for_target : V{};
        }
      }
      store_row<kStride>(for_input, to_input, p_.grad_input.stride_w, x);
      to_input += p_.grad_input.stride_h;
      if constexpr (kGrads == 2) {
        store_row<kStride>(for_target, to_target, p_.grad_target.stride_w, x);
        to_target += p_.grad_target.stride_h;
      }
    }
  }

  template <typename To>
  SSIM_INLINE To* at(const Image& image, int64_t y, int64_t x) const {
    return plane<To>(image, n_, c_) + z_ * image.stride_d + y * image.stride_h + x * image.stride_w;
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

template <typename A>
int64_t window_bytes(const Problem& p) {
  return round_up((p.z.taps + p.y.taps + p.x.taps) * static_cast<int64_t>(sizeof(A)), kAlign);
}

// the window's weights divided by the middle one; their sum
template <typename A>
double divide_window(const Window& window, A* to) {
  double sum = 0;
  for (int64_t k = 0; k < window.taps; ++k) {
    to[k] = static_cast<A>(window.weights[k] / window.weights[window.taps / 2]);
    sum += static_cast<double>(to[k]);
  }
  return sum;
}

// What is missing of `sum`, which weights that were rounded do not quite make, is given to others
// than the middle one: for the reason that single_window() in ssim_fused/_windows.py gives, and in
// its way.
template <typename A>
void round_window(int64_t taps, double sum, A* window) {
  const int64_t middle = taps / 2;
  const auto add_missing = [&](int64_t i) {
    double missing = sum;
    for (int64_t k = 0; k < taps; ++k) missing -= static_cast<double>(window[k]);
    window[i] += static_cast<A>(missing / 2);
    window[taps - 1 - i] = window[i];
  };
  int64_t largest = 0, finest = -1;
  for (int64_t k = 1; k < middle; ++k) {
    if (window[k] > window[largest]) largest = k;
  }
  add_missing(largest);
  for (int64_t k = 0; k < middle; ++k) {
    if (k == largest || window[k] <= A(1e-4) * window[largest]) continue;
    if (finest < 0 || window[k] < window[finest]) finest = k;
  }
  if (finest >= 0) add_missing(finest);
}

template <typename A, Middle kMiddle>
Windows<A> copy_windows(const Problem& p, void* scratch) {
  A* z = static_cast<A*>(scratch);
  A *y = z + p.z.taps, *x = y + p.y.taps;
  const auto copy = [](const Window& window, A* to) {
    for (int64_t k = 0; k < window.taps; ++k) to[k] = static_cast<A>(window.weights[k]);
  };
  copy(p.z, z);
  if constexpr (kMiddle == Middle::any) {
    copy(p.y, y);
    copy(p.x, x);
    return {z, y, x, A(1), A(1)};
  }
  const double sum_y = divide_window(p.y, y), sum_x = divide_window(p.x, x);
  const A sum = static_cast<A>(sum_y * sum_x);
  round_window(p.x.taps, static_cast<double>(sum) / sum_y, x);
  return {z, y, x, static_cast<A>(sum_y), sum};
}

struct Range {
  int64_t begin, end;
  void* scratch;
};

template <typename T, int taps, int kGrads, bool kGeneral>
void run_items(const Problem& p, Range range) {
  using A = typename Accumulate<T>::type;
  constexpr Middle kMiddle = Item<T, taps, kGrads, kGeneral>::kMiddle;
  const Windows<A> window = copy_windows<A, kMiddle>(p, range.scratch);
  void* buffers = static_cast<char*>(range.scratch) + window_bytes<A>(p);
  Item<T, taps, kGrads, kGeneral> items[Problem::kMaxTogether] = {{p, window, buffers, 0},
                                                                  {p, window, buffers, 1},
                                                                  {p, window, buffers, 2},
                                                                  {p, window, buffers, 3}};
  const bool pools = p.pooled_input.data != nullptr;
  for (int64_t first = range.begin; first < range.end; first += p.together) {
    for (int64_t i = 0; i < p.together; ++i) items[i].locate(first + i, p.out_d);
    for (int64_t y = items[0].first_y(); y < items[0].end_y(); y += Simd<A>::width) {
      for (int64_t i = 0; i < p.together; ++i) {
        items[i].block_row(y);
        if (pools) items[i].pool_block_row(y);
      }
    }
    if (p.sums == nullptr) continue;
    for (int64_t i = 0; i < p.together; ++i) items[i].store_sums(first + i);
  }
}

template <typename T, int taps, bool kGeneral>
void run_grads(const Problem& p, Range range) {
  if constexpr (sizeof(typename MapOf<T>::type) == sizeof(T)) {  // not for whole numbers
    if (p.grad_target.data != nullptr) return run_items<T, taps, 2, kGeneral>(p, range);
    if (p.grad_input.data != nullptr) return run_items<T, taps, 1, kGeneral>(p, range);
  }
  run_items<T, taps, 0, kGeneral>(p, range);
}

// Which of them there are: windows of 11 taps in every type, all else in float and double, to which
// other types are converted before (ssim_fused/_ops.py).
template <typename T>
void run_typed(const Problem& p, Range range) {
  using A = typename Accumulate<T>::type;
  const bool fast = p.has_fast_windows();
  if (fast && !p.is_general()) return run_grads<T, kFastTaps, false>(p, range);
  if constexpr (std::is_same_v<T, A>) {
    if (!p.is_general()) return run_grads<T, 0, false>(p, range);
    if constexpr (sizeof(T) == sizeof(float)) {
      if (fast) return run_grads<T, kFastTaps, true>(p, range);
    }
    run_grads<T, 0, true>(p, range);
  }
}

// calls run.operator()<T>() with the type of the images
template <typename Run>
void with_type(Dtype dtype, Run&& run) {
  switch (dtype) {
    case Dtype::float32:
      return run.template operator()<float>();
    case Dtype::float64:
      return run.template operator()<double>();
    case Dtype::float16:
      return run.template operator()<float16>();
    case Dtype::bfloat16:
      return run.template operator()<bfloat16>();
    case Dtype::uint8:
      return run.template operator()<uint8>();
    case Dtype::uint16:
      return run.template operator()<uint16>();
  }
}

void run(const Problem& p, int64_t begin, int64_t end, void* scratch) {
  with_type(p.dtype, [&]<typename T>() { run_typed<T>(p, {begin, end, scratch}); });
}

template <typename T, int kGrads>
void run_items_along_z(const Problem& p, Range range) {
  const Windows<T> window = copy_windows<T, Middle::any>(p, range.scratch);
  void* buffers = static_cast<char*>(range.scratch) + window_bytes<T>(p);
  Item<T, 0, kGrads, true> item{p, window, buffers, 0};
  for (int64_t i = range.begin; i < range.end; ++i) {
    item.locate(i, p.d);
    item.filter_along_z();
  }
}

void run_along_z(const Problem& p, int64_t begin, int64_t end, void* scratch) {
  const Range range{begin, end, scratch};
  with_type(p.dtype, [&]<typename T>() {
    if constexpr (std::is_same_v<T, typename Accumulate<T>::type>) {
      if (p.grad_target.data != nullptr) return run_items_along_z<T, 2>(p, range);
      run_items_along_z<T, 1>(p, range);
    }
  });
}

int64_t scratch_bytes(const Problem& p) {
  const auto bytes = [&]<typename A>() {
    const Layout<A> layout(p);
    return window_bytes<A>(p) + (layout.shared() + p.together * layout.tails()) * kVectorBytes;
  };
  return p.dtype == Dtype::float64 ? bytes.template operator()<double>()
                                   : bytes.template operator()<float>();
}

}  // namespace

namespace ssim_fused {

Kernel SSIM_CONCAT(kernel_, SSIM_ISA)() {
  return {SSIM_STRING(SSIM_ISA), scratch_bytes, run, run_along_z};
}

}  // namespace ssim_fused
