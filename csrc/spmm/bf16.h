// Words of two bf16 numbers, the lower half first: weights of two neighbouring inputs, or what those inputs hold. A
// product of words is the sum of two products, in float32. Numbers are rounded to the nearest, to even ones between two,
// and denormal ones to zero, as the instructions do it.
#pragma once

#include <string.h>

#include "words.h"

namespace {

SECATEUR_INLINE float low_of(uint32_t word) {
  const uint32_t bits = word << 16;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

SECATEUR_INLINE float high_of(uint32_t word) {
  const uint32_t bits = word & 0xffff0000u;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

struct Pairs {
  static constexpr bool whole = false;

  template <typename Sum>
  static SECATEUR_INLINE Sum plus(Sum a, Sum b) {
    return a + b;
  }

  template <int L>
  static SECATEUR_INLINE Vector<L> splat(const float* word) {
    return splat_word<L>(word);
  }

  template <int L>
  static SECATEUR_INLINE void splat4(const float* words, Vector<L> (&out)[4]) {
    splat_words<L>(words, out);
  }

  template <int L>
  static SECATEUR_INLINE Vector<L> add(Vector<L> sum, Vector<L> weight, Vector<L> x) {
#if defined(__AVX512BF16__)
    if constexpr (L == 16) return (Vector<L>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)weight, (__m512bh)x);
    if constexpr (L == 8) return (Vector<L>)_mm256_dpbf16_ps((__m256)sum, (__m256bh)weight, (__m256bh)x);
    if constexpr (L == 4) return (Vector<L>)_mm_dpbf16_ps((__m128)sum, (__m128bh)weight, (__m128bh)x);
#else
    typedef typename Floats<L>::ints Ints;
    const Ints high = int32_t(0xffff0000u) - Ints{}, a = (Ints)weight, b = (Ints)x;
    sum += (Vector<L>)(a & high) * (Vector<L>)(b & high);
    return sum + (Vector<L>)(a << 16) * (Vector<L>)(b << 16);
#endif
  }

  static SECATEUR_INLINE float add_one(float sum, const float* weight, const float* x) {
    uint32_t a, b;
    memcpy(&a, weight, sizeof a);
    memcpy(&b, x, sizeof b);
    return sum + high_of(a) * high_of(b) + low_of(a) * low_of(b);
  }
};

SECATEUR_INLINE uint32_t rounded(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  const uint32_t size = bits & 0x7fffffffu;
  if (size < 0x00800000u) return bits >> 16 & 0x8000u;
  if (size > 0x7f800000u) return bits >> 16 | 0x40u;
  return (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
}

SECATEUR_INLINE void put_pair(float* pair, float low, float high) {
  const uint32_t word = rounded(low) | rounded(high) << 16;
  memcpy(pair, &word, sizeof word);
}

// panel[features][width], without its rows of zeros, to pairs[features / 2][width]; an odd one goes with 0.
SECATEUR_INLINE void panel_to_pairs_plain(const float* panel, size_t features, size_t width, float* pairs) {
  for (size_t f = 0; f < features; f += 2) {
    const float* x = panel + f * width;
    for (size_t s = 0; s < width; ++s) put_pair(pairs + f / 2 * width + s, x[s], f + 1 < features ? x[width + s] : 0.0f);
  }
}

SECATEUR_INLINE void samples_to_pairs_plain(const float* samples, size_t n, size_t stride, size_t features, size_t width,
                                            float* pairs) {
  for (size_t s = 0; s < width; ++s) {
    const float* x = samples + s * stride;
    for (size_t f = 0; f < features; f += 2) {
      float* pair = pairs + f / 2 * width + s;
      if (s < n) {
        put_pair(pair, x[f], f + 1 < features ? x[f + 1] : 0.0f);
      } else {
        *pair = 0.0f;
      }
    }
  }
}

}  // namespace
