// What the operators of both devices make of their arguments. The schemas are in ssim_cpu.cpp.
//
// User errors are explained in Python; what a direct call of torch.ops.ssim_fused.* could break is
// checked again here.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "ssim_math.h"

namespace ssim_fused {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;
using Shape = std::vector<int64_t>;

inline ScalarType accumulate_type(const Tensor& t) {
  return t.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline bool is_whole(const Tensor& t) {
  return t.scalar_type() == ScalarType::Byte || t.scalar_type() == ScalarType::UInt16;
}

inline void check_has_gradient(const Tensor& image) {
  STD_TORCH_CHECK(!is_whole(image), "ssim_fused: whole numbers have no gradient");
}

inline Shape shape_of(const Tensor& t) {
  Shape shape(t.dim());
  for (int64_t i = 0; i < t.dim(); ++i) shape[i] = t.size(i);
  return shape;
}

// ---- settings ----

// Words are numbers here, as ssim_fused/_request.py has them: what torch's headers before 2.14 make
// of a str argument keeps a copy of it at every call (pytorch issue 191340).
inline Kind kind_of(int64_t number) {
  STD_TORCH_CHECK(0 <= number && number <= static_cast<int64_t>(Kind::nonnegative),
                  "ssim_fused: unknown kind of map ", number);
  return static_cast<Kind>(number);
}

// What each operator is told beside the images. window: the taps of each axis's window, one after
// the other; taps: how many there are along each axis, or one number where the axes share a window.
struct Settings {
  std::vector<double> window;
  std::vector<int64_t> taps;
  double data_range, k1, k2;
  bool valid;
  int64_t kind;

  // the window along each of the images' last `axes` axes
  std::vector<std::span<const double>> windows(int64_t axes) const;
};

inline std::vector<std::span<const double>> Settings::windows(int64_t axes) const {
  constexpr int64_t kMostTaps = int64_t{1} << 20;
  const auto differ = [](double a, double b) { return a < b || b < a; };  // NaN does not
  const auto count = static_cast<int64_t>(taps.size());
  STD_TORCH_CHECK(count == 1 || count == axes,
                  "ssim_fused: taps must have one number, or one for each axis");
  std::vector<std::span<const double>> found;
  std::span<const double> rest = window;
  for (int64_t length : taps) {
    STD_TORCH_CHECK(length > 0 && length % 2 == 1 && length < kMostTaps,
                    "ssim_fused: the window must have an odd number of taps");
    STD_TORCH_CHECK(static_cast<size_t>(length) <= rest.size(),
                    "ssim_fused: window and taps differ in length");
    const auto axis = rest.first(length);
    STD_TORCH_CHECK(std::equal(axis.begin(), axis.end(), axis.rbegin(), std::not_fn(differ)),
                    "ssim_fused: the window must be symmetric");
    found.push_back(axis);
    rest = rest.subspan(length);
  }
  STD_TORCH_CHECK(rest.empty(), "ssim_fused: window and taps differ in length");
  found.resize(axes, found.front());
  return found;
}

// input, target: [N, C, H, W] or [N, C, D, H, W]
inline void check_images(const Tensor& input, const Tensor& target, const Settings& s) {
  STD_TORCH_CHECK((input.dim() == 4 || input.dim() == 5) && shape_of(input) == shape_of(target),
                  "ssim_fused: input and target must be (N, C, H, W) or (N, C, D, H, W) and of one "
                  "shape");
  STD_TORCH_CHECK(input.scalar_type() == target.scalar_type(),
                  "ssim_fused: input and target differ in dtype");
  STD_TORCH_CHECK(input.numel() > 0, "ssim_fused: the images are empty");
  STD_TORCH_CHECK(std::isfinite(s.data_range) && s.data_range > 0,
                  "ssim_fused: data_range must be positive and finite");
}

// whether no two pixels are in one place, told by strides that leave room for the axes inside
inline bool has_own_pixels(const Tensor& image) {
  std::vector<std::pair<int64_t, int64_t>> axes;  // stride and length
  for (int64_t axis = 0; axis < image.dim(); ++axis) {
    if (image.size(axis) > 1) axes.emplace_back(image.stride(axis), image.size(axis));
  }
  std::sort(axes.begin(), axes.end());
  int64_t room = 1;
  for (const auto& [stride, length] : axes) {
    if (stride < room) return false;
    room += stride * (length - 1);
  }
  return true;
}

// ---- images at half their size ----

// image: [N, C, H, W]; offset: for y and x, 1 where the first mean of 2 x 2 pixels begins one pixel
// before the image, with zero
inline Shape half_shape(const Tensor& image, const std::vector<int64_t>& offset) {
  STD_TORCH_CHECK(offset.size() == 2 && (offset[0] == 0 || offset[0] == 1) &&
                      (offset[1] == 0 || offset[1] == 1),
                  "ssim_fused: pool_offset must be two numbers, each 0 or 1");
  return {image.size(0), image.size(1), (image.size(2) + offset[0]) / 2,
          (image.size(3) + offset[1]) / 2};
}

// ---- what a loss is reduced to ----

struct TermWeights {
  double map = 1, squares = 0, absolute = 0;
};

enum class ReducedTo { mean, sum, plane };

inline ReducedTo reduced_to(int64_t number) {
  STD_TORCH_CHECK(0 <= number && number <= static_cast<int64_t>(ReducedTo::plane),
                  "ssim_fused: unknown reduction ", number);
  return static_cast<ReducedTo>(number);
}

// reduction:     to the mean, the sum, or the mean of each plane, [N, C]
// term_weights:  of the map's mean, of mean((x - y)^2) and of mean(|x - y|), whose weighted sum and
//                which themselves are the value then, [4]; or none
struct Reduction {
  bool is_mean, is_plane, has_terms;
  TermWeights weights;

  Reduction(ReducedTo to, const std::vector<double>& term_weights)
      : is_mean(to == ReducedTo::mean),
        is_plane(to == ReducedTo::plane),
        has_terms(!term_weights.empty()) {
    if (!has_terms) return;
    STD_TORCH_CHECK(term_weights.size() == 3,
                    "ssim_fused: term_weights must be empty or three numbers");
    STD_TORCH_CHECK(is_mean, "ssim_fused: other terms are for the mean");
    weights = {term_weights[0], term_weights[1], term_weights[2]};
  }

  // Gradients of float16 images are stored for the sum instead of the mean, whose share of one window
  // may be below its smallest number, and for weights of at most 1, as more may be above its largest.
  // By how much they are more (or less) than those that are asked for:
  double stored_for(const Tensor& images, double windows) const {
    if (!is_mean || images.scalar_type() != ScalarType::Half) return 1;
    const double largest =
        std::max({std::fabs(weights.map), std::fabs(weights.squares), std::fabs(weights.absolute)});
    return windows / (largest > 0 ? largest : 1);
  }

  // shape of the value
  Shape shape(const Tensor& images) const {
    if (is_plane) return {images.size(0), images.size(1)};
    return has_terms ? Shape{4} : Shape{};
  }
};

}  // namespace ssim_fused
