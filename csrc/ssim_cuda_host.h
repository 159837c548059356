// What the launchers of the CUDA kernels share: for images in ssim_cuda.cpp, for volumes in
// ssim_cuda_volume.cpp.
#pragma once

#include "ssim_cuda_driver.h"
#include "ssim_cuda_kernel.h"
#include "ssim_operators.h"

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>

#include <limits>
#include <map>
#include <mutex>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace ssim_fused {

// ---- where the images are ----

#if !defined(SSIM_CUDA_STANDIN)
using torch::stable::accelerator::DeviceGuard;
inline bool on_cuda(const Tensor& t) { return t.is_cuda(); }
inline int device_of(const Tensor& t) { return t.get_device_index(); }
#else
// tests/cuda_standin: the launchers run with images of the CPU, which stands for device 0
struct DeviceGuard {
  explicit DeviceGuard(int) {}
};
inline bool on_cuda(const Tensor& t) { return t.is_cpu(); }
inline int device_of(const Tensor&) { return 0; }
#endif

// ---- a call ----

// is it of this shape, in the images' accumulation type, where they are?
inline void check_beside(const Tensor& t, const char* name, const Shape& shape,
                         const Tensor& images) {
  STD_TORCH_CHECK(shape_of(t) == shape, "ssim_fused: ", name, " has the wrong shape");
  STD_TORCH_CHECK(
      t.scalar_type() == accumulate_type(images) && on_cuda(t) && device_of(t) == device_of(images),
      "ssim_fused: ", name, " must be of the accumulation type, on the images' device");
}

// the images or volumes and settings of one call, checked: whatever could lead out of bounds
struct Call {
  Tensor input, target;
  const Optional &mask, &coverage;
  const Settings& settings;
  std::vector<std::span<const double>> windows;  // along the last axes
  Kind kind;

  Call(const Tensor& input, const Tensor& target, const Optional& mask, const Optional& coverage,
       const Settings& settings)
      : input(input),
        target(target),
        mask(mask),
        coverage(coverage),
        settings(settings),
        kind(kind_of(settings.kind)) {
    check_images(input, target, settings);
    STD_TORCH_CHECK(on_cuda(input) && on_cuda(target) && device_of(input) == device_of(target),
                    "ssim_fused: input and target must be on one CUDA device");
    windows = settings.windows(axes());
    for (int i = 0; i < input.dim(); ++i) {
      // so that what the choice of a cut adds up stays an int
      STD_TORCH_CHECK(input.size(i) <= std::numeric_limits<int>::max() / 3,
                      "ssim_fused: the images are too large along axis ", i);
    }
    for (int axis = 0; axis < axes(); ++axis) {
      STD_TORCH_CHECK(taps(axis) <= kMostTaps, "ssim_fused: the window must have at most ",
                      kMostTaps, " taps");
      STD_TORCH_CHECK(out_size(axis) > 0, "ssim_fused: the window is larger than the images");
    }
    STD_TORCH_CHECK(mask.has_value() == coverage.has_value(),
                    "ssim_fused: a mask comes with its coverage");
    if (!mask) return;
    check_beside(*mask, "mask", shape_of(input), input);
    check_beside(*coverage, "coverage", map_shape(), input);
  }

  int axes() const { return static_cast<int>(input.dim()) - 2; }
  int size(int axis) const { return static_cast<int>(input.size(axis)); }
  int taps(int axis) const { return static_cast<int>(windows[axis].size()); }
  Int64 out_size(int axis) const {
    return input.size(axis + 2) - (settings.valid ? taps(axis) - 1 : 0);
  }

  Shape map_shape() const {
    Shape shape{input.size(0), input.size(1)};
    for (int axis = 0; axis < axes(); ++axis) shape.push_back(out_size(axis));
    return shape;
  }
  double plane_windows() const {
    double windows = 1;
    for (int axis = 0; axis < axes(); ++axis) windows *= static_cast<double>(out_size(axis));
    return windows;
  }
  double planes() const { return static_cast<double>(input.size(0)) * input.size(1); }
};

// what a launch reads beside the images, and writes
struct Outputs {
  const Tensor* weight = nullptr;
  Tensor *map = nullptr, *grad_input = nullptr, *grad_target = nullptr;
  Tensor* parts = nullptr;  // made by the launch
  Tensor* value = nullptr;  // what the parts add up to: (), or [4] with terms
  double value_scale = 1, grad_scale = 1;
  const TermWeights* terms = nullptr;  // of a mean; in place of the scales, see set_terms
  double multiplied = 1;
  Tensor *pooled_input = nullptr, *pooled_target = nullptr;  // images at half their size
  int pool_y = 0, pool_x = 0;
};

void launch_volume(Task task, const Call& call, const Outputs& out);

// ---- a launch ----

// A kernel's name expression: ssim_fused::NAME<ARGUMENTS>. The arguments are named as in C++;
// _kernels.py lists the same kernels, to compile them ahead.
template <typename T>
constexpr const char* kTypeName = "float";
template <>
inline constexpr const char* kTypeName<double> = "double";
template <>
inline constexpr const char* kTypeName<float16> = "float16";
template <>
inline constexpr const char* kTypeName<bfloat16> = "bfloat16";
template <>
inline constexpr const char* kTypeName<uint8> = "uint8";
template <>
inline constexpr const char* kTypeName<uint16> = "uint16";

