// The CUDA kernel under a sanitizer: every task over shapes that reach every edge. Prints "done";
// the sanitizer ends the program at the first fault.
#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "cuda_on_cpu.h"
// after cuda_on_cpu.h, which defines what it needs
#include "ssim_cuda_kernel.h"
#include "ssim_cuda_unpool_kernel.h"

using namespace ssim_fused;

namespace {

struct Case {
  int n, c, h, w, taps_y, taps_x;
  Layout layout;
  int tiles, bands, planes;
  bool valid;
};

std::vector<float> random_image(size_t count) {
  std::vector<float> image(count);
  for (float& pixel : image) pixel = static_cast<float>(std::rand()) / static_cast<float>(RAND_MAX);
  return image;
}

void set_contiguous(Int64 (&stride)[4], int c, int h, int w) {
  const Int64 strides[4] = {Int64(c) * h * w, Int64(h) * w, w, 1};
  for (int i = 0; i < 4; ++i) stride[i] = strides[i];
}

// `extra`: with all that is compiled apart
void run(const Case& a, Task task, bool extra) {
  Problem<float> p{};
  p.g = choose_geometry(a.n, a.c, a.h, a.w, a.taps_y, a.taps_x, a.valid, a.layout == Layout::any,
                        task, sizeof(float), 4);
  p.g.layout = a.layout;
  p.g.tiles = a.tiles;
  p.g.bands = a.bands;
  p.g.planes = a.planes;
  complete(p.g, derivative_maps(task));
  if (!fits(p.g)) std::abort();
  // heap blocks of exactly the right size, so that a step outside is seen
  const size_t pixels = size_t(a.n) * a.c * a.h * a.w;
  const size_t windows = size_t(a.n) * a.c * p.g.out_h * p.g.out_w;
  const std::vector<float> x = random_image(pixels), y = random_image(pixels);
  const std::vector<float> weight = random_image(windows);
  std::vector<float> map(windows), grad_x(pixels), grad_y(pixels), value(a.n * a.c);
  std::vector<float> parts(p.g.parts()), term_parts(2 * p.g.blocks), terms(3);
  p.input = x.data();
  p.target = y.data();
  const std::vector<float> mask = random_image(pixels), coverage = random_image(windows);
  if (is_weighted(task) || extra) p.weight = weight.data();
  p.map = map.data();
  p.grad_input = grad_x.data();
  p.grad_target = grad_y.data();
  p.parts = parts.data();
  float total = 0;
  unsigned arrived = 0;
  p.value = &total;
  p.value_scale = 1;
  p.arrived = &arrived;
  for (auto* stride :
       {&p.input_stride, &p.target_stride, &p.grad_input_stride, &p.grad_target_stride}) {
    set_contiguous(*stride, a.c, a.h, a.w);
  }
  set_contiguous(p.weight_stride, a.c, p.g.out_h, p.g.out_w);
  set_contiguous(p.mask_stride, a.c, a.h, a.w);
  set_contiguous(p.coverage_stride, a.c, p.g.out_h, p.g.out_w);
  if (extra && a.layout == Layout::any) {
    p.mask = mask.data();
    p.coverage = coverage.data();
  }
  p.c1 = 1e-4f;
  p.c2 = 9e-4f;
  p.inverse_range = p.grad_scale = 1;
  std::fill_n(p.window_y, a.taps_y, 1.0f / static_cast<float>(a.taps_y));
  std::fill_n(p.window_x, a.taps_x, 1.0f / static_cast<float>(a.taps_x));
  std::vector<float> pooled_x, pooled_y;
  if (extra) {
    p.pool_y = p.pool_x = a.valid ? 0 : 1;
    const size_t halved = size_t(a.n) * a.c * ((a.h + p.pool_y) / 2) * ((a.w + p.pool_x) / 2);
    pooled_x.resize(halved);
    pooled_y.resize(halved);
    p.pooled_input = pooled_x.data();
    p.pooled_target = pooled_y.data();
    p.kind = Kind::nonnegative;
    const double weights[] = {1, 1, 1};
    set_terms(p, weights, 1.0, term_parts.data(), terms.data());
  }
  dispatch<float>(task, p, [&]<Layout kLayout, Task kTask, bool kExtra>() {
    emulator::launch({static_cast<unsigned>(p.g.blocks)}, p.g.threads,
                     p.g.shared_words() * sizeof(float),
                     [&] { ssim_kernel<float, kLayout, kTask, kExtra>(p); });
  });
  if (extra) {
    Unpooling<float> back{};
    back.set_size(a.c, a.h, a.w, p.pool_y, p.pool_x);
    back.grad = x.data();
    back.factor = value.data();
    back.grad_pooled = pooled_x.data();
    back.out = grad_y.data();
    set_contiguous(back.grad_stride, a.c, a.h, a.w);
    set_contiguous(back.out_stride, a.c, a.h, a.w);
    set_contiguous(back.pooled_stride, a.c, (a.h + p.pool_y) / 2, (a.w + p.pool_x) / 2);
    back.factor_stride[0] = a.c;
    back.factor_stride[1] = 1;
    emulator::launch({static_cast<unsigned>(back.blocks(a.n))}, back.threads, 0,
                     [&] { unpool_kernel<float>(back); });
  }
  if (!makes_sums(task)) return;
  const unsigned planes = static_cast<unsigned>(value.size());
  emulator::launch({planes}, kReduceThreads, kReduceThreads * sizeof(ExactSum<float>),
                   [&] { reduce_kernel(parts.data(), p.g.parts() / planes, 1.0, value.data()); });
}

}  // namespace

int main() {
  const Case cases[] = {
      {1, 1, 1, 1, 11, 11, Layout::streaming, 1, 1, 1, false},
      {1, 1, 20, 70, 11, 11, Layout::streaming, 2, 3, 1, false},
      {1, 1, 19, 23, 11, 11, Layout::streaming, 1, 1, 1, true},
      {1, 3, 7, 13, 11, 11, Layout::tile, 1, 1, 2, false},
      {1, 1, 14, 45, 11, 11, Layout::tile, 2, 2, 1, false},
      {1, 1, 15, 13, 11, 11, Layout::tile, 1, 2, 1, true},
      {1, 2, 10, 11, 5, 5, Layout::any, 1, 1, 2, false},
      {1, 1, 12, 14, 3, 7, Layout::any, 2, 2, 1, true},
  };
  const Task tasks[] = {Task::value,     Task::map,      Task::gradient,
                        Task::gradients, Task::backward, Task::backwards};
  for (const Case& a : cases) {
    for (Task task : tasks) {
      run(a, task, false);
      if (makes_sums(task)) run(a, task, true);
    }
  }
  std::puts("done");
}
