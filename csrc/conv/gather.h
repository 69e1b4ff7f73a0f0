// Rows of pixels out of a plane, to where a tile of a convolution wants them.
#pragma once

#include "../spmm/vectors.h"

namespace {

// Every second float of 2 L.
template <int L>
SECATEUR_INLINE Vector<L> load_even(const float* p) {
  const Vector<L> a = load<L>(p), b = load<L>(p + L);
  if constexpr (L == 4) return __builtin_shufflevector(a, b, 0, 2, 4, 6);
  if constexpr (L == 8) return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14);
  if constexpr (L == 16) {
    return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  }
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
