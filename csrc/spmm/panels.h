// The sparse kernels for panels of 16, 32 and 64 samples, as templates over a vector of `L` floats (GCC and Clang vector
// extensions). A tile of 4 rows and V vectors of samples lives in registers while its weights stream by; a weight is
// broadcast once for V products, and a loaded activation serves every row of its column's pattern.
// A weight and an activation are words of 32 bits: what they mean, Math says (vectors.h: float32; bf16.h: pairs of bf16;
// int8.h: quads of int8, whose sums become floats after the last K-block).
// The anonymous namespace gives each including file its own copy, compiled with its own flags and never merged.
#pragma once

#include <string.h>

#include "errand.h"
#include "vectors.h"

namespace {

template <int L, int R, int V>
struct Tile {
  typename Floats<L>::type at[R][V];
};

// Rows that follow each other.
struct Run {
  size_t first;
  SECATEUR_INLINE size_t at(int r) const { return first + size_t(r); }
};

// Four rows named one by one.
struct Named {
  const uint16_t* names;
  SECATEUR_INLINE size_t at(int r) const { return names[r]; }
};

// What the tile starts from: y of the K-blocks before, or bias and residual.
template <typename Math, size_t W, int L, int R, int V, typename Rows>
SECATEUR_INLINE void begin_tile(Tile<L, R, V>& tile, const secateur_panel& panel, Rows rows, size_t column) {
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    const float* y = panel.y + rows.at(r) * W + column;
    if constexpr (Math::whole) {
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) tile.at[r][v] = panel.first ? Vector<L>{} : load<L>(y + L * v);
      continue;
    }
    const float bias = panel.bias != nullptr ? panel.bias[rows.at(r)] : 0.0f;
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) tile.at[r][v] = panel.first ? splat<L>(bias) : load<L>(y + L * v);
    if (!panel.first || panel.residual == nullptr) continue;
    const float* residual = panel.residual + rows.at(r) * W + column;
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) tile.at[r][v] += load<L>(residual + L * v);
  }
}

// In memory, after the tile was stored: a loop over the tile itself would force it out of the registers.
template <int L>
__attribute__((noinline)) void activate_run(float* y, size_t n, int activation) {
  for (size_t i = 0; i < n; i += L) store<L>(y + i, activate<L>(load<L>(y + i), activation));
}

template <typename Math, size_t W, int L, int R, int V, typename Rows>
SECATEUR_INLINE void end_tile(Tile<L, R, V>& tile, const secateur_panel& panel, Rows rows, size_t column) {
  if constexpr (Math::whole) {
    if (panel.last) Math::template finish<W>(tile, panel, rows, column);
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    float* y = panel.y + rows.at(r) * W + column;
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) store<L>(y + L * v, tile.at[r][v]);
  }
  if (panel.last && panel.activation != secateur_none) {
    for (int r = 0; r < R; ++r) activate_run<L>(panel.y + rows.at(r) * W + column, L * V, panel.activation);
  }
}

// `n` columns that all have pattern P.
template <typename Math, int P, int L, int V, size_t W, typename Index>
SECATEUR_INLINE void run_pattern(Tile<L, 4, V>& tile, size_t n, const float* x, const Index*& index, const float*& value) {
  constexpr int rows = (P & 1) + (P >> 1 & 1) + (P >> 2 & 1) + (P >> 3 & 1);
  const Index* const end = index + n;
  for (; index != end; ++index, value += rows) {
    const float* column = x + size_t(*index) * W;
    typename Floats<L>::type activation[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) activation[v] = load<L>(column + L * v);
    int next = 0;
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
      if (!(P >> r & 1)) continue;
      const Vector<L> weight = Math::template splat<L>(value + next++);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) tile.at[r][v] = Math::template add<L>(tile.at[r][v], weight, activation[v]);
    }
  }
}

template <typename Math, int P, int L, int V, size_t W, typename Index>
SECATEUR_INLINE void run_patterns(Tile<L, 4, V>& tile, const Index* counts, const float* x, const Index*& index,
                                  const float*& value) {
  if constexpr (P <= 15) {
    run_pattern<Math, P, L, V, W>(tile, counts[P - 1], x, index, value);
    run_patterns<Math, P + 1, L, V, W>(tile, counts, x, index, value);
  }
}

