// Vectors of L floats by the extensions of GCC and Clang, and the activations on them.
#pragma once

#include "../kernels.h"

namespace {

#define SECATEUR_INLINE inline __attribute__((always_inline))

template <int L>
struct Floats;
template <>
struct Floats<4> {
  typedef float type __attribute__((vector_size(16)));
  typedef float loose __attribute__((vector_size(16), aligned(4), may_alias));
  typedef int32_t ints __attribute__((vector_size(16)));
};
template <>
struct Floats<8> {
  typedef float type __attribute__((vector_size(32)));
  typedef float loose __attribute__((vector_size(32), aligned(4), may_alias));
  typedef int32_t ints __attribute__((vector_size(32)));
};
template <>
struct Floats<16> {
  typedef float type __attribute__((vector_size(64)));
  typedef float loose __attribute__((vector_size(64), aligned(4), may_alias));
  typedef int32_t ints __attribute__((vector_size(64)));
};

template <int L>
using Vector = typename Floats<L>::type;

constexpr int least(int a, int b) { return a < b ? a : b; }

template <int L>
SECATEUR_INLINE Vector<L> load(const float* p) {
  return *reinterpret_cast<const typename Floats<L>::loose*>(p);
}

template <int L>
SECATEUR_INLINE void store(float* p, Vector<L> v) {
  *reinterpret_cast<typename Floats<L>::loose*>(p) = v;
}

template <int L>
SECATEUR_INLINE Vector<L> splat(float value) {
  return value - Vector<L>{};  // x - 0 is x, for -0 too; x + 0 would lose its sign
}

// Four values, each in a vector of its own.
template <int L>
SECATEUR_INLINE void splat4(const float* p, Vector<L> (&out)[4]) {
#if defined(__AVX512F__)
  if constexpr (L == 16) {  // one load and four shuffles: the loads are what these kernels have too many of
    const __m512 four = _mm512_broadcast_f32x4(_mm_loadu_ps(p));
    out[0] = (Vector<L>)_mm512_permute_ps(four, 0x00);
    out[1] = (Vector<L>)_mm512_permute_ps(four, 0x55);
    out[2] = (Vector<L>)_mm512_permute_ps(four, 0xaa);
    out[3] = (Vector<L>)_mm512_permute_ps(four, 0xff);
    return;
  }
#endif
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) out[i] = splat<L>(p[i]);
}

constexpr bool backwards = __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__;

// Room for four indices.
template <typename Index>
struct Four;
template <>
struct Four<uint8_t> {
  typedef uint32_t type;
};
template <>
struct Four<uint16_t> {
  typedef uint64_t type;
};

// What a word of weights and one of activations are, and how their product joins a sum: float32. bf16.h and int8.h have
// others. `whole`: sums are integers until the end.
struct Singles {
  static constexpr bool whole = false;

  template <typename Sum>
  static SECATEUR_INLINE Sum plus(Sum a, Sum b) {
    return a + b;
  }

  template <int L>
  static SECATEUR_INLINE Vector<L> splat(const float* word) {
    return ::splat<L>(*word);
  }
  template <int L>
  static SECATEUR_INLINE void splat4(const float* words, Vector<L> (&out)[4]) {
    ::splat4<L>(words, out);
  }
  template <int L>
  static SECATEUR_INLINE Vector<L> add(Vector<L> sum, Vector<L> weight, Vector<L> x) {
    return sum + weight * x;
  }
  static SECATEUR_INLINE float add_one(float sum, const float* weight, const float* x) { return sum + *weight * *x; }
};

