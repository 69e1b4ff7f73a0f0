// The sums of a convolution in registers: how they begin, and how they end.
#pragma once

#include "../spmm/vectors.h"
#include "kernels.h"

namespace {

template <int L, int R, int V>
struct Sums {
  Vector<L> at[R][V];
};

// Part of a tile: V hardware vectors of L floats from `column` on, of a tile `width` floats wide.
struct Part {
  const secateur_conv_tile& tile;
  size_t column, width;
  bool ahead;
};

// Where the sums of 16 images will go, and what will be added, comes near a group ahead: the products of one take less
// time than the memory. The next group is at `ahead`, if there is one.
template <int L, int R, int V>
SECATEUR_INLINE void fetch_results(const Part& part, const uint16_t* ahead) {
  const secateur_conv_tile& tile = part.tile;
  if (!tile.images || !tile.last) return;
  const size_t row = *ahead * size_t(R);
  const bool apart = tile.residual != nullptr && tile.residual != tile.y;
  for (size_t r = row; r < row + R && r < tile.channels; ++r) {
    for (size_t at = part.column; at < part.column + size_t(V) * L; at += 16) {
      if (!tile.past) __builtin_prefetch(tile.y + r * tile.y_stride + at, 1, 3);
      if (apart) __builtin_prefetch(tile.residual + r * tile.residual_stride + at, 0, 3);
    }
  }
}

template <int L, int R, int V>
SECATEUR_INLINE void begin(Sums<L, R, V>& sums, const Part& part, size_t row) {
#pragma GCC unroll 4
  for (size_t r = 0; r < R; ++r) {
    if (part.tile.first) {
      const float bias = part.tile.bias != nullptr && row + r < part.tile.channels ? part.tile.bias[row + r] : 0.0f;
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) sums.at[r][v] = splat<L>(bias);
    } else {
      const float* from = part.tile.sums + (row + r) * part.width + part.column;
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) sums.at[r][v] = load<L>(from + L * v);
    }
  }
}

template <int L>
__attribute__((noinline)) void activate_floats(float* y, size_t n, int activation) {
  for (size_t i = 0; i < n; i += L) store<L>(y + i, activate<L>(load<L>(y + i), activation));
}

template <int L>
SECATEUR_INLINE Vector<L> masked(Vector<L> x, const int32_t* mask) {
  typedef typename Floats<L>::ints Ints;
  typedef int32_t Loose __attribute__((vector_size(4 * L), aligned(4), may_alias));
  return (Vector<L>)((Ints)x & (Ints) * reinterpret_cast<const Loose*>(mask));
}

// To an aligned place past the caches: lines that are written whole need not be read before.
template <int L>
SECATEUR_INLINE void store_past(float* p, Vector<L> x) {
#if defined(__AVX512F__)
  if constexpr (L == 16) return _mm512_stream_ps(p, (__m512)x);
#endif
#if defined(__AVX2__)
  if constexpr (L == 8) return _mm256_stream_ps(p, (__m256)x);
#endif
  store<L>(p, x);
}

// Such stores are seen by other threads behind a fence alone.
SECATEUR_INLINE void after_past() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

// Residual, activation, and zeros where no pixel is; then to the planes.
template <int L, int V>
SECATEUR_INLINE void finish(Vector<L> (&sums)[V], const Part& part, size_t row) {
  const secateur_conv_tile& tile = part.tile;
  const int bits = L == 16 || tile.lanes == 16 ? 4 : 3;
  const auto out = [&part, bits](size_t v) {  // a vector of the tile may be several of the hardware
    const size_t column = part.column + v * L;
    return size_t(part.tile.out[column >> bits]) + (column & ((size_t(1) << bits) - 1));
  };
  float* y = tile.y + row * tile.y_stride;
  const int32_t* mask = tile.mask + part.column;
  if (tile.residual != nullptr) {
    const float* residual = tile.residual + row * tile.residual_stride;
#pragma GCC unroll 16
    for (size_t v = 0; v < V; ++v) sums[v] += load<L>(residual + out(v));
  }
  if (tile.activation == secateur_relu) {
#pragma GCC unroll 16
    for (size_t v = 0; v < V; ++v) sums[v] = sums[v] < 0.0f ? Vector<L>{} : sums[v];  // NaN stays
  } else if (tile.activation != secateur_none) {
    float* memory = tile.sums + row * part.width + part.column;
#pragma GCC unroll 16
    for (size_t v = 0; v < V; ++v) store<L>(memory + L * v, sums[v]);
    activate_floats<L>(memory, L * V, tile.activation);
#pragma GCC unroll 16
    for (size_t v = 0; v < V; ++v) sums[v] = load<L>(memory + L * v);
  }
  if (tile.past) {
#pragma GCC unroll 16
    for (size_t v = 0; v < V; ++v) store_past<L>(y + out(v), masked<L>(sums[v], mask + L * v));
    return;
  }
#pragma GCC unroll 16
  for (size_t v = 0; v < V; ++v) store<L>(y + out(v), masked<L>(sums[v], mask + L * v));
}

template <int L, int R, int V>
SECATEUR_INLINE void end(Sums<L, R, V>& sums, const Part& part, size_t row) {
#pragma GCC unroll 4
  for (size_t r = 0; r < R; ++r) {
    if (!part.tile.last) {
      float* to = part.tile.sums + (row + r) * part.width + part.column;
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) store<L>(to + L * v, sums.at[r][v]);
    } else if (row + r < part.tile.channels) {
      finish<L, V>(sums.at[r], part, row + r);
    }
  }
}

}  // namespace
