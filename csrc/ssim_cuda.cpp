// The CUDA implementation of the operators that ssim_cpu.cpp declares: arguments checked, the cut
// chosen, the kernels of ssim_cuda_kernel.h launched on the current stream.
//
// Built on LibTorch's stable ABI by the C++ compiler alone, see ssim_cuda_driver.h.
#include "ssim_cuda_host.h"
#include "ssim_cuda_unpool_kernel.h"

#include <torch/csrc/stable/library.h>

#include <tuple>
#include <utility>
#include <vector>

namespace ssim_fused {
namespace {

Geometry geometry_of(const Call& call, Task task, int word_bytes) {
  const std::tuple key{call.size(0),
                       call.size(1),
                       call.size(2),
                       call.size(3),
                       call.taps(0),
                       call.taps(1),
                       call.settings.valid,
                       call.mask.has_value(),
                       task,
                       word_bytes,
                       multiprocessors(device_of(call.input))};
  return kept_geometry<Geometry>(key, [&] { return std::apply(choose_geometry, key); });
}

template <typename T>
void launch_images(Task task, const Call& call, const Outputs& out) {
  using A = typename Accumulate<T>::type;
  const int device = device_of(call.input);
  const Stream stream = current_stream(device);
  Problem<A> p{};
  p.g = geometry_of(call, task, sizeof(A));
  const Counter counter(call, out, stream);
  set_problem(p, call, out, counter);
  set_window(call.windows[0], p.window_y);
  set_window(call.windows[1], p.window_x);
  Tensor term_parts = call.input;
  if (out.terms != nullptr) {
    const double weights[3] = {out.terms->map, out.terms->squares, out.terms->absolute};
    const ScalarType type = accumulate_type(call.input);
    term_parts = torch::stable::new_empty(call.input, {2 * p.g.blocks}, type);
    set_terms(p, weights, out.multiplied, static_cast<A*>(term_parts.data_ptr()), p.value + 1);
  }
  if (out.pooled_input != nullptr) {
    p.pooled_input = static_cast<A*>(out.pooled_input->data_ptr());
    p.pooled_target = static_cast<A*>(out.pooled_target->data_ptr());
    p.pool_y = out.pool_y;
    p.pool_x = out.pool_x;
  }

  dispatch<T>(task, p, [&]<Layout kLayout, Task kTask, bool kExtra>() {
    static Kernel kernel("ssim_cuda_kernel.h",
                         kernel_name<T>("ssim_kernel", kLayout, kTask, kExtra));
    kernel.launch({device, stream, static_cast<unsigned>(p.g.blocks),
                   static_cast<unsigned>(p.g.threads), p.g.shared_words() * sizeof(A)},
                  p);
  });
}

void launch(Task task, const Call& call, const Outputs& out) {
  if (derivative_maps(task) > 0) check_has_gradient(call.input);
  if (call.axes() == 3) return launch_volume(task, call, out);
  by_type(call.input, [&]<typename T>() { launch_images<T>(task, call, out); });
}

// ---- gradients ----

Tensor gradient_for(const Tensor& image, bool wanted) {
  return wanted ? torch::stable::empty_like(image) : torch::stable::new_empty(image, {0});
}

// Makes the gradients that are wanted, and the value where `one` and `both` make it. The loss is
// symmetric in its images, so a gradient to the target alone is the gradient to the input of the call
// the other way round.
std::tuple<Tensor, Tensor> launch_gradients(Call call, Outputs out, bool grad_input,
                                            bool grad_target, Task one, Task both) {
  Tensor to_input = gradient_for(call.input, grad_input);
  Tensor to_target = gradient_for(call.target, grad_target);
  if (!grad_input && !grad_target) {
    if (makes_sums(one)) launch(Task::value, call, out);
    return {to_input, to_target};
  }
  if (!grad_input) {
    std::swap(call.input, call.target);
    std::swap(out.pooled_input, out.pooled_target);
  }
  out.grad_input = grad_input ? &to_input : &to_target;
  if (grad_input && grad_target) out.grad_target = &to_target;
  launch(grad_input && grad_target ? both : one, call, out);
  return {to_input, to_target};
}

// ---- operators; what they compute is said in ssim_cpu.cpp ----

// what a loss needs beside its images, until a launch has been made
struct Loss {
  Reduction reduction;
  Tensor value, parts;
  Outputs out;

