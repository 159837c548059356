// The CUDA implementation of the operators that ssim_cpu.cpp declares: arguments checked, the cut
// chosen, the kernels of ssim_cuda_kernel.h launched on the current stream.
//
// Built on LibTorch's stable ABI, in a library of its own: only a torch with CUDA can load it.
#include "ssim_cuda_kernel.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cmath>
#include <limits>
#include <map>
#include <mutex>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace ssim_fused {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

void check(cudaError_t error, const char* what) {
  STD_TORCH_CHECK(error == cudaSuccess, "ssim_fused: ", what,
                  " failed: ", cudaGetErrorString(error));
}

ScalarType accumulate_type(const Tensor& t) {
  return t.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

void set_strides(const Tensor& t, Int64 (&stride)[4]) {
  for (int i = 0; i < 4; ++i) stride[i] = t.stride(i);
}

// the images and settings of one call, checked: whatever could lead out of bounds
struct Call {
  Tensor input, target;
  std::vector<double> window;
  double data_range, k1, k2;
  bool valid;

  Int64 out_size(int axis) const {
    return input.size(axis) - (valid ? static_cast<Int64>(window.size()) - 1 : 0);
  }
  double image_pixels() const {
    return static_cast<double>(input.size(1)) * out_size(2) * out_size(3);
  }

  void check() const {
    STD_TORCH_CHECK(input.dim() == 4 && target.dim() == 4,
                    "ssim_fused: input and target must be (N, C, H, W) and of one shape");
    for (int i = 0; i < 4; ++i) {
      STD_TORCH_CHECK(input.size(i) == target.size(i),
                      "ssim_fused: input and target must be (N, C, H, W) and of one shape");
      STD_TORCH_CHECK(input.size(i) > 0, "ssim_fused: the images are empty");
      STD_TORCH_CHECK(input.size(i) <= std::numeric_limits<int>::max() / 2,
                      "ssim_fused: the images are too large along axis ", i);
    }
    STD_TORCH_CHECK(input.scalar_type() == target.scalar_type(),
                    "ssim_fused: input and target differ in dtype");
    STD_TORCH_CHECK(input.is_cuda() && target.is_cuda() &&
                        input.get_device_index() == target.get_device_index(),
                    "ssim_fused: input and target must be on one CUDA device");
    STD_TORCH_CHECK(window.size() % 2 == 1 && window.size() <= kMostTaps,
                    "ssim_fused: the window must have an odd number of taps, at most ", kMostTaps);
    STD_TORCH_CHECK(std::isfinite(data_range) && data_range > 0,
                    "ssim_fused: data_range must be positive and finite");
    STD_TORCH_CHECK(out_size(2) > 0 && out_size(3) > 0,
                    "ssim_fused: the window is larger than the images");
  }
};

// what a launch reads beside the images, and writes
struct Outputs {
  Tensor *weight = nullptr, *map = nullptr, *grad_input = nullptr, *grad_target = nullptr;
  Tensor* parts = nullptr;  // made here
  Tensor* value = nullptr;  // what the parts add up to
  double value_scale = 1, grad_scale = 1;
};

int multiprocessors(int device) {
  int count = 0;
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "a device query");
  return count;
}

// The cut of a launch. To find one takes longer than to launch a small picture, so they are kept.
Geometry geometry_of(const Call& call, Task task, int word_bytes) {
  using Key = std::tuple<int, int, int, int, int, bool, Task, int, int>;
  constexpr size_t kMostKept = 1024;
  const Tensor& input = call.input;
  const auto size = [&](int axis) { return static_cast<int>(input.size(axis)); };
  const Key key{size(0),
                size(1),
                size(2),
                size(3),
                static_cast<int>(call.window.size()),
                call.valid,
                task,
                word_bytes,
                multiprocessors(input.get_device_index())};
  static std::mutex mutex;
  static std::map<Key, Geometry> kept;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = kept.find(key);
  if (found != kept.end()) return found->second;
  if (kept.size() == kMostKept) kept.clear();
  return kept.emplace(key, std::apply(choose_geometry, key)).first->second;
}

cudaStream_t current_stream(int device) {
  void* stream = nullptr;
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(device, &stream) == 0,
                  "ssim_fused: no current CUDA stream");
  return static_cast<cudaStream_t>(stream);
}

