// Vectors of lanes: the few operations that the CPU kernel needs beyond + - * /, at any width.
// Everything is always inlined: this header is compiled under several instruction sets, and no
// function of it may be shared between them by the linker.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
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
using Lanes = Simd<float>::Mask;  // a whole number for each

template <typename A>
SSIM_INLINE Vec<A> splat(A x) {
  return Vec<A>{} + x;
}

// the elements of a, then b, that have these numbers
template <int... number, typename V>
SSIM_INLINE V pick(V a, V b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, number...);
#else  // which gcc has from version 12 on
  return __builtin_shuffle(a, b, decltype(a < b){number...});
#endif
}

// 1 / x to about 1 unit in the last place. Of 16 numbers, an estimate and one of Newton's steps take
// a fifth of a division's time; of fewer, the estimate needs a second step, and dividing is faster.
#if defined(__AVX512F__)
SSIM_INLINE Vec<float> reciprocal_of(Vec<float> x) {
  const Vec<float> y =
      reinterpret_cast<Vec<float>>(_mm512_maskz_rcp14_ps(0xffff, reinterpret_cast<__m512>(x)));
  return y + y * (splat<float>(1) - x * y);
}
#else
SSIM_INLINE Vec<float> reciprocal_of(Vec<float> x) { return 1 / x; }
#endif
SSIM_INLINE Vec<double> reciprocal_of(Vec<double> x) { return 1 / x; }

// x < 0 ? 0 : x, which is one instruction where the operands' order lets NaN pass through
#if defined(__AVX512F__)
SSIM_INLINE Vec<float> nonnegative_of(Vec<float> x) {
  return reinterpret_cast<Vec<float>>(
      _mm512_maskz_max_ps(0xffff, __m512{}, reinterpret_cast<__m512>(x)));
}
#elif defined(__AVX2__)
SSIM_INLINE Vec<float> nonnegative_of(Vec<float> x) {
  return reinterpret_cast<Vec<float>>(_mm256_max_ps(__m256{}, reinterpret_cast<__m256>(x)));
}
#elif defined(__SSE__)
SSIM_INLINE Vec<float> nonnegative_of(Vec<float> x) {
  return reinterpret_cast<Vec<float>>(_mm_max_ps(__m128{}, reinterpret_cast<__m128>(x)));
}
#else
SSIM_INLINE Vec<float> nonnegative_of(Vec<float> x) { return x < 0 ? Vec<float>{} : x; }
#endif
SSIM_INLINE Vec<double> nonnegative_of(Vec<double> x) { return x < 0 ? Vec<double>{} : x; }

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

// Whole numbers, each with zeros in front. Where there is an instruction for it, the compiler's own
// conversion of a vector takes many: it goes in halves, or number by number.
template <typename T>
SSIM_INLINE Lanes widen(const T* p) {
  typedef T Narrow __attribute__((vector_size(Simd<float>::width * sizeof(T))));
  Narrow narrow;
  std::memcpy(&narrow, p, sizeof(narrow));
  return __builtin_convertvector(narrow, Lanes);
}
#if defined(__AVX512F__)
SSIM_INLINE Lanes widen(const uint8* p) {
  const __m128i narrow = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return reinterpret_cast<Lanes>(_mm512_maskz_cvtepu8_epi32(0xffff, narrow));
}
SSIM_INLINE Lanes widen(const uint16* p) {
  const __m256i narrow = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return reinterpret_cast<Lanes>(_mm512_maskz_cvtepu16_epi32(0xffff, narrow));
}
#elif defined(__AVX2__)
SSIM_INLINE Lanes widen(const uint8* p) {
  const __m128i narrow = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return reinterpret_cast<Lanes>(_mm256_cvtepu8_epi32(narrow));
}
SSIM_INLINE Lanes widen(const uint16* p) {
  const __m128i narrow = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return reinterpret_cast<Lanes>(_mm256_cvtepu16_epi32(narrow));
}
#endif

