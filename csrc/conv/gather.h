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

template <int L, int S>
SECATEUR_INLINE Vector<L> load_each(const float* p) {
  if constexpr (S == 1) return load<L>(p);
  if constexpr (S == 2) return load_even<L>(p);
}

// Every S-th pixel of `rows` rows of V vectors each.
template <int L, int S, int V>
SECATEUR_INLINE void copy_rows(const float* from, size_t from_row, size_t rows, float* to) {
#pragma GCC unroll 4
  for (size_t r = 0; r < rows; ++r, from += from_row, to += L * V) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) store<L>(to + L * v, load_each<L, S>(from + L * S * v));
  }
}

template <int L, int S>
SECATEUR_INLINE void copy_any(const float* from, size_t from_row, size_t rows, float* to, size_t floats) {
  for (size_t r = 0; r < rows; ++r, from += from_row, to += floats) {
    for (size_t j = 0; j < floats; j += L) store<L>(to + j, load_each<L, S>(from + S * j));
  }
}

// S: of the step, or 0 for a step above 2; V: vectors of a row, or 0 for any number.
template <int L, int S, int V>
void gather_of(const secateur_gather& work) {
  const secateur_gather g = work;
  const float* plane = g.x;
  float* to = g.to;
  for (size_t c = 0; c < g.channels; ++c, plane += g.stride) {
    for (size_t w = 0; w < g.columns; ++w) {
      for (size_t f = 0; f < (S == 0 ? g.step : S); ++f) {
        if (g.rows[f] == 0) continue;
        const float* from = plane + f * g.x_row + w * g.dilation;
        const size_t from_row = g.step * g.x_row, rows = g.rows[f] - g.missing;
        if constexpr (S == 0) {
          for (size_t i = 0; i < rows * g.floats; ++i) to[i] = from[i / g.floats * from_row + i % g.floats * g.step];
        } else if constexpr (V == 0) {
          copy_any<L, S>(from, from_row, rows, to, g.floats);
        } else {
          copy_rows<L, S, V>(from, from_row, rows, to);
        }
        to += g.rows[f] * g.floats;
      }
    }
  }
}

template <int L, int S>
void gather_step(const secateur_gather& work) {
  switch (work.floats / L) {
    case 1: return gather_of<L, S, 1>(work);
    case 2: return gather_of<L, S, 2>(work);
    case 4: return gather_of<L, S, 4>(work);
  }
  gather_of<L, S, 0>(work);
}

// All of a tile in one call: a call for every few rows takes longer than the copy.
template <int L>
void gather_tile(const secateur_gather& work) {
  if (work.step == 1) return gather_step<L, 1>(work);
  if (work.step == 2) return gather_step<L, 2>(work);
  gather_of<L, 0, 0>(work);
}

}  // namespace
