// Vectors of lanes: the few operations that the CPU kernel needs beyond + - * /, at any width.
// Everything is always inlined: this header is compiled under several instruction sets, and no
// function of it may be shared between them by the linker.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__F16C__)
#include <immintrin.h>
#endif

#define SSIM_INLINE inline __attribute__((always_inline))

namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

#if defined(__F16C__)
constexpr int kToNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
#endif

// an accumulation type's vector, its mask, and its width
template <typename A>
struct Simd;

template <>
struct Simd<float> {
  typedef float V __attribute__((vector_size(kVectorBytes)));
  typedef int32_t Mask __attribute__((vector_size(kVectorBytes)));
  static constexpr int width = kVectorBytes / sizeof(float);
};

template <>
struct Simd<double> {
  typedef double V __attribute__((vector_size(kVectorBytes)));
  typedef int64_t Mask __attribute__((vector_size(kVectorBytes)));
  static constexpr int width = kVectorBytes / sizeof(double);
};

template <typename A>
using Vec = typename Simd<A>::V;

struct float16 {
  uint16_t bits;
};
struct bfloat16 {
  uint16_t bits;
};

// what a storage type is computed in
template <typename T>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};

template <typename A>
SSIM_INLINE Vec<A> splat(A x) {
  return Vec<A>{} + x;
}

// ---- storage type <-> accumulation type, one element ----

template <typename A>
SSIM_INLINE A to_arithmetic(A x) {
  return x;
}

SSIM_INLINE float to_arithmetic(bfloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float out;
  std::memcpy(&out, &bits, sizeof(out));
  return out;
}

SSIM_INLINE float to_arithmetic(float16 x) {
#if defined(__F16C__)
  return _cvtsh_ss(x.bits);
#else
  // shift the exponent and mantissa into place, then rescale: right for subnormals too
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  uint32_t bits = static_cast<uint32_t>(x.bits & 0x7fffu) << 13;
  float out;
  if (bits >= (0x7c00u << 13)) {
    bits |= 0xffu << 23;  // infinity and NaN
    std::memcpy(&out, &bits, sizeof(out));
  } else {
    std::memcpy(&out, &bits, sizeof(out));
    out *= 0x1p112f;
  }
  std::memcpy(&bits, &out, sizeof(bits));
  bits |= sign;
  std::memcpy(&out, &bits, sizeof(out));
  return out;
#endif
}

SSIM_INLINE void from_arithmetic(float x, float& out) { out = x; }
SSIM_INLINE void from_arithmetic(double x, double& out) { out = x; }

SSIM_INLINE void from_arithmetic(float x, bfloat16& out) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  // round to nearest even; NaN keeps a mantissa bit
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  out.bits = static_cast<uint16_t>(x != x ? 0x7fc0u : rounded);
}

SSIM_INLINE void from_arithmetic(float x, float16& out) {
#if defined(__F16C__)
  out.bits = _cvtss_sh(x, kToNearest);
#else
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  const uint32_t sign = (bits >> 16) & 0x8000u;
  bits &= 0x7fffffffu;
  uint32_t half;
  if (bits > 0x7f800000u) {
    half = 0x7e00u;  // NaN
  } else if (bits >= 0x477ff000u) {
    half = 0x7c00u;  // rounds to infinity
  } else if (bits < 0x38800000u) {
    // subnormal: adding 0.5 puts the rounded mantissa into the low bits
    float shifted;
    std::memcpy(&shifted, &bits, sizeof(shifted));
    shifted += 0.5f;
    std::memcpy(&half, &shifted, sizeof(half));
    half -= 0x3f000000u;
  } else {
    half = (bits - 0x38000000u + 0xfffu + ((bits >> 13) & 1u)) >> 13;
  }
  out.bits = static_cast<uint16_t>(sign | half);
#endif
}

// ---- a full vector from and to contiguous storage ----

template <typename A>
SSIM_INLINE Vec<A> load(const A* p) {
  Vec<A> v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

template <typename A>
SSIM_INLINE void store(Vec<A> v, A* p) {
  std::memcpy(p, &v, sizeof(v));
}

SSIM_INLINE Vec<float> load(const bfloat16* p) {
  typedef uint16_t Narrow __attribute__((vector_size(kVectorBytes / 2)));
  typedef uint32_t Wide __attribute__((vector_size(kVectorBytes)));
  Narrow narrow;
  std::memcpy(&narrow, p, sizeof(narrow));
  const Wide wide = __builtin_convertvector(narrow, Wide) << 16;
  return reinterpret_cast<Vec<float>>(wide);
}

SSIM_INLINE void store(Vec<float> v, bfloat16* p) {
  typedef uint16_t Narrow __attribute__((vector_size(kVectorBytes / 2)));
  typedef uint32_t Wide __attribute__((vector_size(kVectorBytes)));
  const Wide bits = reinterpret_cast<Wide>(v);
  const Wide rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const Wide is_nan = reinterpret_cast<Wide>(v != v);
  const Narrow narrow = __builtin_convertvector((rounded & ~is_nan) | (0x7fc0u & is_nan), Narrow);
  std::memcpy(p, &narrow, sizeof(narrow));
}

SSIM_INLINE Vec<float> load(const float16* p) {
#if defined(__AVX512F__)
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return reinterpret_cast<Vec<float>>(_mm512_maskz_cvtph_ps(0xffff, bits));
#elif defined(__F16C__)
  return reinterpret_cast<Vec<float>>(
      _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#else
  Vec<float> v;
  for (int i = 0; i < Simd<float>::width; ++i) v[i] = to_arithmetic(p[i]);
  return v;
#endif
}

SSIM_INLINE void store(Vec<float> v, float16* p) {
#if defined(__AVX512F__)
  const __m256i bits = _mm512_maskz_cvtps_ph(0xffff, reinterpret_cast<__m512>(v), kToNearest);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), bits);
#elif defined(__F16C__)
  const __m128i bits = _mm256_cvtps_ph(reinterpret_cast<__m256>(v), kToNearest);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bits);
#else
  for (int i = 0; i < Simd<float>::width; ++i) from_arithmetic(v[i], p[i]);
#endif
}

// ---- transpose of a width x width block held in registers ----

// swaps the off-diagonal halves of every 2 x 2 arrangement of step x step blocks
template <int step, typename V, int... lane>
SSIM_INLINE void exchange(V& top, V& bottom, std::integer_sequence<int, lane...>) {
  constexpr int width = sizeof...(lane);
  const V upper =
      __builtin_shufflevector(top, bottom, ((lane & step) ? width + lane - step : lane)...);
  bottom = __builtin_shufflevector(top, bottom, ((lane & step) ? width + lane : lane + step)...);
  top = upper;
}

template <typename A, int step = Simd<A>::width / 2>
SSIM_INLINE void transpose(Vec<A> (&block)[Simd<A>::width]) {
  if constexpr (step > 0) {
    constexpr int width = Simd<A>::width;
#pragma GCC unroll 16
    for (int i = 0; i < width; ++i) {
      if ((i & step) == 0) {
        exchange<step>(block[i], block[i + step], std::make_integer_sequence<int, width>{});
      }
    }
    transpose<A, step / 2>(block);
  }
}

}  // namespace