template <typename Math, int L, int V, size_t W, typename Index>
void rows_of_width(const secateur_stream& stream, const secateur_panel& panel) {
  const Index* counts = static_cast<const Index*>(stream.counts);
  const Index* index = static_cast<const Index*>(stream.index);
  const float* value = stream.values;
  for (size_t group = 0; group < stream.groups; ++group, counts += 15) {
    const Index* const index_here = index;
    const float* const value_here = value;
    for (size_t column = 0; column < W; column += L * V) {
      index = index_here;
      value = value_here;
      Tile<L, 4, V> tile;
      begin_tile<Math, W>(tile, panel, Run{4 * group}, column);
      run_patterns<Math, 1, L, V, W>(tile, counts, panel.x + column, index, value);
      end_tile<Math, W>(tile, panel, Run{4 * group}, column);
    }
  }
}

// Four rows in step: no branch depends on the weights but the number of steps, which seldom changes from group to group.
template <typename Math, int L, int V, size_t W, typename Index>
void even_of_width(const secateur_stream& stream, const secateur_panel& panel) {
  const uint16_t* header = static_cast<const uint16_t*>(stream.counts);
  const Index* index = static_cast<const Index*>(stream.index);
  const float* value = stream.values;
  for (size_t group = 0; group < stream.groups; ++group, header += 5) {
    const size_t n = header[0];
    const Named rows{header + 1};
    for (size_t column = 0; column < W; column += L * V) {
      const float* x = panel.x + column;
      Tile<L, 4, V> tile;
      begin_tile<Math, W>(tile, panel, rows, column);
      for (size_t i = 0; i < 4 * n; i += 4) {
        Vector<L> weights[4];
        Math::template splat4<L>(value + i, weights);
        typename Four<Index>::type four;  // one load of four indices: loads are what these kernels have too many of
        memcpy(&four, index + i, sizeof four);
#pragma GCC unroll 4
        for (int r = 0; r < 4; ++r) {
          const float* activation = x + size_t(Index(four >> 8 * sizeof(Index) * size_t(backwards ? 3 - r : r))) * W;
#pragma GCC unroll 8
          for (int v = 0; v < V; ++v) {
            tile.at[r][v] = Math::template add<L>(tile.at[r][v], weights[r], load<L>(activation + L * v));
          }
        }
      }
      end_tile<Math, W>(tile, panel, rows, column);
    }
    index += 4 * n;
    value += 4 * n;
  }
}

// One row. V vectors alone are too few chains for the latency of an addition, so S sums run side by side.
template <typename Math, int L, int V, int S, size_t W>
void csr_of_width(const secateur_stream& stream, const secateur_panel& panel) {
  const uint16_t* counts = static_cast<const uint16_t*>(stream.counts);
  const uint16_t* index = static_cast<const uint16_t*>(stream.index);
  const float* value = stream.values;
  for (size_t row = 0; row < stream.groups; ++row) {
    const size_t n = counts[row];
    for (size_t column = 0; column < W; column += L * V) {
      const float* x = panel.x + column;
      Tile<L, 1, V> tile;
      begin_tile<Math, W>(tile, panel, Run{row}, column);
      Tile<L, S, V> sums{};
      size_t i = 0;
      for (; i + S <= n; i += S) {
#pragma GCC unroll 4
        for (size_t s = 0; s < S; ++s) {
          const Vector<L> weight = Math::template splat<L>(value + i + s);
#pragma GCC unroll 8
          for (int v = 0; v < V; ++v) {
            sums.at[s][v] = Math::template add<L>(sums.at[s][v], weight, load<L>(x + size_t(index[i + s]) * W + L * v));
          }
        }
      }
      for (; i < n; ++i) {
        const Vector<L> weight = Math::template splat<L>(value + i);
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) {
          tile.at[0][v] = Math::template add<L>(tile.at[0][v], weight, load<L>(x + size_t(index[i]) * W + L * v));
        }
      }
#pragma GCC unroll 4
      for (int s = 0; s < S; ++s) {
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) tile.at[0][v] = Math::plus(tile.at[0][v], sums.at[s][v]);
      }
      end_tile<Math, W>(tile, panel, Run{row}, column);
    }
    index += n;
    value += n;
  }
}