SSIM_INLINE Vec<float> load(const bfloat16* p) {
  return reinterpret_cast<Vec<float>>(widen(reinterpret_cast<const uint16*>(p)) << 16);
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

SSIM_INLINE Vec<float> load(const uint8* p) {
  return __builtin_convertvector(widen(p), Vec<float>);
}
SSIM_INLINE Vec<float> load(const uint16* p) {
  return __builtin_convertvector(widen(p), Vec<float>);
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

// ---- a full vector from and to storage with a stride: channels-last images ----
//
// A processor's own gather and scatter go lane by lane. Up to a stride of `width` the lanes lie in
// as many whole vectors, of which only elements between the first and the last lane are touched.

template <typename T>
constexpr bool kHasScatter = false;

#if !defined(__AVX2__)
template <typename T>
constexpr bool kHasGather = false;
#else
template <typename T>
constexpr bool kHasGather = std::is_same_v<typename Accumulate<T>::type, float>;

SSIM_INLINE Lanes count_from(int32_t first) {
  Lanes lane{};
  for (int i = 0; i < Simd<float>::width; ++i) lane[i] = i;
  return lane + first;
}

// v[index % width]
SSIM_INLINE Vec<float> permute(Vec<float> v, Lanes index) {
#if defined(__AVX512F__)
  return reinterpret_cast<Vec<float>>(_mm512_maskz_permutexvar_ps(
      0xffff, reinterpret_cast<__m512i>(index), reinterpret_cast<__m512>(v)));
#else
  return reinterpret_cast<Vec<float>>(
      _mm256_permutevar8x32_ps(reinterpret_cast<__m256>(v), reinterpret_cast<__m256i>(index)));
#endif
}

template <typename T>
SSIM_INLINE Vec<float> gather(const T* p, int64_t stride) {
  constexpr int32_t width = Simd<float>::width;
  const Lanes index = count_from(0) * static_cast<int32_t>(stride);
  const int32_t last = static_cast<int32_t>(stride) - 1;
  // the last vector ends with the last lane
  const int32_t start = (width - 1) * last;
  Vec<float> v = permute(load(p + start), index - start);
  for (int32_t i = 0; i < last; ++i) {
    v = index / width == i ? permute(load(p + i * width), index) : v;
  }
  return v;
}
#endif

#if defined(__AVX512F__)
template <>
constexpr bool kHasScatter<float> = true;

SSIM_INLINE void scatter(Vec<float> v, float* p, int64_t stride) {
  constexpr int width = Simd<float>::width;
  for (int32_t i = 0; i < stride; ++i, p += width) {
    const Lanes place = count_from(i * width);
    // place / stride, far enough from whole numbers to be right
    const Vec<float> quotient =
        (__builtin_convertvector(place, Vec<float>) + 0.5f) * (1.0f / static_cast<float>(stride));
    const Lanes index = __builtin_convertvector(quotient, Lanes);
    const __mmask16 ours =
        _mm512_cmpeq_epi32_mask(reinterpret_cast<__m512i>(index * static_cast<int32_t>(stride)),
                                reinterpret_cast<__m512i>(place));
    _mm512_mask_storeu_ps(p, ours, reinterpret_cast<__m512>(permute(v, index)));
  }
}
#endif

// ---- neighbours in pairs ----

// the even (or odd) elements of a and b
template <bool kOdd, typename V, int... i>
SSIM_INLINE V every_second(V a, V b, std::integer_sequence<int, i...>) {
  return pick<(2 * i + kOdd)...>(a, b);
}

// ---- transpose of a width x width block held in registers ----
//
// First within the 16-byte lanes of x86's shuffles, then of those lanes as a whole.

// the lower (or upper) halves of each 16 bytes of a and b, taken in turns of `unit` elements
template <int unit, bool kUpper, typename V, int... i>
SSIM_INLINE V interleave(V a, V b, std::integer_sequence<int, i...>) {
  constexpr int count = sizeof...(i), lane = 16 * count / sizeof(V);
  return pick<(i / lane * lane + (kUpper ? lane / 2 : 0) + i % lane / (2 * unit) * unit + i % unit +
               (i / unit % 2 ? count : 0))...>(a, b);
}

// every second 16 bytes of a, then of b, from the first or the second on
template <bool kSecond, typename V, int... i>
SSIM_INLINE V every_other(V a, V b, std::integer_sequence<int, i...>) {
  constexpr int lane = 16 * sizeof...(i) / sizeof(V);
  return pick<((2 * (i / lane) + kSecond) * lane + i % lane)...>(a, b);
}

template <int unit, typename V, typename Lanes>
SSIM_INLINE void interleave_rows(V& a, V& b, Lanes lanes) {
  const V lower = interleave<unit, false>(a, b, lanes);
  b = interleave<unit, true>(a, b, lanes);
  a = lower;
}

template <typename V, typename Lanes>
SSIM_INLINE void every_other_row(V& a, V& b, Lanes lanes) {
  const V first = every_other<false>(a, b, lanes);
  b = every_other<true>(a, b, lanes);
  a = first;
}

template <typename A>
SSIM_INLINE void transpose(Vec<A> (&rows)[Simd<A>::width]) {
  constexpr int width = Simd<A>::width, lane = 16 / sizeof(A);
  constexpr auto lanes = std::make_integer_sequence<int, width>{};
#pragma GCC unroll 8
  for (int i = 0; i < width; i += lane) {
    Vec<A>* r = rows + i;
    if constexpr (lane == 2) {
      interleave_rows<1>(r[0], r[1], lanes);
    } else {
      interleave_rows<1>(r[0], r[1], lanes);
      interleave_rows<1>(r[2], r[3], lanes);
      interleave_rows<2>(r[0], r[2], lanes);
      interleave_rows<2>(r[1], r[3], lanes);
      std::swap(r[1], r[2]);
    }
  }
  if constexpr (width / lane >= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < lane; ++i) {
      if constexpr (width / lane == 2) {
        every_other_row(rows[i], rows[i + lane], lanes);
      } else {
        every_other_row(rows[i], rows[i + lane], lanes);
        every_other_row(rows[i + 2 * lane], rows[i + 3 * lane], lanes);
        every_other_row(rows[i], rows[i + 2 * lane], lanes);
        every_other_row(rows[i + lane], rows[i + 3 * lane], lanes);
      }
    }
  }
}

}  // namespace
