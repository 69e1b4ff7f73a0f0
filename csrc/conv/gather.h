// Rows of pixels out of a plane, to where a tile of a convolution wants them.
#pragma once

#include "../spmm/vectors.h"

namespace {

// Of 2 L floats those at even places.
template <int L>
SECATEUR_INLINE Vector<L> evens(Vector<L> a, Vector<L> b) {
  if constexpr (L == 4) return __builtin_shufflevector(a, b, 0, 2, 4, 6);
  if constexpr (L == 8) return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14);
  if constexpr (L == 16) {
    return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  }
}

template <int L>
SECATEUR_INLINE Vector<L> odds(Vector<L> a, Vector<L> b) {
  if constexpr (L == 4) return __builtin_shufflevector(a, b, 1, 3, 5, 7);
  if constexpr (L == 8) return __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15);
  if constexpr (L == 16) {
    return __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
  }
}

// Every second float of 2 L.
template <int L>
SECATEUR_INLINE Vector<L> load_even(const float* p) {
  return evens<L>(load<L>(p), load<L>(p + L));
}

// Every second float of 2 L, and the others.
template <int L>
SECATEUR_INLINE void split(const float* p, Vector<L>& even, Vector<L>& odd) {
  const Vector<L> a = load<L>(p), b = load<L>(p + L);
  even = evens<L>(a, b);
  odd = odds<L>(a, b);
}

template <int L>
void gather_rows(const float* from, size_t from_stride, size_t step, float* to, size_t to_stride, size_t rows,
                 size_t floats) {
  for (size_t row = 0; row < rows; ++row, from += from_stride, to += to_stride) {
    if (step == 1) {
      for (size_t j = 0; j < floats; j += L) store<L>(to + j, load<L>(from + j));
    } else if (step == 2) {
      for (size_t j = 0; j < floats; j += L) store<L>(to + j, load_even<L>(from + 2 * j));
    } else {
      for (size_t j = 0; j < floats; ++j) to[j] = from[j * step];
    }
  }
}

}  // namespace
