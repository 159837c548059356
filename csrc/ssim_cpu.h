// The contract between the CPU operators (ssim_cpu.cpp) and the CPU kernel (ssim_cpu_kernel.cpp),
// which is compiled once for each instruction set.
#pragma once

#include <cstdint>

#include "ssim_math.h"

namespace ssim_fused {

constexpr int kFastTaps = 11;  // along both axes of an image

// the four maps that are filtered; the derivatives by them go by the same names
enum Map { kSquareU, kSquareV, kMeanU, kMeanV, kMaps };

enum class Dtype { float32, float64, float16, bfloat16, uint8, uint16 };

// a strided batch of images or volumes, [N, C, D, H, W], D = 1 for images; strides count elements,
// zero (an expanded axis) included
struct Image {
  void* data = nullptr;
  int64_t stride_n = 0, stride_c = 0, stride_d = 0, stride_h = 0, stride_w = 0;
};

// the window along one axis
struct Window {
  const double* weights;  // [taps], symmetric, sums to 1
  int64_t taps;
  int64_t pad;  // zeros in front of and behind the axis: halo / 2 or 0

  int64_t halo() const { return taps - 1; }

  // unrolled, and its weights divided by the middle one, which must not be next to nothing
  bool is_fast() const {
    if (taps != kFastTaps) return false;
    double largest = 0;
    for (int64_t k = 0; k < taps; ++k) largest = weights[k] > largest ? weights[k] : largest;
    return 16 * weights[taps / 2] >= largest;
  }
};

// sums over an item, one of each kind
struct Sums {
  double map;                // 1 - SSIM, or what Problem::kind says, weighted
  double squares, absolute;  // (x - y)^2 and |x - y| of the pixels that the item owns
};

// One call of the operator. Its work is cut into items: (image, slice, band of rows, tile of
// columns, channel), in that order. The cut depends on shape and strides alone, never on threads,
// and so do the results.
struct Problem {
  static constexpr int64_t kMaxTogether = 4;

  Dtype dtype;
  Kind kind;
  Image input, target;            // [N, C, D, H, W], dtype
  Image map;                      // [N, C, OD, OH, OW], the loss; null where it is not asked for
  Image weight;                   // [N, C, OD, OH, OW], accumulation type: gradient by the map, and
                                  // each window's share in the sum; or null
  Image grad_input, grad_target;  // [N, C, D, H, W], dtype; null where it is not asked for. One
                                  // gradient alone is the input's.
  Sums* sums = nullptr;           // [items], or null
  int64_t n, c, d, h, w;
  int64_t out_d, out_h, out_w;  // size of the map
  Window z, y, x;               // one tap along z for images
  double c1, c2;                // (k1)^2 and (k2)^2: pictures are scaled to a data range of 1
  double inverse_range;
  double grad_scale;  // multiplies the gradients

  // (x - y)^2 and |x - y|: whether they are summed, and what a gradient gets of them
  bool wants_differences;
  double grad_square, grad_absolute;  // times x - y, times its sign

  // Normalised convolution, accumulation type; both or neither. A window's moments are those of
  // mask * pixel, times its coverage: 1 / (filtered mask), or 0 where it does not count.
  Image mask;      // [N, C, D, H, W], weights in [0, 1]
  Image coverage;  // [N, C, OD, OH, OW]

  // A volume's gradient is made in two passes: what its slices contribute, filtered along y and x,
  // then along z.
  void* adjoint = nullptr;  // [N, C, OD, kMaps, H, W], accumulation type; or null

  // pictures of half the size, means of 2 x 2 pixels, accumulation type; or null
  Image pooled_input, pooled_target;  // [N, C, 1, pooled_h, pooled_w], made beside the sums
  int64_t pooled_h, pooled_w;
  int64_t pool_y, pool_x;  // 1 where the first mean has half of its pixels in front of the image

  int64_t bands, band_h;  // rows an item covers
  int64_t tiles, tile_w;  // columns an item covers
  int64_t together;       // items in a row that are done in turns: channels that share pixels

  bool wants_grad() const { return grad_input.data != nullptr; }
  // what needs the kernel that makes products of pixels before it filters
  bool is_general() const { return mask.data != nullptr || d > 1 || z.taps > 1; }
  bool has_fast_windows() const { return y.is_fast() && x.is_fast(); }
  // an item of a gradient covers input pixels, one of a value covers map pixels
  int64_t grid_h() const { return wants_grad() ? h : out_h; }
  int64_t grid_w() const { return wants_grad() ? w : out_w; }
  int64_t items() const { return n * out_d * c * bands * tiles; }
};

// one build of the kernel
struct Kernel {
  const char* isa;
  int64_t (*scratch_bytes)(const Problem&);
  // does items [begin, end), multiples of `together`; scratch is 64-byte aligned
  void (*run)(const Problem&, int64_t begin, int64_t end, void* scratch);
  // the second pass of a volume's gradient, whose items have D slices, not OD
  void (*run_along_z)(const Problem&, int64_t begin, int64_t end, void* scratch);
};

Kernel kernel_baseline();
Kernel kernel_avx2();
Kernel kernel_avx512();

}  // namespace ssim_fused