inline std::string name_of(Layout layout) {
  constexpr const char* kNames[] = {"streaming", "tile", "any"};
  return std::string("ssim_fused::Layout::") + kNames[static_cast<int>(layout)];
}
inline std::string name_of(Task task) {
  constexpr const char* kNames[] = {"value",     "map",      "gradient",
                                    "gradients", "backward", "backwards"};
  return std::string("ssim_fused::Task::") + kNames[static_cast<int>(task)];
}
inline std::string name_of(bool value) { return value ? "true" : "false"; }

template <typename T, typename... Arguments>
std::string kernel_name(const char* name, Arguments... arguments) {
  return ((std::string("ssim_fused::") + name + "<" + kTypeName<T>)+... +
          (", " + name_of(arguments))) +
         ">";
}

// The counter of blocks that a launch needs, 0 before it and again after it; it must live until the
// launch is made. A graph has its own, since it may be replayed beside other launches; so has a
// launch where torch holds all of CUDA's memory.
struct Counter {
  unsigned* address = nullptr;  // where a launch adds up a value
  Optional memory;              // of its own

  Counter(const Call& call, const Outputs& out, Stream stream) {
    if (out.value == nullptr) return;
    if (!is_captured(stream)) address = kept_counter(device_of(call.input), stream);
    if (address != nullptr) return;
    memory = torch::stable::new_empty(call.input, {1}, ScalarType::Int);
    address = static_cast<unsigned*>(memory->data_ptr());
    clear_counter(address, stream);
  }
};

// value: [N, C]; each is scale times its share of the parts
template <typename A>
void reduce(const Tensor& parts, double scale, Tensor& value) {
  static Kernel kernel("ssim_cuda_kernel.h", kernel_name<A>("reduce_kernel"));
  const Int64 each = parts.numel() / value.numel();
  const int device = device_of(value);
  kernel.launch({device, current_stream(device), static_cast<unsigned>(value.numel()),
                 kReduceThreads, kReduceThreads * sizeof(ExactSum<A>)},
                static_cast<const A*>(parts.data_ptr()), each, scale,
                static_cast<A*>(value.data_ptr()));
}

// The cut of a launch. To find one takes longer than to launch a small picture, so they are kept.
template <typename Geometry, typename Key, typename Choose>
Geometry kept_geometry(const Key& key, Choose&& choose) {
  constexpr size_t kMostKept = 1024;
  static std::mutex mutex;
  static std::map<Key, Geometry> kept;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = kept.find(key);
  if (found != kept.end()) return found->second;
  if (kept.size() == kMostKept) kept.clear();
  return kept.emplace(key, choose()).first->second;
}

template <size_t kAxes>
void set_strides(const Tensor& t, Int64 (&stride)[kAxes]) {
  for (size_t i = 0; i < kAxes; ++i) stride[i] = t.stride(i);
}

template <typename A>
void set_window(std::span<const double> taps, A (&window)[kMostTaps]) {
  for (size_t i = 0; i < taps.size(); ++i) window[i] = static_cast<A>(taps[i]);
}

// What the problems of images and of volumes both have, once their geometry is there; A is the
// accumulation type.
template <typename A, template <typename> typename AnyProblem>
void set_problem(AnyProblem<A>& p, const Call& call, const Outputs& out, const Counter& counter) {
  const Tensor& input = call.input;
  STD_TORCH_CHECK(p.g.blocks > 0 && p.g.blocks <= std::numeric_limits<int>::max() &&
                      p.g.parts() <= std::numeric_limits<int>::max(),
                  "ssim_fused: no launch serves these images and windows");
  p.input = input.data_ptr();
  p.target = call.target.data_ptr();
  set_strides(input, p.input_stride);
  set_strides(call.target, p.target_stride);
  if (out.weight != nullptr) {
    p.weight = static_cast<const A*>(out.weight->data_ptr());
    set_strides(*out.weight, p.weight_stride);
  }
  if (call.mask) {
    p.mask = static_cast<const A*>(call.mask->data_ptr());
    p.coverage = static_cast<const A*>(call.coverage->data_ptr());
    set_strides(*call.mask, p.mask_stride);
    set_strides(*call.coverage, p.coverage_stride);
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
  }
  p.arrived = counter.address;
  p.grad_scale = static_cast<A>(out.grad_scale);
  p.c1 = static_cast<A>(call.settings.k1 * call.settings.k1);
  p.c2 = static_cast<A>(call.settings.k2 * call.settings.k2);
  p.inverse_range = static_cast<A>(1 / call.settings.data_range);
  p.kind = call.kind;
}

// launch.operator()<T>() for the images' type
template <typename Launch>
void by_type(const Tensor& images, Launch&& launch) {
  switch (images.scalar_type()) {
    case ScalarType::Float:
      return launch.template operator()<float>();
    case ScalarType::Double:
      return launch.template operator()<double>();
    case ScalarType::Half:
      return launch.template operator()<float16>();
    case ScalarType::BFloat16:
      return launch.template operator()<bfloat16>();
    case ScalarType::Byte:
      return launch.template operator()<uint8>();
    case ScalarType::UInt16:
      return launch.template operator()<uint16>();
    default:
      STD_TORCH_CHECK(false,
                      "ssim_fused: images must be float16, bfloat16, float32, float64, uint8 or "
                      "uint16");
  }
}

}  // namespace ssim_fused
