// The operators of ssim_fused: schemas, and their CPU implementation.
//
// Built on LibTorch's stable ABI, so that one file serves every torch from 2.10 on. Fake (meta)
// kernels and autograd are in ssim_fused/_ops.py. User errors are explained in Python; what a
// direct call of torch.ops.ssim_fused.* could break is checked again here.
#include "ssim_cpu.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <memory>
#include <new>
#include <string>
#include <tuple>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace ssim_fused {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// ---- which build of the kernel ----

#if defined(__x86_64__) || defined(_M_X64)
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

// the best that this processor runs, or the one that SSIM_FUSED_CPU_ISA names
Kernel choose_kernel() {
  const char* forced = std::getenv("SSIM_FUSED_CPU_ISA");
  const std::string wanted = forced ? forced : "";
#if defined(__x86_64__) || defined(_M_X64)
  if (has_avx512() && (wanted.empty() || wanted == "avx512")) return kernel_avx512();
  if (has_avx2() && (wanted.empty() || wanted == "avx2")) return kernel_avx2();
#endif
  if (wanted.empty() || wanted == "baseline") return kernel_baseline();
  STD_TORCH_CHECK(false, "SSIM_FUSED_CPU_ISA is '", wanted,
                  "', which is not one of baseline, avx2, avx512 that this processor runs");
}

const Kernel& kernel() {
  static const Kernel chosen = choose_kernel();
  return chosen;
}

std::string cpu_isa() { return kernel().isa; }

// ---- arguments ----

Dtype dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return Dtype::float32;
    case ScalarType::Double:
      return Dtype::float64;
    case ScalarType::Half:
      return Dtype::float16;
    case ScalarType::BFloat16:
      return Dtype::bfloat16;
    default:
      STD_TORCH_CHECK(false, "ssim_fused: images must be float16, bfloat16, float32 or float64");
  }
}

