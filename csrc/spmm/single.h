// One sample: y[M] = W x[K]. Scalar where the format gives no vectors; ell stands in a file of its own.
#pragma once

#include "vectors.h"

namespace {

template <typename Math>
SECATEUR_INLINE void begin_single(const secateur_panel& panel, size_t row, size_t n, float* sums) {
  for (size_t r = 0; r < n; ++r) {
    if constexpr (Math::whole) {
      sums[r] = panel.first ? 0.0f : panel.y[row + r];
      continue;
    }
    sums[r] = !panel.first ? panel.y[row + r] : panel.bias != nullptr ? panel.bias[row + r] : 0.0f;
    if (panel.first && panel.residual != nullptr) sums[r] += panel.residual[row + r];
  }
}

template <typename Math, int L>
SECATEUR_INLINE Vector<L> begin_vector(const secateur_panel& panel, size_t row) {
  if (!panel.first) return load<L>(panel.y + row);
  if constexpr (Math::whole) return Vector<L>{};
  const Vector<L> sum = panel.bias != nullptr ? load<L>(panel.bias + row) : Vector<L>{};
  return panel.residual != nullptr ? sum + load<L>(panel.residual + row) : sum;
}

// All rows at the end of the last K-block; y is padded to a multiple of 16.
template <typename Math, int L>
SECATEUR_INLINE void finish_single(const secateur_panel& panel, size_t rows) {
  if constexpr (Math::whole) {
    if (panel.last) Math::template finish_rows<L>(panel, rows);
  }
  if (!panel.last || panel.activation == secateur_none) return;
  for (size_t r = 0; r < rows; r += L) store<L>(panel.y + r, activate<L>(load<L>(panel.y + r), panel.activation));
}

template <typename Math, int L>
SECATEUR_INLINE void csr_single(const secateur_stream* stream, const secateur_panel* panel) {
  const uint16_t* counts = static_cast<const uint16_t*>(stream->counts);
  const uint16_t* index = static_cast<const uint16_t*>(stream->index);
  const float* value = stream->values;
  const float* x = panel->x;
  for (size_t row = 0; row < stream->groups; ++row) {
    const size_t n = counts[row];
    float sums[4];
    begin_single<Math>(*panel, row, 1, sums);
    sums[1] = sums[2] = sums[3] = 0.0f;
    size_t i = 0;
    for (; i + 4 <= n; i += 4) {
#pragma GCC unroll 4
      for (size_t s = 0; s < 4; ++s) sums[s] = Math::add_one(sums[s], value + i + s, x + index[i + s]);
    }
    for (; i < n; ++i) sums[i & 3] = Math::add_one(sums[i & 3], value + i, x + index[i]);
    panel->y[row] = Math::plus(Math::plus(sums[0], sums[1]), Math::plus(sums[2], sums[3]));
    index += n;
    value += n;
  }
  finish_single<Math, L>(*panel, stream->groups);
}

// B rows, four columns at a time, each with sums of its own.
template <typename Math, int L, int B, typename Index>
SECATEUR_INLINE void blocks_single_of(const secateur_stream& stream, const secateur_panel& panel) {
  constexpr int W = least(L, B);
  constexpr int V = B / W;
  const Index* counts = static_cast<const Index*>(stream.counts);
  const Index* index = static_cast<const Index*>(stream.index);
  const float* value = stream.values;
  for (size_t group = 0; group < stream.groups; ++group) {
    const size_t n = counts[group];
    float start[B];
    begin_single<Math>(panel, group * B, B, start);
    Vector<W> sums[4][V];
    for (int v = 0; v < V; ++v) {
      sums[0][v] = load<W>(start + W * v);
      for (int s = 1; s < 4; ++s) sums[s][v] = Vector<W>{};
    }
    size_t i = 0;
    for (; i + 4 <= n; i += 4, value += 4 * B) {
#pragma GCC unroll 4
      for (size_t s = 0; s < 4; ++s) {
        const Vector<W> x = Math::template splat<W>(panel.x + index[i + s]);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
          sums[s][v] = Math::template add<W>(sums[s][v], load<W>(value + s * B + size_t(W * v)), x);
        }
      }
    }
    for (; i < n; ++i, value += B) {
      const Vector<W> x = Math::template splat<W>(panel.x + index[i]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sums[0][v] = Math::template add<W>(sums[0][v], load<W>(value + W * v), x);
    }
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const Vector<W> halves[2] = {Math::plus(sums[0][v], sums[1][v]), Math::plus(sums[2][v], sums[3][v])};
      store<W>(panel.y + group * B + size_t(W * v), Math::plus(halves[0], halves[1]));
    }
    index += n;
  }
  finish_single<Math, L>(panel, stream.groups * B);
}

template <typename Math, int L, typename Index>
SECATEUR_INLINE void blocks_single(const secateur_stream* stream, const secateur_panel* panel) {
  switch (stream->unit) {
    case 4: return blocks_single_of<Math, L, 4, Index>(*stream, *panel);
    case 8: return blocks_single_of<Math, L, 8, Index>(*stream, *panel);
    case 16: return blocks_single_of<Math, L, 16, Index>(*stream, *panel);
  }
}

}  // namespace