// The count of blocks that a launch needs, 0 before it and again after it. One for each stream,
// whose launches follow one another; a graph has its own, since it may be replayed beside them.
Tensor arrivals(const Tensor& like, int device, cudaStream_t stream) {
  const auto zero = [&] {
    Tensor counter = torch::stable::new_empty(like, {1}, ScalarType::Int);
    check(cudaMemsetAsync(counter.data_ptr(), 0, sizeof(unsigned), stream), "a memset");
    return counter;
  };
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(stream, &capture), "a stream query");
  if (capture != cudaStreamCaptureStatusNone) return zero();

  unsigned long long id = 0;
  check(cudaStreamGetId(stream, &id), "a stream query");
  static std::mutex mutex;
  // never destroyed: CUDA may end before this library does
  static auto& counters = *new std::map<std::pair<int, unsigned long long>, Tensor>;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = counters.find({device, id});
  if (found != counters.end()) return found->second;
  return counters.emplace(std::pair(device, id), zero()).first->second;
}

template <typename T>
void launch(Task task, const Call& call, const Outputs& out) {
  using A = typename Accumulate<T>::type;
  const Tensor& input = call.input;
  const int device = input.get_device_index();
  const cudaStream_t stream = current_stream(device);
  Problem<A> p{};
  p.g = geometry_of(call, task, sizeof(A));
  STD_TORCH_CHECK(p.g.blocks > 0 && p.g.parts() <= std::numeric_limits<int>::max(),
                  "ssim_fused: no launch serves these images");
  p.input = input.data_ptr();
  p.target = call.target.data_ptr();
  set_strides(input, p.input_stride);
  set_strides(call.target, p.target_stride);
  if (out.weight != nullptr) {
    p.weight = static_cast<const A*>(out.weight->data_ptr());
    set_strides(*out.weight, p.weight_stride);
  }
  if (out.map != nullptr) p.map = out.map->data_ptr();
  if (out.grad_input != nullptr) {
    p.grad_input = out.grad_input->data_ptr();
    set_strides(*out.grad_input, p.grad_input_stride);
  }
  if (out.grad_target != nullptr) {
    p.grad_target = out.grad_target->data_ptr();
    set_strides(*out.grad_target, p.grad_target_stride);
  }
  if (out.parts != nullptr) {
    *out.parts = torch::stable::new_empty(input, {p.g.parts()}, accumulate_type(input));
    p.parts = static_cast<A*>(out.parts->data_ptr());
  }
  if (out.value != nullptr) {
    p.value = static_cast<A*>(out.value->data_ptr());
    p.value_scale = out.value_scale;
    p.arrived = static_cast<unsigned*>(arrivals(input, device, stream).data_ptr());
  }
  p.c1 = static_cast<A>(call.k1 * call.k1);
  p.c2 = static_cast<A>(call.k2 * call.k2);
  p.inverse_range = static_cast<A>(1 / call.data_range);
  p.grad_scale = static_cast<A>(out.grad_scale);
  for (size_t k = 0; k < call.window.size(); ++k) p.window[k] = static_cast<A>(call.window[k]);

  dispatch<T>(task, p.g, [&]<Layout kLayout, Task kTask>() {
    ssim_kernel<T, kLayout, kTask><<<static_cast<unsigned>(p.g.blocks), p.g.threads,
                                     p.g.shared_words() * sizeof(A), stream>>>(p);
  });
  check(cudaGetLastError(), "a kernel launch");
}

void launch(Task task, const Call& call, const Outputs& out) {
  switch (call.input.scalar_type()) {
    case ScalarType::Float:
      return launch<float>(task, call, out);
    case ScalarType::Double:
      return launch<double>(task, call, out);
    case ScalarType::Half:
      return launch<float16>(task, call, out);
    case ScalarType::BFloat16:
      return launch<bfloat16>(task, call, out);
    default:
      STD_TORCH_CHECK(false, "ssim_fused: images must be float16, bfloat16, float32 or float64");
  }
}

// value: [N]; each is scale times its share of the parts
template <typename A>
void reduce(const Tensor& parts, double scale, Tensor& value) {
  const Int64 each = parts.numel() / value.numel();
  const size_t shared = kReduceThreads * sizeof(ExactSum<A>);
  const cudaStream_t stream = current_stream(value.get_device_index());
  reduce_kernel<A><<<static_cast<unsigned>(value.numel()), kReduceThreads, shared, stream>>>(
      static_cast<const A*>(parts.data_ptr()), each, scale, static_cast<A*>(value.data_ptr()));
  check(cudaGetLastError(), "a kernel launch");
}

Tensor gradient_for(const Tensor& image, bool wanted) {
  return wanted ? torch::stable::empty_like(image) : torch::stable::new_empty(image, {0});
}

