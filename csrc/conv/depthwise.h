// Depthwise convolution: one plane in, one plane out.
#pragma once

#include "gather.h"
#include "pool.h"
#include "sparse.h"

namespace {

// All bits set in the first n lanes.
template <int L>
SECATEUR_INLINE typename Floats<L>::ints first_lanes(size_t n) {
  typename Floats<L>::ints lanes;
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i) lanes[i] = i;
  return lanes < int32_t(n < size_t(L) ? n : size_t(L));
}

// Residual, activation, zeros behind the last pixel, and V vectors of a row are written at `place` of the plane.
template <int L, int V>
SECATEUR_INLINE void put(const Vector<L> (&sums)[V], const secateur_depthwise& work, size_t place,
                         typename Floats<L>::ints last) {
  Vector<L> y[V];
#pragma GCC unroll 16
  for (int v = 0; v < V; ++v) y[v] = sums[v];
  if (work.residual != nullptr) {
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) y[v] += load<L>(work.residual + place + L * v);
  }
  if (work.activation == secateur_relu) {
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) y[v] = y[v] < 0.0f ? Vector<L>{} : y[v];  // NaN stays
  } else if (work.activation == secateur_relu6) {
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) y[v] = clamp6<L>(y[v]);
  } else if (work.activation != secateur_none) {
    float memory[L * V];
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) store<L>(memory + L * v, y[v]);
    activate_floats<L>(memory, L * V, work.activation);
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) y[v] = load<L>(memory + L * v);
  }
  y[V - 1] = (Vector<L>)((typename Floats<L>::ints)y[V - 1] & last);
#pragma GCC unroll 16
  for (int v = 0; v < V; ++v) store<L>(work.y + place + L * v, y[v]);
}

// What row of the kernel meets a row of pixels in each of the outputs under way: sums[a] takes row S a + s.
template <int L, int K, int S, int V, int A>
SECATEUR_INLINE void add_taps(Vector<L> (&sums)[A][V], const Vector<L> (&pixels)[V], const float* weights, int s, int j) {
#pragma GCC unroll 8
  for (int a = 0; a < A; ++a) {
    if (S * a + s >= K) continue;
    const Vector<L> weight = splat<L>(weights[(S * a + s) * K + j]);
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) sums[a][v] += weight * pixels[v];
  }
}

template <int L, int K, int S, int V, int A>
SECATEUR_INLINE void add_row(Vector<L> (&sums)[A][V], const float* x, const float* weights, int s) {
  Vector<L> pixels[V];
  if constexpr (S == 1) {
#pragma GCC unroll 8
    for (int j = 0; j < K; ++j) {
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) pixels[v] = load<L>(x + j + L * v);
      add_taps<L, K, S, V, A>(sums, pixels, weights, s, j);
    }
  } else {
#pragma GCC unroll 8
    for (int j = 0; j < K; j += 2) {
      Vector<L> odd[V];
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) split<L>(x + j + 2 * L * v, pixels[v], odd[v]);
      add_taps<L, K, S, V, A>(sums, pixels, weights, s, j);
      if (j + 1 < K) add_taps<L, K, S, V, A>(sums, odd, weights, s, j + 1);
    }
  }
}

