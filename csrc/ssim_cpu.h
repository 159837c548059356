// The contract between the CPU operators (ssim_cpu.cpp) and the CPU kernel (ssim_cpu_kernel.cpp),
// which is compiled once for each instruction set.
#pragma once

#include <cstdint>

namespace ssim_fused {

enum class Dtype { float32, float64, float16, bfloat16 };

// a strided image batch, [N, C, H, W]; strides count elements, zero (an expanded axis) included
struct Image {
  void* data = nullptr;
  int64_t stride_n = 0, stride_c = 0, stride_h = 0, stride_w = 0;
};

// One call of the operator. Its work is cut into items: (image, band of rows, tile of columns,
// channel), in that order. The cut depends on shape and strides alone, never on threads, and so do
// the results.
struct Problem {
  static constexpr int64_t kMaxTogether = 4;

  Dtype dtype;
  Image input, target;            // [N, C, H, W], dtype
  Image map;                      // [N, C, OH, OW], dtype: 1 - SSIM; null where it is not asked for
  Image weight;                   // [N, C, OH, OW], accumulation type: gradient by the map; or null
  Image grad_input, grad_target;  // [N, C, H, W], dtype; null where it is not asked for
  double* sums = nullptr;         // [items]: sum of 1 - SSIM over each item; or null
  int64_t n, c, h, w;
  int64_t out_h, out_w;  // size of the map
  int64_t pad;           // zeros in front of each row and column: (taps - 1) / 2 or 0
  const double* window;  // [taps], symmetric, sums to 1
  int64_t taps;
  double c1, c2;  // (k1)^2 and (k2)^2: pictures are scaled to a data range of 1
  double inverse_range;
  double grad_scale;      // multiplies the gradients
  int64_t bands, band_h;  // rows an item covers
  int64_t tiles, tile_w;  // columns an item covers
  int64_t together;       // items in a row that are done in turns: channels that share pixels

  bool wants_grad() const { return grad_input.data != nullptr || grad_target.data != nullptr; }
  // an item of a gradient covers input pixels, one of a value covers map pixels
  int64_t grid_h() const { return wants_grad() ? h : out_h; }
  int64_t grid_w() const { return wants_grad() ? w : out_w; }
  int64_t items() const { return n * c * bands * tiles; }
};

// one build of the kernel
struct Kernel {
  const char* isa;
  int64_t (*scratch_bytes)(const Problem&);
  // does items [begin, end), multiples of `together`; scratch is 64-byte aligned
  void (*run)(const Problem&, int64_t begin, int64_t end, void* scratch);
};

Kernel kernel_baseline();
Kernel kernel_avx2();
Kernel kernel_avx512();

}  // namespace ssim_fused
