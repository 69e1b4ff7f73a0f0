// The sums of a few output channels over a few vectors of pixels: how they begin, and how they end in the planes.
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

// What all channels of a part begin and end with. A copy: what is read through pointers to a tile is read anew for
// every channel, since a store of floats may have changed it, and channels have few weights.
template <int L, int V>
struct Edge {
  explicit Edge(const Part& part)
      : sums(part.tile.sums + part.column),
        width(part.width),
        bias(part.tile.bias),
        channels(part.tile.channels),
        y(part.tile.y),
        residual(part.tile.residual),
        y_stride(part.tile.y_stride),
        residual_stride(part.tile.residual_stride),
        mask(part.tile.mask + part.column),
        first(part.tile.first != 0),
        last(part.tile.last != 0),
        fetches(part.tile.images != 0 && part.tile.last != 0),
        past(part.tile.past != 0),
        apart(part.tile.residual != nullptr && part.tile.residual != part.tile.y),
        activation(part.tile.activation) {
    const int bits = L == 16 || part.tile.lanes == 16 ? 4 : 3;
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) {  // a vector of the tile may be several of the hardware
      const size_t column = part.column + size_t(v) * L;
      out[v] = size_t(part.tile.out[column >> bits]) + (column & ((size_t(1) << bits) - 1));
    }
  }

  SECATEUR_INLINE void begin(Vector<L> (&sum)[V], size_t channel) const {
    if (first) {
      const Vector<L> start = splat<L>(bias != nullptr && channel < channels ? bias[channel] : 0.0f);
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) sum[v] = start;
    } else {
      const float* from = sums + channel * width;
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) sum[v] = load<L>(from + L * v);
    }
  }

  // Residual, activation, and zeros where no pixel is; then to the planes.
  SECATEUR_INLINE void end(Vector<L> (&sum)[V], size_t channel) const {
    if (!last) {
      float* to = sums + channel * width;
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) store<L>(to + L * v, sum[v]);
      return;
    }
    if (channel >= channels) return;
    if (residual != nullptr) {
      const float* from = residual + channel * residual_stride;
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) sum[v] += load<L>(from + out[v]);
    }
    if (activation == secateur_relu) {
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) sum[v] = sum[v] < 0.0f ? Vector<L>{} : sum[v];  // NaN stays
    } else if (activation != secateur_none) {
      float* memory = sums + channel * width;
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) store<L>(memory + L * v, sum[v]);
      activate_floats<L>(memory, L * V, activation);
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) sum[v] = load<L>(memory + L * v);
    }
    float* to = y + channel * y_stride;
    if (past) {
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) store_past<L>(to + out[v], masked<L>(sum[v], mask + L * v));
      return;
    }
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) store<L>(to + out[v], masked<L>(sum[v], mask + L * v));
  }

  // Of 16 images, where the sums of a channel will go, and what will be added, comes near a group ahead: the products
  // of one take less time than the memory.
  SECATEUR_INLINE void fetch(size_t channel) const {
    if (!fetches || channel >= channels) return;
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) {
      if (!past) __builtin_prefetch(y + channel * y_stride + out[v], 1, 3);
      if (apart) __builtin_prefetch(residual + channel * residual_stride + out[v], 0, 3);
    }
  }

  float* sums;  // of channel 0
  size_t width;
  const float* bias;
  size_t channels;
  float* y;
  const float* residual;
  size_t y_stride, residual_stride;
  const int32_t* mask;
  size_t out[V];
  bool first, last, fetches, past, apart;
  int activation;
};

template <int R, int L, int V>
SECATEUR_INLINE void fetch(const Edge<L, V>& edge, size_t row) {
#pragma GCC unroll 4
  for (size_t r = 0; r < R; ++r) edge.fetch(row + r);
}

template <int L, int R, int V>
SECATEUR_INLINE void begin(Sums<L, R, V>& sums, const Edge<L, V>& edge, size_t row) {
#pragma GCC unroll 4
  for (size_t r = 0; r < R; ++r) edge.begin(sums.at[r], row + r);
}

template <int L, int R, int V>
SECATEUR_INLINE void end(Sums<L, R, V>& sums, const Edge<L, V>& edge, size_t row) {
#pragma GCC unroll 4
  for (size_t r = 0; r < R; ++r) edge.end(sums.at[r], row + r);
}

}  // namespace
