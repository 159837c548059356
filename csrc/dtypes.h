// Half-precision storage and its conversion to float, for the CPU and CUDA kernels alike. Includes
// nothing, so that NVRTC compiles it too.
#pragma once

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define SSIM_INLINE __host__ __device__ __forceinline__
#else
#if defined(__SSE__)
#include <immintrin.h>
#endif
#define SSIM_INLINE inline __attribute__((always_inline))
#endif

// Each build of the CPU kernel has its own, compiled for its instructions. NVRTC's kernels carry
// the types in their names, which must be the same in every run.
#if !defined(__CUDACC_RTC__)
namespace {
#endif

struct float16 {
  unsigned short bits;
};
struct bfloat16 {
  unsigned short bits;
};

using uint8 = unsigned char;
using uint16 = unsigned short;

// what a storage type is computed in
template <typename T>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};

// what a map is stored in: whole numbers cannot hold one
template <typename T>
struct MapOf {
  using type = T;
};
template <>
struct MapOf<uint8> {
  using type = float;
};
template <>
struct MapOf<uint16> {
  using type = float;
};

SSIM_INLINE unsigned bits_of(float x) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(x);
#else
  unsigned bits;
  __builtin_memcpy(&bits, &x, sizeof(bits));
  return bits;
#endif
}

SSIM_INLINE float float_of(unsigned bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  float x;
  __builtin_memcpy(&x, &bits, sizeof(x));
  return x;
#endif
}

// ---- to float ----

SSIM_INLINE float to_arithmetic(float x) { return x; }
SSIM_INLINE double to_arithmetic(double x) { return x; }
SSIM_INLINE float to_arithmetic(uint8 x) { return static_cast<float>(x); }
SSIM_INLINE float to_arithmetic(uint16 x) { return static_cast<float>(x); }

SSIM_INLINE float to_arithmetic(bfloat16 x) {
  return float_of(static_cast<unsigned>(x.bits) << 16);
}

SSIM_INLINE float to_arithmetic(float16 x) {
#if defined(__CUDA_ARCH__)
  float out;
  asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(x.bits));
  return out;
#elif defined(__F16C__)
  return _cvtsh_ss(x.bits);
#else
  // exponent and mantissa shifted into place, then rescaled: right for subnormals too
  const unsigned sign = (x.bits & 0x8000u) << 16;
  const unsigned magnitude = (x.bits & 0x7fffu) << 13;
  const bool special = magnitude >= (0x7c00u << 13);  // infinity or NaN
  const float out = special ? float_of(magnitude | (0xffu << 23)) : float_of(magnitude) * 0x1p112f;
  return float_of(bits_of(out) | sign);
#endif
}

// ---- from float, to the nearest, ties to even ----

SSIM_INLINE void from_arithmetic(float x, float& out) { out = x; }
SSIM_INLINE void from_arithmetic(double x, double& out) { out = x; }

SSIM_INLINE void from_arithmetic(float x, bfloat16& out) {
  const unsigned bits = bits_of(x);
  const unsigned rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  out.bits = static_cast<unsigned short>(x != x ? 0x7fc0u : rounded);  // NaN keeps a mantissa bit
}

SSIM_INLINE void from_arithmetic(float x, float16& out) {
#if defined(__CUDA_ARCH__)
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(x));
#elif defined(__F16C__)
  out.bits = _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  const unsigned sign = (bits_of(x) >> 16) & 0x8000u;
  const unsigned magnitude = bits_of(x) & 0x7fffffffu;
  unsigned half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u;  // NaN
  } else if (magnitude >= 0x477ff000u) {
    half = 0x7c00u;  // rounds to infinity
  } else if (magnitude < 0x38800000u) {
    // subnormal: adding 0.5 puts the rounded mantissa into the low bits
    half = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  out.bits = static_cast<unsigned short>(sign | half);
#endif
}

#if !defined(__CUDACC_RTC__)
}  // namespace
#endif
