// The operators of ssim_fused: schemas, and their CPU implementation.
//
// Built on LibTorch's stable ABI, so that one file serves every torch from 2.10 on. Fake (meta)
// kernels are in ssim_fused/_fakes.py, the operators' gradients in ssim_fused/_gradients.py.
#include "ssim_cpu.h"
#include "ssim_operators.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace ssim_fused {
namespace {

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
    case ScalarType::Byte:
      return Dtype::uint8;
    case ScalarType::UInt16:
      return Dtype::uint16;
    default:
      STD_TORCH_CHECK(false,
                      "ssim_fused: images must be float16, bfloat16, float32, float64, uint8 or "
                      "uint16");
  }
}

// [N, C, H, W] or [N, C, D, H, W]
Image image_of(const Tensor& t) {
  const int64_t last = t.dim() - 1;
  return {t.data_ptr(),       t.stride(0),   t.stride(1), last == 4 ? t.stride(2) : 0,
          t.stride(last - 1), t.stride(last)};
}

Shape map_shape(const Problem& p, bool is_volume) {
  if (is_volume) return {p.n, p.c, p.out_d, p.out_h, p.out_w};
  return {p.n, p.c, p.out_h, p.out_w};
}

// checks everything that could lead out of bounds
Problem make_problem(const Tensor& input, const Tensor& target, const Settings& s) {
  static const double kOne = 1;
  check_images(input, target, s);
  STD_TORCH_CHECK(input.is_cpu() && target.is_cpu(),
                  "ssim_fused: input and target must both be on the CPU");

  Problem p{};
  const int64_t axes = input.dim() - 2;
  p.dtype = dtype_of(input);
  p.kind = kind_of(s.kind);
  p.input = image_of(input);
  p.target = image_of(target);
  p.n = input.size(0);
  p.c = input.size(1);
  p.d = axes == 3 ? input.size(2) : 1;
  p.h = input.size(axes);
  p.w = input.size(axes + 1);
  const auto windows = s.windows(axes);
  const auto window = [&](int64_t axis) {
    const auto taps = static_cast<int64_t>(windows[axis].size());
    return Window{windows[axis].data(), taps, s.valid ? 0 : (taps - 1) / 2};
  };
  p.z = axes == 3 ? window(0) : Window{&kOne, 1, 0};
  p.y = window(axes - 2);
  p.x = window(axes - 1);
  p.out_d = p.d + 2 * p.z.pad - p.z.halo();
  p.out_h = p.h + 2 * p.y.pad - p.y.halo();
  p.out_w = p.w + 2 * p.x.pad - p.x.halo();
  STD_TORCH_CHECK(p.out_d > 0 && p.out_h > 0 && p.out_w > 0,
                  "ssim_fused: the window is larger than the images");
  p.c1 = s.k1 * s.k1;
  p.c2 = s.k2 * s.k2;
  p.inverse_range = 1.0 / s.data_range;
  p.grad_scale = 1.0;
  return p;
}

// a tensor in the accumulation type, whose shape the kernel relies on
Image checked(const Tensor& t, const char* name, const Shape& shape, const Tensor& like) {
  STD_TORCH_CHECK(shape_of(t) == shape, "ssim_fused: ", name, " has the wrong shape");
  STD_TORCH_CHECK(t.scalar_type() == accumulate_type(like) && t.is_cpu(), "ssim_fused: ", name,
                  " must be a CPU tensor of the accumulation type");
  return image_of(t);
}

// the types that the kernel has for a problem: see run_typed in ssim_cpu_kernel.cpp
void check_type(const Problem& p) {
  const bool fast = p.has_fast_windows() && !p.is_general();
  STD_TORCH_CHECK(fast || p.dtype == Dtype::float32 || p.dtype == Dtype::float64,
                  "ssim_fused: volumes, masked images and windows other than 11 x 11 must be "
                  "float32 or float64");
}

void set_mask(Problem& p, const Tensor& input, const Optional& mask, const Optional& coverage) {
  STD_TORCH_CHECK(mask.has_value() == coverage.has_value(),
                  "ssim_fused: a mask comes with its coverage");
  if (!mask) return;
  p.mask = checked(*mask, "mask", shape_of(input), input);
  p.coverage = checked(*coverage, "coverage", map_shape(p, input.dim() == 5), input);
}

// ---- the cut into items ----