  Loss(const Call& call, const Optional& window_weight, const Reduction& reduction)
      : reduction(reduction),
        value(torch::stable::new_empty(call.input, reduction.shape(call.input),
                                       accumulate_type(call.input))),
        parts(value) {
    STD_TORCH_CHECK(!reduction.has_terms || !call.mask,
                    "ssim_fused: other terms are for images without a mask");
    if (window_weight) {
      check_beside(*window_weight, "window_weight", call.map_shape(), call.input);
      out.weight = &*window_weight;
    }
    double count = 1;  // of what a value is the mean
    if (reduction.is_mean) count = call.plane_windows() * call.planes();
    if (reduction.is_plane) count = call.plane_windows();
    out.multiplied = reduction.stored_for(call.input, count);
    out.parts = &parts;
    out.value = reduction.is_plane ? nullptr : &value;
    out.value_scale = 1 / count;
    out.grad_scale = out.multiplied / count;
    out.terms = reduction.has_terms ? &this->reduction.weights : nullptr;
  }

  // once the launch is made: the values of planes, whose parts no launch adds up
  Tensor finished() {
    const bool is_double = value.scalar_type() == ScalarType::Double;
    if (reduction.is_plane) {
      (is_double ? &reduce<double> : &reduce<float>)(parts, out.value_scale, value);
    }
    return value;
  }
};

Tensor loss_cuda(Tensor input, Tensor target, Optional window_weight, Optional mask,
                 Optional coverage, std::vector<double> window, std::vector<int64_t> taps,
                 double data_range, double k1, double k2, bool valid, int64_t kind,
                 int64_t reduction, std::vector<double> term_weights) {
  const Settings settings{std::move(window), std::move(taps), data_range, k1, k2, valid, kind};
  const Call call(input, target, mask, coverage, settings);
  DeviceGuard guard(device_of(input));
  Loss loss(call, window_weight, Reduction(reduced_to(reduction), term_weights));
  launch(Task::value, call, loss.out);
  return loss.finished();
}

std::tuple<Tensor, Tensor, Tensor> loss_and_gradients_cuda(
    Tensor input, Tensor target, Optional window_weight, Optional mask, Optional coverage,
    std::vector<double> window, std::vector<int64_t> taps, double data_range, double k1, double k2,
    bool valid, int64_t kind, int64_t reduction, std::vector<double> term_weights, bool grad_input,
    bool grad_target) {
  const Settings settings{std::move(window), std::move(taps), data_range, k1, k2, valid, kind};
  const Call call(input, target, mask, coverage, settings);
  const Reduction reduced(reduced_to(reduction), term_weights);
  STD_TORCH_CHECK(!reduced.is_plane,
                  "ssim_fused: gradients of reduction 'plane' come from loss_backward");
  DeviceGuard guard(device_of(input));
  Loss loss(call, window_weight, reduced);
  const auto [to_input, to_target] =
      launch_gradients(call, loss.out, grad_input, grad_target, Task::gradient, Task::gradients);
  return {loss.finished(), to_input, to_target};
}

Tensor loss_map_cuda(Tensor input, Tensor target, Optional mask, Optional coverage,
                     std::vector<double> window, std::vector<int64_t> taps, double data_range,
                     double k1, double k2, bool valid, int64_t kind) {
  const Settings settings{std::move(window), std::move(taps), data_range, k1, k2, valid, kind};
  const Call call(input, target, mask, coverage, settings);
  DeviceGuard guard(device_of(input));
  Tensor map = torch::stable::new_empty(input, call.map_shape(),
                                        is_whole(input) ? ScalarType::Float : input.scalar_type());
  Outputs out;
  out.map = &map;
  launch(Task::map, call, out);
  return map;
}

std::tuple<Tensor, Tensor> loss_backward_cuda(Tensor grad_map, Tensor input, Tensor target,
                                              Optional mask, Optional coverage,
                                              std::vector<double> window, std::vector<int64_t> taps,
                                              double data_range, double k1, double k2, bool valid,
                                              int64_t kind, bool grad_input, bool grad_target) {
  const Settings settings{std::move(window), std::move(taps), data_range, k1, k2, valid, kind};
  const Call call(input, target, mask, coverage, settings);
  check_beside(grad_map, "grad_map", call.map_shape(), input);
  DeviceGuard guard(device_of(input));
  Outputs out;
  out.weight = &grad_map;
  return launch_gradients(call, out, grad_input, grad_target, Task::backward, Task::backwards);
}

// ---- one scale of MS-SSIM ----

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> loss_and_pool_cuda(
    Tensor input, Tensor target, std::vector<int64_t> pool_offset, std::vector<double> window,
    std::vector<int64_t> taps, double data_range, double k1, double k2, bool valid, int64_t kind,
    bool grad_input, bool grad_target) {
  const Settings settings{std::move(window), std::move(taps), data_range, k1, k2, valid, kind};
  const Optional none;
  const Call call(input, target, none, none, settings);
  STD_TORCH_CHECK(call.axes() == 2, "ssim_fused: only images are pooled");
  const Shape half = half_shape(input, pool_offset);
  DeviceGuard guard(device_of(input));
  Tensor pooled_input = torch::stable::new_empty(input, half, accumulate_type(input));
  Tensor pooled_target = torch::stable::new_empty(input, half, accumulate_type(input));
  Loss loss(call, none, Reduction(ReducedTo::plane, {}));
  loss.out.pooled_input = &pooled_input;
  loss.out.pooled_target = &pooled_target;
  loss.out.pool_y = static_cast<int>(pool_offset[0]);
  loss.out.pool_x = static_cast<int>(pool_offset[1]);
  const auto [to_input, to_target] =
      launch_gradients(call, loss.out, grad_input, grad_target, Task::gradient, Task::gradients);
  return {loss.finished(), pooled_input, pooled_target, to_input, to_target};
}

template <typename A>
void launch_unpooling(const Tensor& grad, const Tensor& factor, const Optional& grad_pooled,
                      const std::vector<int64_t>& pool_offset, const Tensor& out) {
  Unpooling<A> p{};
  p.grad = static_cast<const A*>(grad.data_ptr());
  p.factor = static_cast<const A*>(factor.data_ptr());
  p.out = static_cast<A*>(out.data_ptr());
  set_strides(grad, p.grad_stride);
  set_strides(factor, p.factor_stride);
  set_strides(out, p.out_stride);
  if (grad_pooled) {
    p.grad_pooled = static_cast<const A*>(grad_pooled->data_ptr());
    set_strides(*grad_pooled, p.pooled_stride);
  }
  const auto size = [&](int axis) { return static_cast<int>(grad.size(axis)); };
  p.set_size(size(1), size(2), size(3), static_cast<int>(pool_offset[0]),
             static_cast<int>(pool_offset[1]));
  const Int64 blocks = p.blocks(grad.size(0));
  STD_TORCH_CHECK(blocks <= std::numeric_limits<int>::max(), "ssim_fused: grad is too large");
  static Kernel kernel("ssim_cuda_unpool_kernel.h", kernel_name<A>("unpool_kernel"));
  const int device = device_of(grad);
  kernel.launch({device, current_stream(device), static_cast<unsigned>(blocks),
                 static_cast<unsigned>(p.threads), 0},
                p);
}

void check_grad(const Tensor& grad) {
  STD_TORCH_CHECK(grad.dim() == 4 && on_cuda(grad) && grad.scalar_type() == accumulate_type(grad),
                  "ssim_fused: grad must be (N, C, H, W) on CUDA, in the accumulation type");
  for (int axis = 0; axis < 4; ++axis) {
    STD_TORCH_CHECK(0 < grad.size(axis) && grad.size(axis) <= std::numeric_limits<int>::max() / 2,
                    "ssim_fused: grad has no pixels, or too many along axis ", axis);
  }
}

void unpool(const Tensor& grad, const Tensor& factor, const Optional& grad_pooled,
            const std::vector<int64_t>& pool_offset, const Tensor& out) {
  check_beside(factor, "factor", {grad.size(0), grad.size(1)}, grad);
  const Shape half = half_shape(grad, pool_offset);
  if (grad_pooled) check_beside(*grad_pooled, "grad_pooled", half, grad);
  const bool is_double = grad.scalar_type() == ScalarType::Double;
  (is_double ? &launch_unpooling<double> : &launch_unpooling<float>)(grad, factor, grad_pooled,
                                                                     pool_offset, out);
}

Tensor unpool_cuda(Tensor grad, Tensor factor, Optional grad_pooled,
                   std::vector<int64_t> pool_offset) {
  check_grad(grad);
  DeviceGuard guard(device_of(grad));
  Tensor made = torch::stable::empty_like(grad);
  unpool(grad, factor, grad_pooled, pool_offset, made);
  return made;
}

void unpool_in_place_cuda(Tensor grad, Tensor factor, Optional grad_pooled,
                          std::vector<int64_t> pool_offset) {
  check_grad(grad);
  STD_TORCH_CHECK(has_own_pixels(grad), "ssim_fused: pixels of grad must not share memory");
  DeviceGuard guard(device_of(grad));
  unpool(grad, factor, grad_pooled, pool_offset, grad);
}

}  // namespace
}  // namespace ssim_fused

#if !defined(SSIM_CUDA_STANDIN)
STABLE_TORCH_LIBRARY_IMPL(ssim_fused, CUDA, m) {
  m.impl("loss", TORCH_BOX(&ssim_fused::loss_cuda));
  m.impl("loss_and_gradients", TORCH_BOX(&ssim_fused::loss_and_gradients_cuda));
  m.impl("loss_map", TORCH_BOX(&ssim_fused::loss_map_cuda));
  m.impl("loss_backward", TORCH_BOX(&ssim_fused::loss_backward_cuda));
  m.impl("loss_and_pool", TORCH_BOX(&ssim_fused::loss_and_pool_cuda));
  m.impl("unpool", TORCH_BOX(&ssim_fused::unpool_cuda));
  m.impl("unpool_", TORCH_BOX(&ssim_fused::unpool_in_place_cuda));
}
#endif
