// The way back through one scale of MS-SSIM, a kernel of its own: each plane's gradient times the
// factor that its loss has in the product, and what the gradient of the halved image carries back
// to the 2 x 2 pixels that each of its pixels is the mean of.
//
// Includes nothing of torch, CUDA's library or the host, see ssim_cuda_kernel.h. 12 bytes a pixel
// go through memory for float32, and little else happens: a thread takes one pixel.
#pragma once

#include "ssim_cuda_geometry.h"

namespace ssim_fused {

constexpr int kUnpoolThreads = 256;  // at most, of one row

// what a launch is given; strides are of elements
template <typename A>
struct Unpooling {
  const A* grad;         // [N, C, H, W]
  const A* factor;       // [N, C]
  const A* grad_pooled;  // [N, C, (H + pool_y) / 2, (W + pool_x) / 2], or null
  A* out;                // as grad, which it may be
  Int64 grad_stride[4], factor_stride[2], pooled_stride[4], out_stride[4];
  int c, h, w;
  int pool_y, pool_x;  // 1 where the first mean begins one pixel before the image
  int threads, parts;  // of a block, and blocks that share a row

  SSIM_HOST_DEVICE void set_size(int channels, int height, int width, int offset_y, int offset_x) {
    c = channels;
    h = height;
    w = width;
    pool_y = offset_y;
    pool_x = offset_x;
    threads = least(round_up(w, 32), kUnpoolThreads);
    parts = (w + threads - 1) / threads;
  }
  SSIM_HOST_DEVICE Int64 blocks(Int64 n) const { return n * c * h * parts; }
};

#if defined(__CUDACC__) || defined(__CUDACC_RTC__) || defined(SSIM_CUDA_EMULATOR)

template <typename A>
__global__ void __launch_bounds__(kUnpoolThreads)
    unpool_kernel(const __grid_constant__ Unpooling<A> p) {
  const unsigned row = blockIdx.x / static_cast<unsigned>(p.parts);
  const int part = static_cast<int>(blockIdx.x - row * static_cast<unsigned>(p.parts));
  const int x = part * p.threads + static_cast<int>(threadIdx.x);
  if (x >= p.w) return;
  const unsigned plane = row / static_cast<unsigned>(p.h);
  const int y = static_cast<int>(row - plane * static_cast<unsigned>(p.h));
  const Int64 n = plane / static_cast<unsigned>(p.c), c = plane % static_cast<unsigned>(p.c);

  const auto at = [&](const Int64(&stride)[4], int y, int x) {
    return n * stride[0] + c * stride[1] + y * stride[2] + x * stride[3];
  };
  A out =
      p.factor[n * p.factor_stride[0] + c * p.factor_stride[1]] * p.grad[at(p.grad_stride, y, x)];
  const int i = (y + p.pool_y) / 2, j = (x + p.pool_x) / 2;
  if (p.grad_pooled != nullptr && i < (p.h + p.pool_y) / 2 && j < (p.w + p.pool_x) / 2) {
    out += A(0.25) * p.grad_pooled[at(p.pooled_stride, i, j)];
  }
  p.out[at(p.out_stride, y, x)] = out;
}

#endif  // device

}  // namespace ssim_fused
