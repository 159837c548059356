// Vectors of lanes: the few operations that the CPU kernel needs beyond + - * /, at any width.
// Everything is always inlined: this header is compiled under several instruction sets, and no
// function of it may be shared between them by the linker.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#include "dtypes.h"

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

template <typename A>
SSIM_INLINE Vec<A> splat(A x) {
  return Vec<A>{} + x;
}

// 1 / x to about 1 unit in the last place: an estimate, refined by Newton's steps that double its
// digits, in a fifth of a division's time
#if defined(__AVX512F__)
SSIM_INLINE Vec<float> reciprocal_of(Vec<float> x) {
  const Vec<float> y =
      reinterpret_cast<Vec<float>>(_mm512_maskz_rcp14_ps(0xffff, reinterpret_cast<__m512>(x)));
  return y + y * (splat<float>(1) - x * y);
}
#elif defined(__SSE__)
SSIM_INLINE Vec<float> reciprocal_of(Vec<float> x) {
#if defined(__AVX2__)
  Vec<float> y = reinterpret_cast<Vec<float>>(_mm256_rcp_ps(reinterpret_cast<__m256>(x)));
#else
  Vec<float> y = reinterpret_cast<Vec<float>>(_mm_rcp_ps(reinterpret_cast<__m128>(x)));
#endif
  for (int step = 0; step < 2; ++step) y = y + y * (splat<float>(1) - x * y);
  return y;
}
#else
SSIM_INLINE Vec<float> reciprocal_of(Vec<float> x) { return 1 / x; }
#endif
SSIM_INLINE Vec<double> reciprocal_of(Vec<double> x) { return 1 / x; }

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

// ---- lanes [first, last) from contiguous storage, the rest zero and not touched ----

template <typename T>
constexpr bool kHasMaskedLoad = false;

#if defined(__AVX2__)
template <>
constexpr bool kHasMaskedLoad<float> = true;

SSIM_INLINE Vec<float> load_masked(const float* p, int64_t first, int64_t last) {
#if defined(__AVX512F__)
  const unsigned lanes = (0xffffu >> (16 - last)) & (0xffffu << first);
  return reinterpret_cast<Vec<float>>(_mm512_maskz_loadu_ps(static_cast<__mmask16>(lanes), p));
#else
  Simd<float>::Mask lanes{};
  for (int i = 0; i < 8; ++i) lanes[i] = i >= first && i < last ? -1 : 0;
  return reinterpret_cast<Vec<float>>(_mm256_maskload_ps(p, reinterpret_cast<__m256i>(lanes)));
#endif
}
#endif

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