// cuts waste least on multiples of the largest vector's width
constexpr int64_t kBlock = 16;
// what an item keeps between its rows stays in the L2 cache
constexpr int64_t kMaxTileWidth = 1024;
constexpr int64_t kMaxBandHeight = 1024;
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
  const int64_t across = p.n * p.out_d * (p.c / p.together) * tiles.parts;
  const int64_t for_threads = std::min((kItems + across - 1) / across, h / kMinBandHeight);
  const int64_t for_cache = (h + kMaxBandHeight - 1) / kMaxBandHeight;
  const int64_t halo = p.wants_grad() ? p.y.halo() % kBlock : 0;
  const Cut bands = cut(h, std::max(for_cache, for_threads), halo);
  p.tiles = tiles.parts;
  p.tile_w = tiles.size;
  p.bands = bands.parts;
  p.band_h = bands.size;
  if (p.items() / p.together < kItems) p.together = 1;  // threads come first
}

int64_t map_pixels(const Problem& p) { return p.out_d * p.out_h * p.out_w; }

// ---- running it ----

constexpr int64_t kPixelsPerThread = 1 << 14;  // less than this is not worth waking a thread for

using Run = void (*)(const Problem&, int64_t begin, int64_t end, void* scratch);

void run_items(const Problem& p, Run items, int64_t count) {
  const int64_t grain = 1 + kPixelsPerThread / (p.together * p.band_h * p.tile_w * p.z.taps);
  const int64_t scratch_bytes = kernel().scratch_bytes(p);
  torch::stable::parallel_for(0, count / p.together, grain, [&](int64_t begin, int64_t end) {
    struct Free {
      void operator()(void* bytes) const { ::operator delete(bytes, std::align_val_t{64}); }
    };
    std::unique_ptr<void, Free> scratch(::operator new(scratch_bytes, std::align_val_t{64}));
    items(p, begin * p.together, end * p.together, scratch.get());
  });
}

void move_image(Image& image, int64_t n, int64_t bytes) {
  if (image.data != nullptr)
    image.data = static_cast<char*>(image.data) + n * image.stride_n * bytes;
}

// A volume's gradient, image by image, so that what lies between its two passes stays small.
void run_volumes(const Problem& whole) {
  const int64_t bytes = whole.dtype == Dtype::float64 ? 8 : 4;
  const int64_t adjoint_bytes = whole.c * whole.out_d * kMaps * whole.h * whole.w * bytes;
  std::unique_ptr<char[]> adjoint(new char[adjoint_bytes]);
  for (int64_t n = 0; n < whole.n; ++n) {
    Problem p = whole;
    p.n = 1;
    p.adjoint = adjoint.get();
    if (p.sums != nullptr) p.sums += n * p.items();
    for (Image* image :
         {&p.input, &p.target, &p.weight, &p.grad_input, &p.grad_target, &p.mask, &p.coverage}) {
      move_image(*image, n, bytes);
    }
    run_items(p, kernel().run, p.items());
    run_items(p, kernel().run_along_z, p.items() / p.out_d * p.d);
  }
}

// once it is cut into items
void run(const Problem& p) {
  if (p.wants_grad() && (p.d > 1 || p.z.taps > 1)) return run_volumes(p);
  run_items(p, kernel().run, p.items());
}

