// The CUDA kernel for volumes on the CPU, as a Python module: numpy arrays in, the launcher's
// geometry, numpy arrays out.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "cuda_on_cpu.h"
// after cuda_on_cpu.h, which defines what it needs
#include "ssim_cuda_volume_kernel.h"

namespace py = pybind11;
using namespace ssim_fused;

namespace {

const char* kTaskNames[] = {"value", "map", "gradient", "gradients", "backward", "backwards"};

Task task_named(const std::string& name) {
  for (int i = 0; i < 6; ++i) {
    if (name == kTaskNames[i]) return static_cast<Task>(i);
  }
  throw py::value_error("unknown task " + name);
}

// element strides of a numpy array of 5 axes
void set_strides(const py::array& a, Int64 (&stride)[5]) {
  for (int i = 0; i < 5; ++i) stride[i] = a.strides(i) / a.itemsize();
}

py::dict description(const VolumeGeometry& g) {
  py::dict out;
  out["fast"] = g.fast;
  out["cut"] = py::make_tuple(g.blocks_of[kZ], g.blocks_of[kY], g.blocks_of[kX]);
  out["blocks"] = g.blocks;
  out["shared"] = g.shared_words() * g.word_bytes;
  return out;
}

// windows: [3, kMostTaps], of which taps count; cut: blocks along z, y, x
template <typename T>
py::dict run(Task task, py::array input, py::array target, py::array_t<double> windows,
             std::tuple<int, int, int> lengths, int kind, bool valid, double data_range,
             int multiprocessors, py::object weight, py::object mask, py::object coverage,
             py::array map, py::array grad_input, py::array grad_target, py::object cut) {
  using A = typename Accumulate<T>::type;
  VolumeProblem<A> p{};
  const int taps[3] = {std::get<0>(lengths), std::get<1>(lengths), std::get<2>(lengths)};
  int size[3];
  for (int axis = 0; axis < 3; ++axis) size[axis] = static_cast<int>(input.shape(axis + 2));
  const bool has_weight = !weight.is_none() && !is_weighted(task), masked = !mask.is_none();
  const bool any = masked || has_weight || !kHasGradient<T>;
  p.g = choose_volume_geometry(static_cast<int>(input.shape(0)), static_cast<int>(input.shape(1)),
                               size, taps, valid, any, task, sizeof(A), multiprocessors);
  if (p.g.blocks == 0) throw py::value_error("no geometry fits these windows");
  if (!cut.is_none()) {
    const auto [z, y, x] = cut.cast<std::tuple<int, int, int>>();
    p.g.blocks_of[kZ] = z;
    p.g.blocks_of[kY] = y;
    p.g.blocks_of[kX] = x;
    complete(p.g, derivative_maps(task));
    if (!fits(p.g)) throw py::value_error("this cut does not fit a block");
  }
  p.input = input.data();
  p.target = target.data();
  set_strides(input, p.input_stride);
  set_strides(target, p.target_stride);
  const auto set_beside = [](const py::object& from, const A*& data, Int64(&stride)[5]) {
    if (from.is_none()) return;
    const auto array = from.cast<py::array>();
    data = static_cast<const A*>(array.data());
    set_strides(array, stride);
  };
  set_beside(weight, p.weight, p.weight_stride);
  set_beside(mask, p.mask, p.mask_stride);
  set_beside(coverage, p.coverage, p.coverage_stride);
  if (task == Task::map) p.map = map.mutable_data();
  if (derivative_maps(task) > 0) {
    p.grad_input = grad_input.mutable_data();
    set_strides(grad_input, p.grad_input_stride);
  }
  if (derivative_maps(task) == 4) {
    p.grad_target = grad_target.mutable_data();
    set_strides(grad_target, p.grad_target_stride);
  }
  std::vector<A> parts(makes_sums(task) ? p.g.parts() : 0, static_cast<A>(0.0 / 0.0));
  p.parts = parts.data();
  A total = static_cast<A>(0.0 / 0.0);
  unsigned arrived = 0;
  p.value = &total;
  p.value_scale = 1;
  p.arrived = &arrived;
  p.kind = static_cast<Kind>(kind);
  p.c1 = static_cast<A>(0.01 * 0.01);
  p.c2 = static_cast<A>(0.03 * 0.03);
  p.inverse_range = static_cast<A>(1 / data_range);
  p.grad_scale = A(1);
  for (int axis = 0; axis < 3; ++axis) {
    for (int k = 0; k < taps[axis]; ++k) p.window[axis][k] = static_cast<A>(windows.at(axis, k));
  }
  dispatch_volume<T>(task, p.g, [&]<bool kFast, Task kTask>() {
    emulator::launch({static_cast<unsigned>(p.g.blocks)}, p.g.threads,
                     p.g.shared_words() * sizeof(A), [&] { volume_kernel<T, kFast, kTask>(p); });
  });

  py::dict out = description(p.g);
  if (makes_sums(task)) {
    const Int64 volumes = Int64(p.g.n) * p.g.c;
    py::array_t<A> sums(volumes);
    const Int64 each = p.g.parts() / volumes;
    A* to = sums.mutable_data();
    emulator::launch({static_cast<unsigned>(volumes)}, kReduceThreads,
                     kReduceThreads * sizeof(ExactSum<A>),
                     [&] { reduce_kernel<A>(parts.data(), each, 1.0, to); });
    out["sums"] = sums;
    out["total"] = total;
    out["arrived"] = arrived;
  }
  return out;
}

py::dict run_named([[maybe_unused]] const std::string& dtype, const std::string& task,
                   py::array input, py::array target, py::array_t<double> windows,
                   std::tuple<int, int, int> taps, int kind, bool valid, double data_range,
                   int multiprocessors, py::object weight, py::object mask, py::object coverage,
                   py::array map, py::array grad_input, py::array grad_target, py::object cut) {
#if defined(SSIM_EMULATOR_FLOAT_ONLY)
  const auto typed = &run<float>;
#else
  const auto typed = dtype == "float32"   ? &run<float>
                     : dtype == "float64" ? &run<double>
                     : dtype == "float16" ? &run<float16>
                     : dtype == "uint8"   ? &run<uint8>
                     : dtype == "uint16"  ? &run<uint16>
                                          : &run<bfloat16>;
#endif
  return typed(task_named(task), input, target, windows, taps, kind, valid, data_range,
               multiprocessors, weight, mask, coverage, map, grad_input, grad_target, cut);
}

bool serves(std::tuple<int, int, int> taps, const std::string& task, int word_bytes) {
  const int lengths[3] = {std::get<0>(taps), std::get<1>(taps), std::get<2>(taps)};
  return serves_volume(lengths, false, task_named(task), word_bytes);
}

// what the launcher would choose; names: batch and channels, D H W, taps along z y x
py::dict cut(std::tuple<int, int> planes, std::tuple<int, int, int> sizes,
             std::tuple<int, int, int> lengths, bool valid, const std::string& task, int word_bytes,
             int multiprocessors) {
  const int size[3] = {std::get<0>(sizes), std::get<1>(sizes), std::get<2>(sizes)};
  const int taps[3] = {std::get<0>(lengths), std::get<1>(lengths), std::get<2>(lengths)};
  return description(choose_volume_geometry(std::get<0>(planes), std::get<1>(planes), size, taps,
                                            valid, false, task_named(task), word_bytes,
                                            multiprocessors));
}

}  // namespace

PYBIND11_MODULE(cuda_emulator_volume, m) {
  m.def("run", &run_named);
  m.def("serves", &serves);
  m.def("cut", &cut);
}