// V vectors of columns from top to bottom. A output rows are under way at a time, so a row of pixels is loaded once; they
// move up by one after S rows of pixels.
template <int L, int K, int S, int V>
void walk(const secateur_depthwise& work, size_t column) {
  constexpr int A = (K + S - 1) / S;
  constexpr int REST = K - S * (A - 1);  // rows of pixels that the last output still needs at its last turn
  const typename Floats<L>::ints last = first_lanes<L>(work.columns - column - L * (V - 1));
  const Vector<L> bias = splat<L>(work.bias);
  float weights[K * K];  // a copy, which no store to y can change
#pragma GCC unroll 32
  for (int i = 0; i < K * K; ++i) weights[i] = work.weights[i];
  const float* x = work.x + column * S;
  Vector<L> sums[A][V];
#pragma GCC unroll 8
  for (int a = 0; a < A; ++a) {
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) sums[a][v] = bias;
  }
  size_t place = column;
  for (size_t turn = 1; turn < work.rows + A; ++turn, x += S * work.x_row) {
    add_row<L, K, S, V, A>(sums, x, weights, 0);
    if constexpr (S == 2) {
      if (REST == 2 || turn + 1 < work.rows + A) add_row<L, K, S, V, A>(sums, x + work.x_row, weights, 1);
    }
    if (turn >= A) {
      put<L, V>(sums[A - 1], work, place, last);
      place += work.y_row;
    }
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) {
#pragma GCC unroll 8
      for (int a = A - 1; a > 0; --a) sums[a][v] = sums[a - 1][v];
      sums[0][v] = bias;
    }
  }
}

template <int L, int K, int S, int V>
SECATEUR_INLINE void walk_of(const secateur_depthwise& work, size_t column, size_t vectors) {
  if constexpr (V > 0) {
    if (vectors == size_t(V)) return walk<L, K, S, V>(work, column);
    walk_of<L, K, S, V - 1>(work, column, vectors);
  }
}

// From right to left: what a vector at the end of a row writes of the next one is overwritten.
template <int L, int MOST, int K, int S>
void walks(const secateur_depthwise& work) {
  size_t whole = work.columns;
  if constexpr (L == 16) {  // half a vector at the end
    if (const size_t rest = work.columns % L; rest > 0 && rest <= L / 2) {
      whole = work.columns - rest;
      walk<L / 2, K, S, 1>(work, whole);
    }
  }
  size_t left = (whole + L - 1) / L;
  for (size_t parts = (left + MOST - 1) / MOST; parts > 0; --parts) {
    const size_t vectors = (left + parts - 1) / parts;
    left -= vectors;
    walk_of<L, K, S, MOST>(work, left * L, vectors);
  }
}

// Any taps.
template <int L, int V>
void taps_of(const secateur_depthwise& work, size_t row, size_t column) {
  Vector<L> sums[V];
#pragma GCC unroll 16
  for (int v = 0; v < V; ++v) sums[v] = splat<L>(work.bias);
  const float* x = work.x + row * work.step * work.x_row + column * work.step;
  for (size_t i = 0; i < work.taps; ++i) {
    const Vector<L> weight = splat<L>(work.weights[i]);
    const float* pixels = x + work.places[i];
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) sums[v] += weight * load_step<L>(pixels + L * v * work.step, work.step);
  }
  put<L, V>(sums, work, row * work.y_row + column, first_lanes<L>(work.columns - column - L * (V - 1)));
}

template <int L, int V>
SECATEUR_INLINE void taps_of(const secateur_depthwise& work, size_t row, size_t column, size_t vectors) {
  if constexpr (V > 0) {
    if (vectors == size_t(V)) return taps_of<L, V>(work, row, column);
    taps_of<L, V - 1>(work, row, column, vectors);
  }
}

template <int L, int MOST>
void depthwise_plane(const secateur_depthwise& work) {
  if (work.kernel == 3) return work.step == 1 ? walks<L, MOST, 3, 1>(work) : walks<L, MOST, 3, 2>(work);
  if (work.kernel == 5) {
    constexpr int few = MOST < 3 ? MOST : (MOST + 1) / 2;
    return work.step == 1 ? walks<L, few, 5, 1>(work) : walks<L, few, 5, 2>(work);
  }
  constexpr int most = 4;
  for (size_t row = 0; row < work.rows; ++row) {
    size_t left = (work.columns + L - 1) / L, column = 0;
    for (size_t parts = (left + most - 1) / most; parts > 0; --parts) {
      const size_t vectors = (left + parts - 1) / parts;
      taps_of<L, most>(work, row, column, vectors);
      column += vectors * L;
      left -= vectors;
    }
  }
}

}  // namespace