// runs p for its sums; those of each plane, [N, C], added up in a fixed order
std::vector<Sums> run_sums(Problem& p) {
  cut_items(p);
  std::vector<Sums> parts(p.items());
  p.sums = parts.data();
  run(p);
  const int64_t per_image = static_cast<int64_t>(parts.size()) / p.n;
  std::vector<Sums> sums(p.n * p.c);
  for (int64_t i = 0; i < static_cast<int64_t>(parts.size()); ++i) {
    Sums& sum = sums[i / per_image * p.c + i % p.c];
    sum.map += parts[i].map;
    sum.squares += parts[i].squares;
    sum.absolute += parts[i].absolute;
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

int32_t code_of(ScalarType type) {
  switch (type) {
    case ScalarType::Double:
      return aoti_torch_dtype_float64();
    case ScalarType::Half:
      return aoti_torch_dtype_float16();
    case ScalarType::BFloat16:
      return aoti_torch_dtype_bfloat16();
    default:
      return aoti_torch_dtype_float32();
  }
}

// contiguous, of a floating-point type; at a fraction of the time that torch::stable::new_empty
// takes to find its operator, which of a small picture's loss would be a third
Tensor make_tensor(const Shape& shape, ScalarType type) {
  Shape strides(shape.size(), 1);
  for (size_t i = shape.size(); i > 1; --i) strides[i - 2] = strides[i - 1] * shape[i - 1];
  AtenTensorHandle made = nullptr;
  const auto error =
      aoti_torch_empty_strided(static_cast<int64_t>(shape.size()), shape.data(), strides.data(),
                               code_of(type), aoti_torch_device_type_cpu(), 0, &made);
  STD_TORCH_CHECK(error == 0, "ssim_fused: no memory for a result");
  return in_huge_pages(Tensor(made));
}

// a gradient, which has its image's strides; empty where it is not wanted
Tensor make_gradient(const Tensor& image, bool wanted) {
  if (!wanted) return make_tensor({0}, image.scalar_type());
  if (image.is_contiguous()) return make_tensor(shape_of(image), image.scalar_type());
  return in_huge_pages(torch::stable::empty_like(image));
}

struct Gradients {
  Tensor input, target;
};

// Makes room for the gradients that are wanted. The loss is symmetric in its images, so the
// gradient to the target alone is the one to the input of the call the other way round.
Gradients make_gradients(Problem& p, const Tensor& input, const Tensor& target, bool grad_input,
                         bool grad_target) {
  const Gradients made{make_gradient(input, grad_input), make_gradient(target, grad_target)};
  if (grad_input) p.grad_input = image_of(made.input);
  if (grad_input && grad_target) p.grad_target = image_of(made.target);
  if (!grad_input && grad_target) {
    p.grad_input = image_of(made.target);
    std::swap(p.input, p.target);
  }
  return made;
}

void write(const Tensor& out, int64_t i, double value) {
  if (out.scalar_type() == ScalarType::Double) {
    static_cast<double*>(out.data_ptr())[i] = value;
  } else {
    static_cast<float*>(out.data_ptr())[i] = static_cast<float>(value);
  }
}

// ---- operators ----

// The images of a loss, its masks and the shares of its windows.
Problem make_loss(const Tensor& input, const Tensor& target, const Optional& window_weight,
                  const Optional& mask, const Optional& coverage, const Settings& settings,
                  const Reduction& reduction) {
  Problem p = make_problem(input, target, settings);
  set_mask(p, input, mask, coverage);
  check_type(p);
  if (window_weight) {
    const Shape shape = map_shape(p, input.dim() == 5);
    p.weight = checked(*window_weight, "window_weight", shape, input);
  }
  p.wants_differences = reduction.has_terms;
  STD_TORCH_CHECK(!p.wants_differences || !p.is_general(),
                  "ssim_fused: other terms are for images without a mask");
  return p;
}

// how many windows a mean is of
double windows_of(const Problem& p) { return static_cast<double>(map_pixels(p) * p.n * p.c); }

// Runs p. The value in the accumulation type: (), [4] with terms, [N, C] for each plane.
Tensor run_reduced(Problem& p, const Tensor& input, const Reduction& reduction) {
  const std::vector<Sums> sums = run_sums(p);
  Tensor value = make_tensor(reduction.shape(input), accumulate_type(input));
  if (reduction.is_plane) {
    const double windows = static_cast<double>(map_pixels(p));
    for (size_t i = 0; i < sums.size(); ++i) write(value, i, sums[i].map / windows);
    return value;
  }
  Sums total{};
  for (const Sums& sum : sums) {
    total.map += sum.map;
    total.squares += sum.squares;
    total.absolute += sum.absolute;
  }
  const double map = reduction.is_mean ? total.map / windows_of(p) : total.map;
  if (!reduction.has_terms) {
    write(value, 0, map);
    return value;
  }
  const auto [of_map, of_squares, of_absolute] = reduction.weights;
  const double pixels = static_cast<double>(input.numel());
  // one that is not asked for may be anything, infinity included
  const double mse = of_squares != 0 ? total.squares / pixels : 0;
  const double l1 = of_absolute != 0 ? total.absolute / pixels : 0;
  write(value, 0, of_map * map + of_squares * mse + of_absolute * l1);
  write(value, 1, map);
  write(value, 2, mse);
  write(value, 3, l1);
  return value;
}

// The reduced loss. window_weight: like the map, each window's share; or none.
Tensor loss_cpu(Tensor input, Tensor target, Optional window_weight, Optional mask,
                Optional coverage, std::vector<double> window, std::vector<int64_t> taps,
                double data_range, double k1, double k2, bool valid, int64_t kind,
                int64_t reduction, std::vector<double> term_weights) {
  const Settings settings{std::move(window), std::move(taps), data_range, k1, k2, valid, kind};
  const Reduction reduced(reduced_to(reduction), term_weights);
  Problem p = make_loss(input, target, window_weight, mask, coverage, settings, reduced);
  return run_reduced(p, input, reduced);
}

// The same for mean and sum, with its gradients where they are asked for; those of float16 images as
// Reduction::stored_for() says.
std::tuple<Tensor, Tensor, Tensor> loss_and_gradients_cpu(
    Tensor input, Tensor target, Optional window_weight, Optional mask, Optional coverage,
    std::vector<double> window, std::vector<int64_t> taps, double data_range, double k1, double k2,
    bool valid, int64_t kind, int64_t reduction, std::vector<double> term_weights, bool grad_input,
    bool grad_target) {
  const Settings settings{std::move(window), std::move(taps), data_range, k1, k2, valid, kind};
  const Reduction reduced(reduced_to(reduction), term_weights);
  STD_TORCH_CHECK(!reduced.is_plane,
                  "ssim_fused: gradients of reduction 'plane' come from loss_backward");
  check_has_gradient(input);
  Problem p = make_loss(input, target, window_weight, mask, coverage, settings, reduced);
  const auto [of_map, of_squares, of_absolute] = reduced.weights;
  const double count = reduced.is_mean ? windows_of(p) : 1.0;
  const double pixels = static_cast<double>(input.numel());
  const double stored = reduced.stored_for(input, count);
  p.grad_scale = stored * of_map / count;
  p.grad_square = stored * 2 * of_squares / pixels;
  p.grad_absolute = stored * of_absolute / pixels;
  const auto [to_input, to_target] = make_gradients(p, input, target, grad_input, grad_target);
  return {run_reduced(p, input, reduced), to_input, to_target};
}

// the map, (N, C, OH, OW) or (N, C, OD, OH, OW), contiguous, in the images' dtype; float32 for
// whole numbers
Tensor loss_map_cpu(Tensor input, Tensor target, Optional mask, Optional coverage,
                    std::vector<double> window, std::vector<int64_t> taps, double data_range,
                    double k1, double k2, bool valid, int64_t kind) {
  const Settings settings{std::move(window), std::move(taps), data_range, k1, k2, valid, kind};
  Problem p = make_problem(input, target, settings);
  set_mask(p, input, mask, coverage);
  check_type(p);
  const ScalarType type = is_whole(input) ? ScalarType::Float : input.scalar_type();
  Tensor map = make_tensor(map_shape(p, input.dim() == 5), type);
  p.map = image_of(map);
  cut_items(p);
  run(p);
  return map;
}

// Gradients of sum(grad_map * map). grad_map: like the map, any strides (an expanded gradient of
// planes included), in the accumulation type.
std::tuple<Tensor, Tensor> loss_backward_cpu(Tensor grad_map, Tensor input, Tensor target,
                                             Optional mask, Optional coverage,
                                             std::vector<double> window, std::vector<int64_t> taps,
                                             double data_range, double k1, double k2, bool valid,
                                             int64_t kind, bool grad_input, bool grad_target) {
  const Settings settings{std::move(window), std::move(taps), data_range, k1, k2, valid, kind};
  check_has_gradient(input);
  Problem p = make_problem(input, target, settings);
  set_mask(p, input, mask, coverage);
  check_type(p);
  p.weight = checked(grad_map, "grad_map", map_shape(p, input.dim() == 5), input);
  const auto [to_input, to_target] = make_gradients(p, input, target, grad_input, grad_target);
  if (p.wants_grad()) {
    cut_items(p);
    run(p);
  }
  return {to_input, to_target};
}

// One scale of MS-SSIM in one pass: the mean of each plane, [N, C], its gradients where they are
// asked for, and both images at half their size, means of 2 x 2 pixels, in the accumulation type.
// pool_offset: see half_shape.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> loss_and_pool_cpu(
    Tensor input, Tensor target, std::vector<int64_t> pool_offset, std::vector<double> window,
    std::vector<int64_t> taps, double data_range, double k1, double k2, bool valid, int64_t kind,
    bool grad_input, bool grad_target) {
  const Settings settings{std::move(window), std::move(taps), data_range, k1, k2, valid, kind};
  Problem p = make_problem(input, target, settings);
  check_type(p);
  STD_TORCH_CHECK(!p.is_general(), "ssim_fused: only images are pooled");
  const Shape half = half_shape(input, pool_offset);
  p.pool_y = pool_offset[0];
  p.pool_x = pool_offset[1];
  p.pooled_h = half[2];
  p.pooled_w = half[3];
  const ScalarType type = accumulate_type(input);
  Tensor pooled_input = make_tensor(half, type), pooled_target = make_tensor(half, type);
  p.grad_scale = 1 / static_cast<double>(map_pixels(p));
  if (grad_input || grad_target) check_has_gradient(input);
  const auto [to_input, to_target] = make_gradients(p, input, target, grad_input, grad_target);
  // images and pictures go together, also where the gradient's are swapped
  const bool swapped = p.input.data != input.data_ptr();
  p.pooled_input = image_of(swapped ? pooled_target : pooled_input);
  p.pooled_target = image_of(swapped ? pooled_input : pooled_target);
  Tensor value = run_reduced(p, input, Reduction(ReducedTo::plane, {}));
  return {value, pooled_input, pooled_target, to_input, to_target};
}

// factor of each plane * grad + what the means of 2 x 2 pixels carry back to row y of them; grad
// and out may be one row
template <typename T>
void unpool_row(const Image& grad, const Image& pooled, const Image& out, T factor, int64_t w,
                int64_t pooled_w, int64_t offset) {
  const auto* from = static_cast<const T*>(grad.data);
  const auto* mean = static_cast<const T*>(pooled.data);
  auto* to = static_cast<T*>(out.data);
  int64_t x = 0;
  const auto scaled = [&](T carried) {
    to[x * out.stride_w] = factor * from[x * grad.stride_w] + carried;
    ++x;
  };
  if (mean != nullptr) {
    if (offset == 1) scaled(T(0.25) * mean[0]);
    if (grad.stride_w == 1 && out.stride_w == 1 && pooled.stride_w == 1) {
      for (int64_t j = offset; j < pooled_w; ++j, x += 2) {
        const T first = factor * from[x], second = factor * from[x + 1];
        to[x] = first + T(0.25) * mean[j];
        to[x + 1] = second + T(0.25) * mean[j];
      }
    }
    for (int64_t j = (x + offset) / 2; j < pooled_w; ++j) {
      scaled(T(0.25) * mean[j * pooled.stride_w]);
      scaled(T(0.25) * mean[j * pooled.stride_w]);
    }
  }
  while (x < w) scaled(T(0));
}

Image row_of(const Image& image, int64_t n, int64_t c, int64_t y, int64_t bytes) {
  Image row = image;
  row.data = static_cast<char*>(image.data) +
             (n * image.stride_n + c * image.stride_c + y * image.stride_h) * bytes;
  return row;
}

// The way back through loss_and_pool: its gradient of each plane's mean times that plane's factor,
// and what grad_pooled carries back to the pixels that a picture of half the size is made of. Into
// out, which may be grad itself.
void unpool(const Tensor& grad, const Tensor& factor, const Optional& grad_pooled,
            const std::vector<int64_t>& pool_offset, const Tensor& out) {
  const Shape half = half_shape(grad, pool_offset);
  const int64_t n = grad.size(0), c = grad.size(1), h = grad.size(2), w = grad.size(3);
  STD_TORCH_CHECK(shape_of(factor) == Shape({n, c}) && factor.is_cpu() &&
                      factor.scalar_type() == grad.scalar_type(),
                  "ssim_fused: factor must be (N, C), like grad");
  const Image of_pooled = grad_pooled ? checked(*grad_pooled, "grad_pooled", half, grad) : Image{};
  const Image from = image_of(grad), to = image_of(out);
  const int64_t bytes = grad.element_size();
  const auto rows = [&]<typename T>(int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t y = row % h, channel = row / h % c, image = row / h / c;
      const int64_t i = (y + pool_offset[0]) / 2;
      const bool carries = grad_pooled && i < half[2];
      const auto* factors = static_cast<const T*>(factor.data_ptr());
      unpool_row<T>(row_of(from, image, channel, y, bytes),
                    carries ? row_of(of_pooled, image, channel, i, bytes) : Image{},
                    row_of(to, image, channel, y, bytes),
                    factors[image * factor.stride(0) + channel * factor.stride(1)], w, half[3],
                    pool_offset[1]);
    }
  };
  const bool is_double = grad.scalar_type() == ScalarType::Double;
  torch::stable::parallel_for(0, n * c * h, 1 + kPixelsPerThread / w, [&](int64_t a, int64_t b) {
    is_double ? rows.template operator()<double>(a, b) : rows.template operator()<float>(a, b);
  });
}

