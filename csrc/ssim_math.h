// The pointwise mathematics of SSIM: value and derivatives at one window, for every backend.
//
// With u = x + y and v = x - y (in units of the data range), window means m, window variances V:
//
//     a = m_u^2 / 2 + C1     p = m_v^2     A = a + p / 2     (luminance: mu_x^2 + mu_y^2 + C1)
//     b = V_u / 2 + C2       q = V_v       B = b + q / 2     (contrast: var_x + var_y + C2)
//
//     SSIM     = (a - p / 2) (b - q / 2) / (A B)             (Wang et al. 2004, equation 13)
//     1 - SSIM = (a q + p b) / (A B)  =: delta
//
// The subtraction cancels by hand, so delta is a sum of products that are never negative: it cannot
// fall below zero, and it keeps its relative accuracy however close the images are.
//
// T is a scalar (CUDA, tails) or a vector of lanes (CPU): only + - * / < ?: are used.
#pragma once

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define SSIM_HOST_DEVICE __host__ __device__ __forceinline__
#define SSIM_ROLLED _Pragma("unroll 1")
#else
#define SSIM_HOST_DEVICE inline __attribute__((always_inline))
#define SSIM_ROLLED
#endif

namespace ssim_fused {

// window moments of u and v, each filtered after a constant (the pivot) was taken away from it
template <typename T>
struct Moments {
  T mean_u, mean_v;      // G*(u - pivot_u), G*(v - pivot_v)
  T square_u, square_v;  // G*(u - pivot_u)^2, G*(v - pivot_v)^2
};

// Where a pivot is looked for along an axis of a tile: near both ends and in the middle, then after one
// sixteenth of it, two ... fifteen.
constexpr int kPivotTries = 18, kTypicalTries = 3;
template <typename Int>
SSIM_HOST_DEVICE Int pivot_place(Int begin, Int end, int k) {
  const int part = k < kTypicalTries ? 2 + 6 * k : k - kTypicalTries + 1;
  return begin + static_cast<Int>(static_cast<long long>(end - begin) * part / 16);
}

// What is taken away from all pixels of a tile, of each image: flat areas keep the digits of what it is
// near, so it is the median of three pixels, and not a bright spot on dark ground. Where one of them
// is masked or not finite, or the median far out of the data range, as a mark for "nothing here" may
// be, it is the first pixel that is not; and where there is none, the least, which takes fewest digits.
template <typename T>
struct Pivot {
  T input = T(0), target = T(0);  // in the images' units

  // pixels(k, a, b) sets the images' pixels of a place; false where they are masked
  template <typename Pixels>
  SSIM_HOST_DEVICE void choose(Pixels&& pixels, T inverse_range) {
    T a[kTypicalTries], b[kTypicalTries], size = T(1e38);
    bool all = true;
    for (int k = 0; k < kTypicalTries; ++k) all = pixels(k, a[k], b[k]) && all;
    // NaN if one is not finite
    const T zero = T(0) * ((a[0] + a[1] + a[2]) + (b[0] + b[1] + b[2]));
    bool found = all && zero < T(1) && take(median(a), median(b), inverse_range, size);
    SSIM_ROLLED
    for (int k = kTypicalTries; k < kPivotTries && !found; ++k) {
      found = pixels(k, a[0], b[0]) && take(a[0], b[0], inverse_range, size);
    }
  }

 private:
  SSIM_HOST_DEVICE static T median(const T (&x)[kTypicalTries]) {
    const T low = x[0] < x[1] ? x[0] : x[1], high = x[0] < x[1] ? x[1] : x[0];
    return x[2] < low ? low : x[2] < high ? x[2] : high;
  }

