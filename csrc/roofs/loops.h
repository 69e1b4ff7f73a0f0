// The loops, on vectors of L floats, and their entry points.
#pragma once

#include "../spmm/bf16.h"

namespace {

// What a sum is multiplied by. The compiler must not see that it never changes: the sum itself is a factor.
struct OneNumber {
  static constexpr uint64_t operations = 2;
  static float factor(float weight) { return weight; }
  template <int L>
  static SECATEUR_INLINE Vector<L> step(Vector<L> sum, Vector<L> weight, Vector<L> x) {
    return x + sum * weight;
  }
};

struct TwoNumbers {
  static constexpr uint64_t operations = 4;
  static float factor(float weight) {
    float word;
    put_pair(&word, 0.0f, weight);
    return word;
  }
  template <int L>
  static SECATEUR_INLINE Vector<L> step(Vector<L> sum, Vector<L> weight, Vector<L> x) {
    return Pairs::add<L>(x, sum, weight);
  }
};

template <typename Numbers, int L, int SUMS>
uint64_t multiply_add(size_t rounds, float start, float weight, float x, float* out) {
  Vector<L> sums[SUMS];
  const float word = Numbers::factor(weight);
  const Vector<L> factor = Pairs::splat<L>(&word), shift = splat<L>(x);  // moves bits, for a float too
#pragma GCC unroll 32
  for (int i = 0; i < SUMS; ++i) sums[i] = splat<L>(start + float(i));  // of equal ones the compiler would keep one
  for (size_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 32
    for (int i = 0; i < SUMS; ++i) sums[i] = Numbers::template step<L>(sums[i], factor, shift);
  }
  Vector<L> total = sums[0];
#pragma GCC unroll 32
  for (int i = 1; i < SUMS; ++i) total += sums[i];
  store<L>(out, total);
  return Numbers::operations * L * SUMS * rounds;
}

template <int L>
float sum_of(const float* x, size_t n) {
  constexpr int SUMS = 8;
  Vector<L> sums[SUMS] = {};
  for (size_t at = 0; at < n; at += SUMS * L) {
#pragma GCC unroll 8
    for (int i = 0; i < SUMS; ++i) sums[i] += load<L>(x + at + i * L);
  }
#pragma GCC unroll 8
  for (int i = 1; i < SUMS; ++i) sums[0] += sums[i];
  float total = 0.0f;
  for (int i = 0; i < L; ++i) total += sums[0][i];
  return total;
}

}  // namespace

// SUMS: registers that hold a sum.
#define SECATEUR_ROOFS(isa, L, SUMS)                                                                                   \
  extern "C" {                                                                                                         \
  uint64_t secateur_roof_fma_##isa(size_t rounds, float start, float weight, float x, float* out) {                    \
    return multiply_add<OneNumber, L, SUMS>(rounds, start, weight, x, out);                                            \
  }                                                                                                                    \
  float secateur_roof_read_##isa(const float* x, size_t n) { return sum_of<L>(x, n); }                                 \
  }

#define SECATEUR_BF16_ROOFS(isa, L, SUMS)                                                                              \
  extern "C" uint64_t secateur_bf16_roof_fma_##isa(size_t rounds, float start, float weight, float x, float* out) {    \
    return multiply_add<TwoNumbers, L, SUMS>(rounds, start, weight, x, out);                                           \
  }