void check_grad(const Tensor& grad) {
  STD_TORCH_CHECK(grad.dim() == 4 && grad.is_cpu() && grad.scalar_type() == accumulate_type(grad),
                  "ssim_fused: grad must be (N, C, H, W) on the CPU, in the accumulation type");
  STD_TORCH_CHECK(grad.numel() > 0, "ssim_fused: grad has no pixels");
}

Tensor unpool_cpu(Tensor grad, Tensor factor, Optional grad_pooled,
                  std::vector<int64_t> pool_offset) {
  check_grad(grad);
  Tensor made = make_gradient(grad, true);
  unpool(grad, factor, grad_pooled, pool_offset, made);
  return made;
}

// the same in grad's own memory, for one that nobody asks for again
void unpool_in_place_cpu(Tensor grad, Tensor factor, Optional grad_pooled,
                         std::vector<int64_t> pool_offset) {
  check_grad(grad);
  STD_TORCH_CHECK(has_own_pixels(grad), "ssim_fused: pixels of grad must not share memory");
  unpool(grad, factor, grad_pooled, pool_offset, grad);
}

}  // namespace
}  // namespace ssim_fused

STABLE_TORCH_LIBRARY(ssim_fused, m) {
  m.def(
      "loss(Tensor input, Tensor target, Tensor? window_weight, Tensor? mask, Tensor? coverage, "
      "float[] window, int[] taps, float data_range, float k1, float k2, bool valid, int kind, "
      "int reduction, float[] term_weights) -> Tensor");
  m.def(
      "loss_and_gradients(Tensor input, Tensor target, Tensor? window_weight, Tensor? mask, "
      "Tensor? coverage, float[] window, int[] taps, float data_range, float k1, float k2, "
      "bool valid, int kind, int reduction, float[] term_weights, bool grad_input, "
      "bool grad_target) -> (Tensor, Tensor, Tensor)");
  m.def(
      "loss_map(Tensor input, Tensor target, Tensor? mask, Tensor? coverage, float[] window, "
      "int[] taps, float data_range, float k1, float k2, bool valid, int kind) -> Tensor");
  m.def(
      "loss_backward(Tensor grad_map, Tensor input, Tensor target, Tensor? mask, "
      "Tensor? coverage, float[] window, int[] taps, float data_range, float k1, float k2, "
      "bool valid, int kind, bool grad_input, bool grad_target) -> (Tensor, Tensor)");
  m.def(
      "loss_and_pool(Tensor input, Tensor target, int[] pool_offset, float[] window, int[] taps, "
      "float data_range, float k1, float k2, bool valid, int kind, bool grad_input, "
      "bool grad_target) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("unpool(Tensor grad, Tensor factor, Tensor? grad_pooled, int[] pool_offset) -> Tensor");
  m.def("unpool_(Tensor(a!) grad, Tensor factor, Tensor? grad_pooled, int[] pool_offset) -> ()");
  m.def("cpu_isa() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(ssim_fused, CPU, m) {
  m.impl("loss", TORCH_BOX(&ssim_fused::loss_cpu));
  m.impl("loss_and_gradients", TORCH_BOX(&ssim_fused::loss_and_gradients_cpu));
  m.impl("loss_map", TORCH_BOX(&ssim_fused::loss_map_cpu));
  m.impl("loss_backward", TORCH_BOX(&ssim_fused::loss_backward_cpu));
  m.impl("loss_and_pool", TORCH_BOX(&ssim_fused::loss_and_pool_cpu));
  m.impl("unpool", TORCH_BOX(&ssim_fused::unpool_cpu));
  m.impl("unpool_", TORCH_BOX(&ssim_fused::unpool_in_place_cpu));
}

STABLE_TORCH_LIBRARY_IMPL(ssim_fused, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&ssim_fused::cpu_isa));
}