  // Takes what is less than `size`, which is that of the larger then; whether there is nothing to look
  // for any more.
  SSIM_HOST_DEVICE bool take(T a, T b, T inverse_range, T& size) {
    const T size_a = a < T(0) ? -a : a, size_b = b < T(0) ? -b : b;
    if (!(size_a < size && size_b < size)) return false;
    input = a;
    target = b;
    size = size_a > size_b ? size_a : size_b;
    return size * inverse_range < T(1.25);  // a network may overshoot a little
  }
};

// derivatives of delta by the four filtered maps; the squares' carry the 2 of d(u^2) = 2 u du
template <typename T>
struct Derivatives {
  T mean_u, mean_v;
  T square_u, square_v;
};

// the terms that value and derivatives share
template <typename T>
struct Terms {
  T m_u, m_v;    // true means, pivots added back
  T a, b, p, q;  // as above
  T A, B, r;     // r = 1 / (A B)
};

// x * x, not fused into a following subtraction: a window of one pixel then has a variance of
// exactly 0, and not the rounding error of its square
#if defined(__CUDA_ARCH__)
SSIM_HOST_DEVICE float square(float x) { return __fmul_rn(x, x); }
SSIM_HOST_DEVICE double square(double x) { return __dmul_rn(x, x); }
#else
template <typename T>
SSIM_HOST_DEVICE T square(T x) {
  T product = x * x;
#if defined(__x86_64__)
  __asm__("" : "+v"(product));
#elif defined(__aarch64__)
  __asm__("" : "+w"(product));
#endif
  return product;
}
#endif

// Two functions of which a CPU's vectors have their own, faster ones, visible where terms() is
// used:
//   nonnegative_of(x)  x, or 0 where rounding has pushed a variance a hair below; of NaN a CPU keeps
//                      NaN and a GPU makes 0 in one instruction: the mean beside it stays NaN
//   reciprocal_of(x)   1 / x of a positive x; on a GPU without the slow path for subnormal numbers
#if defined(__CUDACC__) || defined(__CUDACC_RTC__) || defined(SSIM_CUDA_EMULATOR)
template <typename T>
SSIM_HOST_DEVICE T nonnegative_of(T x) {
  return fmax(x, T{});
}
#if defined(__CUDA_ARCH__)
SSIM_HOST_DEVICE float reciprocal_of(float x) {
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}
#else
SSIM_HOST_DEVICE float reciprocal_of(float x) { return 1 / x; }
#endif
SSIM_HOST_DEVICE double reciprocal_of(double x) { return 1 / x; }
#endif

template <typename T>
SSIM_HOST_DEVICE Terms<T> terms(const Moments<T>& m, T pivot_u, T pivot_v, T c1, T c2, T half) {
  Terms<T> t;
  t.m_u = m.mean_u + pivot_u;
  t.m_v = m.mean_v + pivot_v;
  t.p = t.m_v * t.m_v;
  t.q = nonnegative_of(m.square_v - square(m.mean_v));
  t.a = half * (t.m_u * t.m_u) + c1;
  t.b = half * nonnegative_of(m.square_u - square(m.mean_u)) + c2;
  t.A = t.a + half * t.p;
  t.B = t.b + half * t.q;
  t.r = reciprocal_of(t.A * t.B);
  return t;
}

// Which map is meant. Each is a loss: 1 minus the similarity of its name, a sum of products that
// are never negative.
enum class Kind {
  ssim,         // 1 - SSIM
  contrast,     // 1 - the contrast-structure term       q / B
  luminance,    // 1 - the luminance term                p / A
  nonnegative,  // 1 - max(SSIM, 0)
};

// 1 - SSIM
template <typename T>
SSIM_HOST_DEVICE T delta(const Terms<T>& t) {
  return (t.a * t.q + t.p * t.b) * t.r;
}

// d delta / d (filtered maps), from the two factors that the kinds differ in
template <typename T>
SSIM_HOST_DEVICE Derivatives<T> derivatives_from(const Terms<T>& t, const Moments<T>& m, T contrast,
                                                 T luminance) {
  const T d_b = t.q * contrast;
  const T d_q = t.b * contrast;
  const T luminance_v = t.m_v * (t.a * luminance);
  const T contrast_v = m.mean_v * d_q;
  Derivatives<T> d;
  d.mean_u = m.mean_u * d_b - t.m_u * (t.p * luminance);
  d.mean_v = (luminance_v - contrast_v) + (luminance_v - contrast_v);
  d.square_u = -d_b;
  d.square_v = d_q + d_q;
  return d;
}

// Of 1 - SSIM. By the quotient rule, with C = a - p/2 and D = b - q/2,
//     d/dq =  b C / (A B^2)      d/db = -q C / (A B^2)
//     d/dp =  a D / (A^2 B)      d/da = -p D / (A^2 B)
// and through V = E - m^2 to the filtered maps. 1 / (A B)^2 would leave float32's range.
template <typename T>
SSIM_HOST_DEVICE Derivatives<T> derivatives(const Terms<T>& t, const Moments<T>& m, T half) {
  const T contrast = (t.a - half * t.p) * (t.A * t.r) * t.r;   // C / (A B^2)
  const T luminance = (t.b - half * t.q) * (t.B * t.r) * t.r;  // D / (A^2 B)
  return derivatives_from(t, m, contrast, luminance);
}

// ---- the same for any kind ----

template <typename T>
SSIM_HOST_DEVICE T delta(const Terms<T>& t, Kind kind, T one) {
  if (kind == Kind::contrast) return t.q * t.A * t.r;
  if (kind == Kind::luminance) return t.p * t.B * t.r;
  const T value = delta(t);
  if (kind == Kind::nonnegative) return value > one ? one : value;
  return value;
}

// The terms alone: d/dq = b / B^2, d/db = -q / B^2, and the same with p, a, A. A clamped SSIM has
// no slope.
template <typename T>
SSIM_HOST_DEVICE Derivatives<T> derivatives(const Terms<T>& t, const Moments<T>& m, Kind kind,
                                            T half, T one) {
  const T over_A = t.B * t.r, over_B = t.A * t.r, zero = one - one;
  if (kind == Kind::contrast) return derivatives_from(t, m, over_B * over_B, zero);
  if (kind == Kind::luminance) return derivatives_from(t, m, zero, over_A * over_A);
  Derivatives<T> d = derivatives(t, m, half);
  if (kind == Kind::nonnegative) {
    const auto clamped = delta(t) > one;
    d.mean_u = clamped ? zero : d.mean_u;
    d.mean_v = clamped ? zero : d.mean_v;
    d.square_u = clamped ? zero : d.square_u;
    d.square_v = clamped ? zero : d.square_v;
  }
  return d;
}

}  // namespace ssim_fused
