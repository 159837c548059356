// The CUDA kernel on the CPU, as a Python module: numpy arrays in, the launcher's geometry, numpy
// arrays out.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "cuda_on_cpu.h"
// after cuda_on_cpu.h, which defines what it needs
#include "ssim_cuda_kernel.h"

namespace py = pybind11;
using namespace ssim_fused;

namespace {

const char* kLayoutNames[] = {"streaming", "tile", "any"};

// element strides of a numpy array of 4 axes
void set_strides(const py::array& a, Int64 (&stride)[4]) {
  for (int i = 0; i < 4; ++i) stride[i] = a.strides(i) / a.itemsize();
}

template <typename T>
py::dict run(Task task, py::array input, py::array target, py::array window, double data_range,
             double k1, double k2, bool valid, int multiprocessors, py::array weight, py::array map,
             py::array grad_input, py::array grad_target, py::object cut) {
  using A = typename Accumulate<T>::type;
  Problem<A> p{};
  const int taps = static_cast<int>(window.size());
  p.g = choose_geometry(static_cast<int>(input.shape(0)), static_cast<int>(input.shape(1)),
                        static_cast<int>(input.shape(2)), static_cast<int>(input.shape(3)), taps,
                        valid, task, sizeof(A), multiprocessors);
  if (!cut.is_none()) {
    const auto [layout, tiles, bands, planes] = cut.cast<std::tuple<std::string, int, int, int>>();
    for (int i = 0; i < 3; ++i) {
      if (layout == kLayoutNames[i]) p.g.layout = static_cast<Layout>(i);
    }
    p.g.tiles = tiles;
    p.g.bands = bands;
    p.g.planes = planes;
    complete(p.g, derivative_maps(task));
    if (!fits(p.g)) throw py::value_error("this cut does not fit a block: " + layout);
  }
  if (p.g.blocks == 0) throw py::value_error("no geometry fits this window");
  p.input = input.data();
  p.target = target.data();
  set_strides(input, p.input_stride);
  set_strides(target, p.target_stride);
  if (is_weighted(task)) {
    p.weight = static_cast<const A*>(weight.data());
    set_strides(weight, p.weight_stride);
  }
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
  p.c1 = static_cast<A>(k1 * k1);
  p.c2 = static_cast<A>(k2 * k2);
  p.inverse_range = static_cast<A>(1 / data_range);
  p.grad_scale = A(1);
  for (int k = 0; k < taps; ++k)
    p.window[k] = static_cast<A>(*static_cast<const double*>(window.data(k)));
  dispatch<T>(task, p.g, [&]<Layout kLayout, Task kTask>() {
    emulator::launch({static_cast<unsigned>(p.g.blocks)}, p.g.threads,
                     p.g.shared_words() * sizeof(A), [&] { ssim_kernel<T, kLayout, kTask>(p); });
  });

  py::dict out;
  if (makes_sums(task)) {
    py::array_t<A> sums(input.shape(0));
    const Int64 each = p.g.parts() / p.g.n;
    A* to = sums.mutable_data();
    emulator::launch({static_cast<unsigned>(p.g.n)}, kReduceThreads,
                     kReduceThreads * sizeof(ExactSum<A>),
                     [&] { reduce_kernel<A>(parts.data(), each, 1.0, to); });
    out["sums"] = sums;
    out["total"] = total;
    out["arrived"] = arrived;
  }
  out["cut"] =
      py::make_tuple(kLayoutNames[static_cast<int>(p.g.layout)], p.g.tiles, p.g.bands, p.g.planes);
  out["threads"] = p.g.threads;
  out["blocks"] = p.g.blocks;
  return out;
}

py::dict run_named([[maybe_unused]] const std::string& dtype, const std::string& task_name,
                   py::array input, py::array target, py::array window, double data_range,
                   double k1, double k2, bool valid, int multiprocessors, py::array weight,
                   py::array map, py::array grad_input, py::array grad_target, py::object cut) {
  const char* names[] = {"value", "map", "gradient", "gradients", "backward", "backwards"};
  for (int i = 0; i < 6; ++i) {
    if (task_name != names[i]) continue;
#if defined(SSIM_EMULATOR_FLOAT_ONLY)
    const auto typed = &run<float>;
#else
    const auto typed = dtype == "float32"   ? &run<float>
                       : dtype == "float64" ? &run<double>
                       : dtype == "float16" ? &run<float16>
                                            : &run<bfloat16>;
#endif
    return typed(static_cast<Task>(i), input, target, window, data_range, k1, k2, valid,
                 multiprocessors, weight, map, grad_input, grad_target, cut);
  }
  throw py::value_error("unknown task " + task_name);
}

}  // namespace

PYBIND11_MODULE(cuda_emulator_native, m) { m.def("run", &run_named); }
