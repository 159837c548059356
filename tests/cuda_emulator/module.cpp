// The CUDA kernel on the CPU, as a Python module: numpy arrays in, the launcher's geometry, numpy
// arrays out.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <limits>

#include "cuda_on_cpu.h"
// after cuda_on_cpu.h, which defines what it needs
#include "ssim_cuda_kernel.h"
#include "ssim_cuda_unpool_kernel.h"

namespace py = pybind11;
using namespace ssim_fused;

namespace {

const char* kLayoutNames[] = {"streaming", "tile", "any"};

// element strides of a numpy array
template <size_t kAxes>
void set_strides(const py::array& a, Int64 (&stride)[kAxes]) {
  for (size_t i = 0; i < kAxes; ++i) stride[i] = a.strides(i) / a.itemsize();
}

const char* kTaskNames[] = {"value", "map", "gradient", "gradients", "backward", "backwards"};
const char* kKindNames[] = {"ssim", "contrast", "luminance", "nonnegative"};

template <size_t kCount>
int index_of(const std::string& name, const char* const (&names)[kCount]) {
  for (size_t i = 0; i < kCount; ++i) {
    if (name == names[i]) return static_cast<int>(i);
  }
  throw py::value_error("unknown name " + name);
}

template <typename A>
int set_window(const py::object& window, A (&taps)[kMostTaps]) {
  const auto values = window.cast<std::vector<double>>();
  std::copy(values.begin(), values.end(), taps);
  return static_cast<int>(values.size());
}

// `s`, by name: dtype, task, kind, window_y, window_x, data_range, k1, k2, valid, multiprocessors;
// the arrays input, target, map, grad_input, grad_target, weight (or None);
// term_weights (or None) and multiplied, see set_terms;
// mask (or None), and with it coverage;
// pool_offset (or None), and with it the arrays pooled_input and pooled_target;
// cut (or None): layout, tiles, bands and planes in place of those that the launcher chooses
template <typename T>
py::dict run(const py::dict& s) {
  using A = typename Accumulate<T>::type;
  const Task task = static_cast<Task>(index_of(s["task"].cast<std::string>(), kTaskNames));
  const py::array input = s["input"], target = s["target"];
  const auto size = [&](int axis) { return static_cast<int>(input.shape(axis)); };
  Problem<A> p{};
  const int taps_y = set_window<A>(s["window_y"], p.window_y);
  const int taps_x = set_window<A>(s["window_x"], p.window_x);
  const bool masked = !s["mask"].is_none();
  p.g = choose_geometry(size(0), size(1), size(2), size(3), taps_y, taps_x, s["valid"].cast<bool>(),
                        masked, task, sizeof(A), s["multiprocessors"].cast<int>());
  if (!s["cut"].is_none()) {
    const auto [layout, tiles, bands, planes] =
        s["cut"].cast<std::tuple<std::string, int, int, int>>();
    p.g.layout = static_cast<Layout>(index_of(layout, kLayoutNames));
    p.g.tiles = tiles;
    p.g.bands = bands;
    p.g.planes = planes;
    complete(p.g, derivative_maps(task));
    if (!fits(p.g)) throw py::value_error("this cut does not fit a block: " + layout);
  }
  if (p.g.blocks == 0) throw py::value_error("no geometry fits this window");
  py::array map = s["map"], grad_input = s["grad_input"], grad_target = s["grad_target"];
  p.input = input.data();
  p.target = target.data();
  set_strides(input, p.input_stride);
  set_strides(target, p.target_stride);
  if (!s["weight"].is_none()) {
    const py::array weight = s["weight"];
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
  const A kNan = std::numeric_limits<A>::quiet_NaN();
  std::vector<A> parts(makes_sums(task) ? p.g.parts() : 0, kNan), term_parts;
  p.parts = parts.data();
  A total = kNan, terms[3] = {kNan, kNan, kNan};
  unsigned arrived = 0;
  p.value = &total;
  p.arrived = &arrived;
  p.value_scale = p.grad_scale = 1;
  if (!s["term_weights"].is_none()) {
    const auto weights = s["term_weights"].cast<std::vector<double>>();
    term_parts.assign(2 * p.g.blocks, kNan);
    set_terms(p, weights.data(), s["multiplied"].cast<double>(), term_parts.data(), terms);
  }
  if (masked) {
    const py::array mask = s["mask"], coverage = s["coverage"];
    p.mask = static_cast<const A*>(mask.data());
    p.coverage = static_cast<const A*>(coverage.data());
    set_strides(mask, p.mask_stride);
    set_strides(coverage, p.coverage_stride);
  }
  if (!s["pool_offset"].is_none()) {
    std::tie(p.pool_y, p.pool_x) = s["pool_offset"].cast<std::pair<int, int>>();
    py::array pooled_input = s["pooled_input"], pooled_target = s["pooled_target"];
    p.pooled_input = static_cast<A*>(pooled_input.mutable_data());
    p.pooled_target = static_cast<A*>(pooled_target.mutable_data());
  }
  const auto number = [&](const char* name) { return s[name].cast<double>(); };
  p.c1 = static_cast<A>(number("k1") * number("k1"));
  p.c2 = static_cast<A>(number("k2") * number("k2"));
  p.inverse_range = static_cast<A>(1 / number("data_range"));
  p.kind = static_cast<Kind>(index_of(s["kind"].cast<std::string>(), kKindNames));
  bool is_extra = false;
  dispatch<T>(task, p, [&]<Layout kLayout, Task kTask, bool kExtra>() {
    is_extra = kExtra;
    emulator::launch({static_cast<unsigned>(p.g.blocks)}, p.g.threads,
                     p.g.shared_words() * sizeof(A),
                     [&] { ssim_kernel<T, kLayout, kTask, kExtra>(p); });
  });

  py::dict out;
  if (makes_sums(task)) {
    py::array_t<A> sums({p.g.n, p.g.c});
    const unsigned planes = static_cast<unsigned>(sums.size());
    const Int64 each = p.g.parts() / planes;
    A* to = sums.mutable_data();
    emulator::launch({planes}, kReduceThreads, kReduceThreads * sizeof(ExactSum<A>),
                     [&] { reduce_kernel<A>(parts.data(), each, 1.0, to); });
    out["sums"] = sums;
    out["total"] = total;
    out["arrived"] = arrived;
    out["terms"] = std::vector<double>(terms, terms + 3);
  }
  out["cut"] =
      py::make_tuple(kLayoutNames[static_cast<int>(p.g.layout)], p.g.tiles, p.g.bands, p.g.planes);
  out["threads"] = p.g.threads;
  out["blocks"] = p.g.blocks;
  out["is_extra"] = is_extra;
  return out;
}

// the arrays grad, factor, grad_pooled (or None) and out; pool_offset
template <typename A>
void unpool(const py::array& grad, const py::array& factor, const py::object& grad_pooled,
            py::array out, std::pair<int, int> pool_offset) {
  Unpooling<A> p{};
  p.grad = static_cast<const A*>(grad.data());
  p.factor = static_cast<const A*>(factor.data());
  p.out = static_cast<A*>(out.mutable_data());
  set_strides(grad, p.grad_stride);
  set_strides(factor, p.factor_stride);
  set_strides(out, p.out_stride);
  if (!grad_pooled.is_none()) {
    const auto pooled = grad_pooled.cast<py::array>();
    p.grad_pooled = static_cast<const A*>(pooled.data());
    set_strides(pooled, p.pooled_stride);
  }
  const auto size = [&](int axis) { return static_cast<int>(grad.shape(axis)); };
  p.set_size(size(1), size(2), size(3), pool_offset.first, pool_offset.second);
  emulator::launch({static_cast<unsigned>(p.blocks(size(0)))}, p.threads, 0,
                   [&] { unpool_kernel<A>(p); });
}

py::dict run_named(const py::dict& s) {
#if !defined(SSIM_EMULATOR_FLOAT_ONLY)
  const std::string dtype = s["dtype"].cast<std::string>();
  if (dtype == "float64") return run<double>(s);
  if (dtype == "float16") return run<float16>(s);
  if (dtype == "bfloat16") return run<bfloat16>(s);
  if (dtype == "uint8") return run<uint8>(s);
  if (dtype == "uint16") return run<uint16>(s);
#endif
  return run<float>(s);
}

}  // namespace

PYBIND11_MODULE(cuda_emulator_native, m) {
  m.def("run", &run_named);
  m.def("unpool_float32", &unpool<float>);
  m.def("unpool_float64", &unpool<double>);
}