// Products of 4 rows of a block with one column.
template <typename Math, int L, int V>
SECATEUR_INLINE void add_column(Tile<L, 4, V>& tile, const float* x, const float* weights) {
  Vector<L> activation[V];
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) activation[v] = load<L>(x + L * v);
#pragma GCC unroll 4
  for (int r = 0; r < 4; ++r) {
    const Vector<L> weight = Math::template splat<L>(weights + r);
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) tile.at[r][v] = Math::template add<L>(tile.at[r][v], weight, activation[v]);
  }
}

// Blocks: 4 rows at a time, whatever the block's height, so that four rows share every load. With one vector of samples
// two sums run side by side.
template <typename Math, int L, int V, size_t W, typename Index, typename Square>
void blocks_of_width(const secateur_stream& stream, const secateur_panel& panel) {
  const Index* counts = static_cast<const Index*>(stream.counts);
  const Index* index = static_cast<const Index*>(stream.index);
  const float* value = stream.values;
  const size_t unit = stream.unit;
  for (size_t group = 0; group < stream.groups; ++group) {
    const size_t n = counts[group];
    for (size_t part = 0; part < unit; part += 4) {
      for (size_t column = 0; column < W; column += L * V) {
        const float* x = panel.x + column;
        const float* weights = value + part;
        Tile<L, 4, V> tile;
        begin_tile<Math, W>(tile, panel, Run{group * unit + part}, column);
        size_t i = 0;
        if constexpr (V == 1) {
          Tile<L, 4, V> other{};
          for (; i + 2 <= n; i += 2, weights += 2 * unit) {
            add_column<Math, L, V>(tile, x + size_t(index[i]) * W, weights);
            add_column<Math, L, V>(other, x + size_t(index[i + 1]) * W, weights + unit);
          }
#pragma GCC unroll 4
          for (int r = 0; r < 4; ++r) tile.at[r][0] = Math::plus(tile.at[r][0], other.at[r][0]);
        }
        for (; i < n; ++i, weights += unit) add_column<Math, L, V>(tile, x + size_t(index[i]) * W, weights);
        end_tile<Math, W>(tile, panel, Run{group * unit + part}, column);
      }
      next_square<Square>(panel.errand);
    }
    index += n;
    value += n * unit;
  }
}

// The widths. WIDE vectors of a panel of 64 fit the registers at once; where that is fewer than the panel has, it is
// walked in pieces.
template <typename Math, int L, int WIDE, typename Index>
SECATEUR_INLINE void rows_of(const secateur_stream* stream, const secateur_panel* panel) {
  switch (panel->width) {
    case 64: return rows_of_width<Math, L, WIDE, 64, Index>(*stream, *panel);
    case 32: return rows_of_width<Math, L, least(WIDE, 32 / L), 32, Index>(*stream, *panel);
    case 16: return rows_of_width<Math, L, least(WIDE, 16 / L), 16, Index>(*stream, *panel);
  }
}

template <typename Math, int L, int WIDE, typename Index>
SECATEUR_INLINE void even_of(const secateur_stream* stream, const secateur_panel* panel) {
  switch (panel->width) {
    case 64: return even_of_width<Math, L, WIDE, 64, Index>(*stream, *panel);
    case 32: return even_of_width<Math, L, least(WIDE, 32 / L), 32, Index>(*stream, *panel);
    case 16: return even_of_width<Math, L, least(WIDE, 16 / L), 16, Index>(*stream, *panel);
  }
}

template <typename Math, int L, int WIDE>
SECATEUR_INLINE void csr_of(const secateur_stream* stream, const secateur_panel* panel) {
  switch (panel->width) {
    case 64: return csr_of_width<Math, L, WIDE, 1, 64>(*stream, *panel);
    case 32: return csr_of_width<Math, L, least(WIDE, 32 / L), 2, 32>(*stream, *panel);
    case 16: return csr_of_width<Math, L, least(WIDE, 16 / L), 4, 16>(*stream, *panel);
  }
}

template <typename Math, int L, int WIDE, typename Index, typename Square>
SECATEUR_INLINE void blocks_of(const secateur_stream* stream, const secateur_panel* panel) {
  switch (panel->width) {
    case 64: return blocks_of_width<Math, L, WIDE, 64, Index, Square>(*stream, *panel);
    case 32: return blocks_of_width<Math, L, least(WIDE, 32 / L), 32, Index, Square>(*stream, *panel);
    case 16: return blocks_of_width<Math, L, least(WIDE, 16 / L), 16, Index, Square>(*stream, *panel);
  }
}

}  // namespace