// Launches the task that makes the gradients that are wanted. 1 - SSIM is symmetric in its images,
// so a gradient to the target alone is the gradient to the input of the call the other way round.
void launch_gradients(Call call, Outputs out, Tensor& to_input, Tensor& to_target, bool grad_input,
                      bool grad_target, Task one, Task both) {
  if (!grad_input) std::swap(call.input, call.target);
  out.grad_input = grad_input ? &to_input : &to_target;
  if (grad_input && grad_target) out.grad_target = &to_target;
  launch(grad_input && grad_target ? both : one, call, out);
}

// ---- operators; what they compute is said in ssim_cpu.cpp ----

std::tuple<Tensor, Tensor, Tensor> loss_cuda(Tensor input, Tensor target,
                                             std::vector<double> window, double data_range,
                                             double k1, double k2, bool valid,
                                             std::string reduction, bool grad_input,
                                             bool grad_target) {
  STD_TORCH_CHECK(reduction == "mean" || reduction == "sum" || reduction == "image",
                  "ssim_fused: unknown reduction '", reduction, "'");
  STD_TORCH_CHECK(reduction != "image" || !(grad_input || grad_target),
                  "ssim_fused: gradients of reduction 'image' come from loss_backward");
  const Call call{input, target, std::move(window), data_range, k1, k2, valid};
  call.check();
  torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  const bool image = reduction == "image";
  const double images = static_cast<double>(input.size(0));
  const double count = reduction == "sum" ? 1.0 : call.image_pixels() * (image ? 1.0 : images);
  Tensor to_input = gradient_for(input, grad_input), to_target = gradient_for(target, grad_target);
  Tensor value = image ? torch::stable::new_empty(input, {input.size(0)}, accumulate_type(input))
                       : torch::stable::new_empty(input, {}, accumulate_type(input));
  Tensor parts = to_input;
  Outputs out;
  out.parts = &parts;
  out.value = image ? nullptr : &value;
  out.value_scale = 1 / count;
  out.grad_scale = input.scalar_type() == ScalarType::Half ? 1.0 : 1.0 / count;
  if (grad_input || grad_target) {
    launch_gradients(call, out, to_input, to_target, grad_input, grad_target, Task::gradient,
                     Task::gradients);
  } else {
    launch(Task::value, call, out);
  }
  if (image) {
    const bool is_double = value.scalar_type() == ScalarType::Double;
    (is_double ? &reduce<double> : &reduce<float>)(parts, 1 / count, value);
  }
  return {value, to_input, to_target};
}

Tensor loss_map_cuda(Tensor input, Tensor target, std::vector<double> window, double data_range,
                     double k1, double k2, bool valid) {
  const Call call{input, target, std::move(window), data_range, k1, k2, valid};
  call.check();
  torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  Tensor map = torch::stable::new_empty(
      input, {input.size(0), input.size(1), call.out_size(2), call.out_size(3)});
  Outputs out;
  out.map = &map;
  launch(Task::map, call, out);
  return map;
}

std::tuple<Tensor, Tensor> loss_backward_cuda(Tensor grad_map, Tensor input, Tensor target,
                                              std::vector<double> window, double data_range,
                                              double k1, double k2, bool valid, bool grad_input,
                                              bool grad_target) {
  const Call call{input, target, std::move(window), data_range, k1, k2, valid};
  call.check();
  STD_TORCH_CHECK(grad_map.dim() == 4 && grad_map.size(0) == input.size(0) &&
                      grad_map.size(1) == input.size(1) && grad_map.size(2) == call.out_size(2) &&
                      grad_map.size(3) == call.out_size(3),
                  "ssim_fused: grad_map must have the shape of the map");
  STD_TORCH_CHECK(grad_map.scalar_type() == accumulate_type(input) && grad_map.is_cuda() &&
                      grad_map.get_device_index() == input.get_device_index(),
                  "ssim_fused: grad_map must be of the accumulation type, on the images' device");
  torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  Tensor to_input = gradient_for(input, grad_input), to_target = gradient_for(target, grad_target);
  Outputs out;
  out.weight = &grad_map;
  if (grad_input || grad_target) {
    launch_gradients(call, out, to_input, to_target, grad_input, grad_target, Task::backward,
                     Task::backwards);
  }
  return {to_input, to_target};
}

}  // namespace
}  // namespace ssim_fused

STABLE_TORCH_LIBRARY_IMPL(ssim_fused, CUDA, m) {
  m.impl("loss", TORCH_BOX(&ssim_fused::loss_cuda));
  m.impl("loss_map", TORCH_BOX(&ssim_fused::loss_map_cuda));
  m.impl("loss_backward", TORCH_BOX(&ssim_fused::loss_backward_cuda));
}