// 2^(x log2 e) as 2^n times a polynomial on half an octave: within 2 units in the last place; inf beyond float's range
// and 0 below its normal numbers. NaN stays.
template <int L>
SECATEUR_INLINE Vector<L> exponential(Vector<L> x) {
  typedef typename Floats<L>::ints Ints;
  const Vector<L> shift = splat<L>(12582912.0f);  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  const Vector<L> high = splat<L>(88.72283f), low = splat<L>(-87.33654f);
  Vector<L> inside = x > high ? high : x;
  inside = inside < low ? low : inside;
  const Vector<L> shifted = inside * 1.44269504f + shift;
  const Vector<L> n = shifted - shift;
  Vector<L> t = inside - n * 0.693359375f;
  t = t - n * -2.12194440e-4f;
  Vector<L> sum = splat<L>(1.9841270e-4f);  // Taylor to t^7 / 5040: |t| <= 0.347, so the rest is below 1e-8
  sum = sum * t + 1.3888889e-3f;
  sum = sum * t + 8.3333333e-3f;
  sum = sum * t + 4.1666667e-2f;
  sum = sum * t + 1.6666667e-1f;
  sum = sum * t + 0.5f;
  sum = sum * t + 1.0f;
  sum = sum * t + 1.0f;
  // Two factors, since 2^128 is no float.
  const Ints power = (Ints)shifted - (Ints)shift;
  const Ints half = power >> 1;
  const Ints rest = power - half;
  const Vector<L> result = sum * (Vector<L>)((half + 127) << 23) * (Vector<L>)((rest + 127) << 23);
  const Vector<L> capped = x > high ? splat<L>(__builtin_inff()) : result;
  return x < low ? Vector<L>{} : (x != x ? x : capped);
}

// u P(u^2) / Q(u^2), fitted here by least squares on |u| < 3.925, where erf is 1 to the last bit: within 4e-7. One division and
// no exponential; NaN stays.
template <int L>
SECATEUR_INLINE Vector<L> error_function(Vector<L> u) {
  const Vector<L> square = u * u;
  Vector<L> top = splat<L>(2.0416858e-6f);
  top = top * square + 2.8617319e-4f;
  top = top * square + 3.8174980e-3f;
  top = top * square + 5.2904315e-2f;
  top = top * square + 1.9159943e-1f;
  top = top * square + 1.1283791f;
  Vector<L> bottom = splat<L>(3.8074082e-5f);
  bottom = bottom * square + 1.1754589e-3f;
  bottom = bottom * square + 1.5071139e-2f;
  bottom = bottom * square + 1.1460096e-1f;
  bottom = bottom * square + 5.0313270e-1f;
  bottom = bottom * square + 1.0f;
  const Vector<L> inside = u * top / bottom;
  const Vector<L> above = u > 3.925f ? splat<L>(1.0f) : inside;
  return u < -3.925f ? splat<L>(-1.0f) : above;
}

template <int L>
SECATEUR_INLINE Vector<L> clamp6(Vector<L> x) {
  const Vector<L> positive = x < 0.0f ? Vector<L>{} : x;
  return positive > 6.0f ? splat<L>(6.0f) : positive;  // NaN stays
}

// As torch has them, infinities and NaN included.
template <int L>
SECATEUR_INLINE Vector<L> activate(Vector<L> x, int activation) {
  switch (activation) {
    case secateur_relu: return x < 0.0f ? Vector<L>{} : x;  // NaN stays
    case secateur_gelu: return x * 0.5f * (error_function<L>(x * 0.70710678f) + 1.0f);
    // x/2 (1 + tanh u) = x / (1 + e^(-2u)), u = sqrt(2 / pi) (x + 0.044715 x^3)
    case secateur_gelu_tanh: return x / (exponential<L>(x * (x * x * 0.044715f + 1.0f) * -1.5957691f) + 1.0f);
    case secateur_silu: return x / (exponential<L>(-x) + 1.0f);
    case secateur_relu6: return clamp6<L>(x);
    case secateur_hardswish: return x * clamp6<L>(x + 3.0f) / 6.0f;
    case secateur_leaky_tenth: return x < 0.0f ? x * 0.1f : x;
    case secateur_leaky_hundredth: return x < 0.0f ? x * 0.01f : x;
  }
  return x;
}

template <int L>
void add_of(const float* x, const float* other, float* y, size_t n, int activation) {
  size_t i = 0;
  for (; i + L <= n; i += L) {
    const Vector<L> sum = other == nullptr ? load<L>(x + i) : load<L>(x + i) + load<L>(other + i);
    store<L>(y + i, activate<L>(sum, activation));
  }
  if (i == n) return;
  float rest[L] = {};
  for (size_t j = 0; i + j < n; ++j) rest[j] = other == nullptr ? x[i + j] : x[i + j] + other[i + j];
  store<L>(rest, activate<L>(load<L>(rest), activation));
  for (size_t j = 0; i + j < n; ++j) y[i + j] = rest[j];
}

}  // namespace
