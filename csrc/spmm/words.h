// Words of 32 bits that are no numbers: moved as bits, since arithmetic on floats would alter what looks like NaN.
#pragma once

#include <string.h>

#include "vectors.h"

namespace {

template <int L>
SECATEUR_INLINE Vector<L> splat_word(const float* word) {
  typedef typename Floats<L>::ints Ints;
  int32_t bits;
  memcpy(&bits, word, sizeof bits);
  return (Vector<L>)(bits - Ints{});
}

// Four words, each in a vector of its own.
template <int L>
SECATEUR_INLINE void splat_words(const float* words, Vector<L> (&out)[4]) {
#if defined(__AVX512F__)
  if constexpr (L == 16) return splat4<L>(words, out);  // moves bits
#endif
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) out[i] = splat_word<L>(words + i);
}

}  // namespace