ScalarType accumulate_type(const Tensor& t) {
  return t.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

Image image_of(const Tensor& t) {
  return {t.data_ptr(), t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

bool same_shape(const Tensor& a, const Tensor& b) {
  if (a.dim() != b.dim()) return false;
  for (int64_t i = 0; i < a.dim(); ++i) {
    if (a.size(i) != b.size(i)) return false;
  }
  return true;
}

// input, target: [N, C, H, W]; window: [taps], odd; checks everything that could lead out of bounds
Problem make_problem(const Tensor& input, const Tensor& target, const std::vector<double>& window,
                     double data_range, double k1, double k2, bool valid) {
  STD_TORCH_CHECK(input.dim() == 4 && same_shape(input, target),
                  "ssim_fused: input and target must be (N, C, H, W) and of one shape");
  STD_TORCH_CHECK(input.scalar_type() == target.scalar_type(),
                  "ssim_fused: input and target differ in dtype");
  STD_TORCH_CHECK(input.is_cpu() && target.is_cpu(),
                  "ssim_fused: input and target must both be on the CPU");
  STD_TORCH_CHECK(input.numel() > 0, "ssim_fused: the images are empty");
  const int64_t taps = static_cast<int64_t>(window.size());
  STD_TORCH_CHECK(taps % 2 == 1 && taps < (int64_t{1} << 20),
                  "ssim_fused: the window must have an odd number of taps");
  const auto differ = [](double a, double b) { return a < b || b < a; };  // NaN does not
  STD_TORCH_CHECK(std::equal(window.begin(), window.end(), window.rbegin(), std::not_fn(differ)),
                  "ssim_fused: the window must be symmetric");
  STD_TORCH_CHECK(std::isfinite(data_range) && data_range > 0,
                  "ssim_fused: data_range must be positive and finite");

  Problem p{};
  p.dtype = dtype_of(input);
  p.input = image_of(input);
  p.target = image_of(target);
  p.n = input.size(0);
  p.c = input.size(1);
  p.h = input.size(2);
  p.w = input.size(3);
  p.pad = valid ? 0 : (taps - 1) / 2;
  p.out_h = p.h + 2 * p.pad - taps + 1;
  p.out_w = p.w + 2 * p.pad - taps + 1;
  STD_TORCH_CHECK(p.out_h > 0 && p.out_w > 0, "ssim_fused: the window is larger than the images");
  p.window = window.data();
  p.taps = taps;
  p.c1 = k1 * k1;
  p.c2 = k2 * k2;
  p.inverse_range = 1.0 / data_range;
  p.grad_scale = 1.0;
  return p;
}

// ---- the cut into items ----

// cuts waste least on multiples of the largest vector's width
constexpr int64_t kBlock = 16;
// what an item keeps between its rows stays in the L2 cache
constexpr int64_t kMaxTileWidth = 1024;
constexpr int64_t kMaxBandHeight = 512;
constexpr int64_t kMaxInterleavedWidth = 256;
// so many items give several threads work; lower bands would mostly make what others make, too
constexpr int64_t kItems = 8;
constexpr int64_t kMinBandHeight = 128;

struct Cut {
  int64_t parts, size;
};

// `size` in at least `parts` parts, where each part and its halo fill whole blocks
Cut cut(int64_t size, int64_t parts, int64_t halo) {
  const int64_t even = (size + parts - 1) / parts;
  const int64_t part = (even + halo + kBlock - 1) / kBlock * kBlock - halo;
  return part >= size ? Cut{1, size} : Cut{(size + part - 1) / part, part};
}

// Once it is known what is asked for. Where the channels of a pixel lie side by side, they take
// turns, so that the next channel finds its pixels in the L2 cache.
void cut_items(Problem& p) {
  const int64_t h = p.grid_h(), w = p.grid_w();
  const bool interleaved = p.c > 1 && (p.input.stride_w != 1 || p.target.stride_w != 1);
  const int64_t max_width = interleaved ? kMaxInterleavedWidth : kMaxTileWidth;
  const Cut tiles = cut(w, (w + max_width - 1) / max_width, 0);
  p.together = interleaved ? std::min(p.c, Problem::kMaxTogether) : 1;
  while (p.c % p.together != 0) --p.together;
  const int64_t across = p.n * (p.c / p.together) * tiles.parts;
  const int64_t for_threads = std::min((kItems + across - 1) / across, h / kMinBandHeight);
  const int64_t for_cache = (h + kMaxBandHeight - 1) / kMaxBandHeight;
  const int64_t halo = p.wants_grad() ? (p.taps - 1) % kBlock : 0;
  const Cut bands = cut(h, std::max(for_cache, for_threads), halo);
  p.tiles = tiles.parts;
  p.tile_w = tiles.size;
  p.bands = bands.parts;
  p.band_h = bands.size;
  if (p.items() / p.together < kItems) p.together = 1;  // threads come first
}

int64_t map_pixels(const Problem& p) { return p.out_h * p.out_w; }

// ---- running it ----

constexpr int64_t kPixelsPerThread = 1 << 14;  // less than this is not worth waking a thread for

void run(Problem& p) {
  cut_items(p);
  const int64_t grain = 1 + kPixelsPerThread / (p.together * p.band_h * p.tile_w);
  const int64_t scratch_bytes = kernel().scratch_bytes(p);
  torch::stable::parallel_for(0, p.items() / p.together, grain, [&](int64_t begin, int64_t end) {
    struct Free {
      void operator()(void* bytes) const { ::operator delete(bytes, std::align_val_t{64}); }
    };
    std::unique_ptr<void, Free> scratch(::operator new(scratch_bytes, std::align_val_t{64}));
    kernel().run(p, begin * p.together, end * p.together, scratch.get());
  });
}

// runs p for its sums; one sum for each image, added up in a fixed order
std::vector<double> run_sums(Problem& p) {
  cut_items(p);
  std::vector<double> parts(p.items());
  p.sums = parts.data();
  run(p);
  const int64_t per_image = static_cast<int64_t>(parts.size()) / p.n;
  std::vector<double> sums(p.n);
  for (int64_t i = 0; i < p.n; ++i) {
    for (int64_t j = 0; j < per_image; ++j) sums[i] += parts[i * per_image + j];
  }
  return sums;
}

// A large output is fresh memory at every call, which costs an interruption for each page that is
// first written to. Where the system has them ready, huge pages make that one in 2 MB, not 512.
// Torch's allocator does the same for all tensors under THP_MEM_ALLOC_ENABLE=1.
Tensor in_huge_pages(Tensor out) {
#if defined(__linux__)
  constexpr uintptr_t kHugePage = 2 << 20;
  const uintptr_t start = reinterpret_cast<uintptr_t>(out.data_ptr());
  const uintptr_t end = start + static_cast<uintptr_t>(out.numel()) * out.element_size();
  const uintptr_t first = (start + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t last = end / kHugePage * kHugePage;
  // advice only: nothing changes where it is not taken
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
  return out;
}

Tensor no_gradient(const Tensor& like) { return torch::stable::new_empty(like, {0}); }

Tensor gradient_for(const Tensor& image, bool wanted, Image& out) {
  if (!wanted) return no_gradient(image);
  Tensor grad = in_huge_pages(torch::stable::empty_like(image));
  out = image_of(grad);
  return grad;
}

void write(const Tensor& out, int64_t i, double value) {
  if (out.scalar_type() == ScalarType::Double) {
    static_cast<double*>(out.data_ptr())[i] = value;
  } else {
    static_cast<float*>(out.data_ptr())[i] = static_cast<float>(value);
  }
}

// ---- operators ----

// Mean, sum or per-image means of 1 - SSIM, in the accumulation type, and its gradients where they
// are asked for (mean and sum only). Gradients of float16 images are those of the sum:
// divided by the number of pixels they would fall below its smallest number.
std::tuple<Tensor, Tensor, Tensor> loss_cpu(Tensor input, Tensor target, std::vector<double> window,
                                            double data_range, double k1, double k2, bool valid,
                                            std::string reduction, bool grad_input,
                                            bool grad_target) {
  STD_TORCH_CHECK(reduction == "mean" || reduction == "sum" || reduction == "image",
                  "ssim_fused: unknown reduction '", reduction, "'");
  STD_TORCH_CHECK(reduction != "image" || !(grad_input || grad_target),
                  "ssim_fused: gradients of reduction 'image' come from loss_backward");
  Problem p = make_problem(input, target, window, data_range, k1, k2, valid);
  const double image_pixels = static_cast<double>(p.c * map_pixels(p));
  const double count = reduction == "mean" ? image_pixels * static_cast<double>(p.n) : 1.0;
  p.grad_scale = p.dtype == Dtype::float16 ? 1.0 : 1.0 / count;
  Tensor to_input = gradient_for(input, grad_input, p.grad_input);
  Tensor to_target = gradient_for(target, grad_target, p.grad_target);
  const std::vector<double> sums = run_sums(p);

  if (reduction == "image") {
    Tensor value = torch::stable::new_empty(input, {p.n}, accumulate_type(input));
    for (int64_t i = 0; i < p.n; ++i) write(value, i, sums[i] / image_pixels);
    return {value, to_input, to_target};
  }
  Tensor value = torch::stable::new_empty(input, {}, accumulate_type(input));
  double total = 0;
  for (double sum : sums) total += sum;
  write(value, 0, total / count);
  return {value, to_input, to_target};
}

// the map of 1 - SSIM, (N, C, OH, OW), contiguous, in the images' dtype
Tensor loss_map_cpu(Tensor input, Tensor target, std::vector<double> window, double data_range,
                    double k1, double k2, bool valid) {
  Problem p = make_problem(input, target, window, data_range, k1, k2, valid);
  Tensor map = in_huge_pages(torch::stable::new_empty(input, {p.n, p.c, p.out_h, p.out_w}));
  p.map = image_of(map);
  run(p);
  return map;
}

// Gradients of sum(grad_map * map). grad_map: (N, C, OH, OW), any strides (an expanded per-image
// gradient included), in the accumulation type.
std::tuple<Tensor, Tensor> loss_backward_cpu(Tensor grad_map, Tensor input, Tensor target,
                                             std::vector<double> window, double data_range,
                                             double k1, double k2, bool valid, bool grad_input,
                                             bool grad_target) {
  Problem p = make_problem(input, target, window, data_range, k1, k2, valid);
  STD_TORCH_CHECK(grad_map.dim() == 4 && grad_map.size(0) == p.n && grad_map.size(1) == p.c &&
                      grad_map.size(2) == p.out_h && grad_map.size(3) == p.out_w,
                  "ssim_fused: grad_map must have the shape of the map");
  STD_TORCH_CHECK(grad_map.scalar_type() == accumulate_type(input) && grad_map.is_cpu(),
                  "ssim_fused: grad_map must be a CPU tensor of the accumulation type");
  p.weight = image_of(grad_map);
  Tensor to_input = gradient_for(input, grad_input, p.grad_input);
  Tensor to_target = gradient_for(target, grad_target, p.grad_target);
  if (p.wants_grad()) run(p);
  return {to_input, to_target};
}

}  // namespace
}  // namespace ssim_fused

STABLE_TORCH_LIBRARY(ssim_fused, m) {
  m.def(
      "loss(Tensor input, Tensor target, float[] window, float data_range, float k1, float k2, "
      "bool valid, str reduction, bool grad_input, bool grad_target) -> (Tensor, Tensor, Tensor)");
  m.def(
      "loss_map(Tensor input, Tensor target, float[] window, float data_range, float k1, float k2, "
      "bool valid) -> Tensor");
  m.def(
      "loss_backward(Tensor grad_map, Tensor input, Tensor target, float[] window, float "
      "data_range, "
      "float k1, float k2, bool valid, bool grad_input, bool grad_target) -> (Tensor, Tensor)");
  m.def("cpu_isa() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(ssim_fused, CPU, m) {
  m.impl("loss", TORCH_BOX(&ssim_fused::loss_cpu));
  m.impl("loss_map", TORCH_BOX(&ssim_fused::loss_map_cpu));
  m.impl("loss_backward", TORCH_BOX(&ssim_fused::loss_backward_cpu));
}

STABLE_TORCH_LIBRARY_IMPL(ssim_fused, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&ssim_fused::cpu_isa));
}
