// Launches the kernels of ssim_cuda_volume_kernel.h.
#include "ssim_cuda_host.h"
#include "ssim_cuda_volume_kernel.h"

#include <array>

namespace ssim_fused {
namespace {

VolumeGeometry geometry_of(const Call& call, bool any, Task task, int word_bytes) {
  const int sizes[3] = {call.size(2), call.size(3), call.size(4)};
  const int taps[3] = {call.taps(kZ), call.taps(kY), call.taps(kX)};
  const int sms = multiprocessors(device_of(call.input));
  const bool valid = call.settings.valid;
  const std::array<int, 13> key{call.size(0),
                                call.size(1),
                                sizes[0],
                                sizes[1],
                                sizes[2],
                                taps[0],
                                taps[1],
                                taps[2],
                                valid,
                                any,
                                static_cast<int>(task),
                                word_bytes,
                                sms};
  return kept_geometry<VolumeGeometry>(key, [&] {
    return choose_volume_geometry(call.size(0), call.size(1), sizes, taps, valid, any, task,
                                  word_bytes, sms);
  });
}

template <typename T>
void launch(Task task, const Call& call, const Outputs& out) {
  using A = typename Accumulate<T>::type;
  const int device = device_of(call.input);
  const Stream stream = current_stream(device);
  VolumeProblem<A> p{};
  const bool has_weight = !is_weighted(task) && out.weight != nullptr;
  const bool any = call.mask || has_weight || !kHasGradient<T>;
  p.g = geometry_of(call, any, task, sizeof(A));
  const Counter counter(call, out, stream);
  set_problem(p, call, out, counter);
  for (int axis = 0; axis < 3; ++axis) set_window(call.windows[axis], p.window[axis]);

  dispatch_volume<T>(task, p.g, [&]<bool kFast, Task kTask>() {
    static Kernel kernel("ssim_cuda_volume_kernel.h",
                         kernel_name<T>("volume_kernel", kFast, kTask));
    kernel.launch({device, stream, static_cast<unsigned>(p.g.blocks),
                   static_cast<unsigned>(p.g.threads), p.g.shared_words() * sizeof(A)},
                  p);
  });
}

}  // namespace

void launch_volume(Task task, const Call& call, const Outputs& out) {
  STD_TORCH_CHECK(out.terms == nullptr, "ssim_fused: mse and l1 of volumes are not native on CUDA");
  by_type(call.input, [&]<typename T>() { launch<T>(task, call, out); });
}

}  // namespace ssim_fused
