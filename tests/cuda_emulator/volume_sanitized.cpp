// The CUDA kernel for volumes under a sanitizer: every task over shapes that reach every edge.
// Prints "done"; the sanitizer ends the program at the first fault.
#include <cstdio>
#include <cstdlib>

#include "cuda_on_cpu.h"
// after cuda_on_cpu.h, which defines what it needs
#include "ssim_cuda_volume_kernel.h"

using namespace ssim_fused;

namespace {

struct Case {
  int n, c, size[3], taps[3], blocks[3];
  bool valid;
};

std::vector<float> random_volume(size_t count) {
  std::vector<float> volume(count);
  for (float& voxel : volume)
    voxel = static_cast<float>(std::rand()) / static_cast<float>(RAND_MAX);
  return volume;
}

void set_contiguous(Int64 (&stride)[5], int c, const int (&size)[3]) {
  stride[4] = 1;
  stride[3] = size[2];
  stride[2] = stride[3] * size[1];
  stride[1] = stride[2] * size[0];
  stride[0] = stride[1] * c;
}

// `any`: with what few calls ask for
void run(const Case& a, Task task, bool any) {
  VolumeProblem<float> p{};
  p.g = choose_volume_geometry(a.n, a.c, a.size, a.taps, a.valid, any, task, sizeof(float), 4);
  for (int axis = 0; axis < 3; ++axis) p.g.blocks_of[axis] = a.blocks[axis];
  complete(p.g, derivative_maps(task));
  if (!fits(p.g)) std::abort();
  // heap blocks of exactly the right size, so that a step outside is seen
  const size_t planes = size_t(a.n) * a.c;
  const size_t voxels = planes * a.size[0] * a.size[1] * a.size[2];
  const size_t windows = planes * p.g.out[0] * p.g.out[1] * p.g.out[2];
  const std::vector<float> x = random_volume(voxels), y = random_volume(voxels);
  const std::vector<float> weight = random_volume(windows), coverage = random_volume(windows);
  const std::vector<float> mask = random_volume(voxels);
  std::vector<float> map(windows), grad_x(voxels), grad_y(voxels), parts(p.g.parts());
  p.input = x.data();
  p.target = y.data();
  if (is_weighted(task) || any) p.weight = weight.data();
  if (any) {
    p.mask = mask.data();
    p.coverage = coverage.data();
  }
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
    set_contiguous(*stride, a.c, a.size);
  }
  set_contiguous(p.weight_stride, a.c, p.g.out);
  set_contiguous(p.mask_stride, a.c, a.size);
  set_contiguous(p.coverage_stride, a.c, p.g.out);
  p.c1 = 1e-4f;
  p.c2 = 9e-4f;
  p.inverse_range = p.grad_scale = 1;
  for (int axis = 0; axis < 3; ++axis) {
    for (int k = 0; k < a.taps[axis]; ++k) {
      p.window[axis][k] = 1.0f / static_cast<float>(a.taps[axis]);
    }
  }
  dispatch_volume<float>(task, p.g, [&]<bool kFast, Task kTask>() {
    emulator::launch({static_cast<unsigned>(p.g.blocks)}, p.g.threads,
                     p.g.shared_words() * sizeof(float),
                     [&] { volume_kernel<float, kFast, kTask>(p); });
  });
}

}  // namespace

int main() {
  const Case cases[] = {
      {1, 1, {1, 1, 1}, {11, 11, 11}, {1, 1, 1}, false},
      {1, 1, {2, 12, 17}, {11, 11, 11}, {2, 1, 2}, false},
      {1, 1, {11, 13, 11}, {11, 11, 11}, {1, 1, 1}, true},
      {1, 2, {3, 7, 6}, {3, 5, 7}, {2, 2, 1}, false},
      {1, 1, {4, 7, 8}, {3, 5, 7}, {1, 1, 2}, true},
      {1, 1, {2, 3, 4}, {1, 3, 1}, {1, 1, 1}, false},
  };
#if defined(__SANITIZE_THREAD__)
  // barriers are the same in the others, and each costs a thousand switches between threads
  const Task tasks[] = {Task::value, Task::gradients, Task::backward};
#else
  const Task tasks[] = {Task::value,     Task::map,      Task::gradient,
                        Task::gradients, Task::backward, Task::backwards};
#endif
  for (const Case& a : cases) {
    for (Task task : tasks) {
      run(a, task, false);
      if (a.taps[0] != kFastTaps) run(a, task, true);
    }
  }
  std::puts("done");
}
