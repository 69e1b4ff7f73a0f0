// Cholesky of the kept part of a gram, left-looking, in panels of 8 rows. The right side is one more row of the matrix, so
// that forward substitution comes for free. Panel p holds the columns 0 .. 8 p + 7, column by column, 8 rows each.
#pragma once

#include "kernels.h"

namespace {

#define SECATEUR_SOLVE inline __attribute__((always_inline))

constexpr double least_pivot = 1e-13;  // of the diagonal

// Vectors of L doubles; a column of a panel is 8 / L of them.
template <int L>
struct Doubles;
template <>
struct Doubles<2> {
  typedef double type __attribute__((vector_size(16)));
};
template <>
struct Doubles<4> {
  typedef double type __attribute__((vector_size(32)));
};
template <>
struct Doubles<8> {
  typedef double type __attribute__((vector_size(64)));
};

// Where column k of a panel begins.
SECATEUR_SOLVE size_t place(size_t panel, size_t k) { return 32 * panel * (panel + 1) + 8 * k; }

struct Row {
  const double* gram;
  size_t columns;
  const int32_t* support;
  size_t n;
  const double* values;

  // Rows 8 p .. 8 p + 7 of one column of the matrix whose last row is the right side.
  SECATEUR_SOLVE void gather(size_t panel, size_t k, double* out) const {
    const size_t first = 8 * panel;
    if (k < n && first + 8 <= n) {
      const double* line = gram + size_t(support[k]) * columns;
#pragma GCC unroll 8
      for (size_t r = 0; r < 8; ++r) out[r] = line[support[first + r]];
      return;
    }
    for (size_t r = 0; r < 8; ++r) {
      const size_t row = first + r;
      out[r] = 0;
      if (k >= n || row > n) continue;
      out[r] = row == n ? values[k] : gram[size_t(support[k]) * columns + size_t(support[row])];
    }
  }
};

// `tile`: the 8 columns of panel `block` in R panels from `first` on, 8 rows each. Becomes A - L L^T so far, N columns at
// a time.
template <int L, int R, int N>
SECATEUR_SOLVE void update(const Row& row, const double* panels, size_t first, size_t block, double (&tile)[R][8][8]) {
  typedef typename Doubles<L>::type Vector;
  constexpr int W = 8 / L;
  for (int r = 0; r < R; ++r) {
    for (size_t c = 0; c < 8; ++c) row.gather(first + r, 8 * block + c, tile[r][c]);
  }
  const Vector* own[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) own[r] = reinterpret_cast<const Vector*>(panels + place(first + r, 0));
#pragma GCC unroll 1
  for (int c = 0; c < 8; c += N) {
    Vector sums[R][N][W];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int j = 0; j < N; ++j)
#pragma GCC unroll 8
        for (int w = 0; w < W; ++w) sums[r][j][w] = reinterpret_cast<const Vector*>(tile[r][c + j])[w];
    const double* other = panels + place(block, 0) + c;
#pragma GCC unroll 1
    for (size_t k = 0; k < 8 * block; ++k) {
#pragma GCC unroll 8
      for (int j = 0; j < N; ++j) {
        const double factor = other[8 * k + j];
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
          for (int w = 0; w < W; ++w) sums[r][j][w] -= own[r][W * k + w] * factor;
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int j = 0; j < N; ++j)
#pragma GCC unroll 8
        for (int w = 0; w < W; ++w) reinterpret_cast<Vector*>(tile[r][c + j])[w] = sums[r][j][w];
  }
}

// The block on the diagonal; what stands above it is not read again.
template <int L, int N>
SECATEUR_SOLVE bool diagonal(const Row& row, double* panels, size_t block, double (&inverse)[8]) {
  alignas(64) double tile[1][8][8];
  update<L, 1, N>(row, panels, block, block, tile);
  for (size_t c = 0; c < 8; ++c) {
    double* own = tile[0][c];
    const size_t k = 8 * block + c;
    inverse[c] = 0;
    if (k >= row.n) continue;
    const size_t at = size_t(row.support[k]);
    if (!(own[c] > least_pivot * row.gram[at * row.columns + at])) return false;
    inverse[c] = 1.0 / __builtin_sqrt(own[c]);
    double* kept = panels + place(block, k);
    for (size_t r = 0; r < 8; ++r) kept[r] = own[r] = own[r] * inverse[c];
    for (size_t e = c + 1; e < 8; ++e) {
      for (size_t r = 0; r < 8; ++r) tile[0][e][r] -= own[r] * own[e];
    }
  }
  return true;
}

template <int L, int R, int N>
SECATEUR_SOLVE void below(const Row& row, double* panels, size_t first, size_t block, const double (&inverse)[8]) {
  typedef typename Doubles<L>::type Vector;
  constexpr int W = 8 / L;
  alignas(64) double tile[R][8][8];
  update<L, R, N>(row, panels, first, block, tile);
  const double* corner = panels + place(block, 8 * block);
#pragma GCC unroll 8
  for (int w = 0; w < W; ++w) {
#pragma GCC unroll 8
    for (int c = 0; c < 8; ++c) {
      Vector now[R];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) now[r] = reinterpret_cast<const Vector*>(tile[r][c])[w];
#pragma GCC unroll 8
      for (int d = 0; d < c; ++d) {
        const double factor = corner[8 * d + c];
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) now[r] -= reinterpret_cast<const Vector*>(tile[r][d])[w] * factor;
      }
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        now[r] = now[r] * inverse[c];
        reinterpret_cast<Vector*>(tile[r][c])[w] = now[r];
        reinterpret_cast<Vector*>(panels + place(first + r, 8 * block + c))[w] = now[r];
      }
    }
  }
}

// x from L^T x = y, where y is the row behind the matrix.
SECATEUR_SOLVE void backward(const Row& row, double* panels, size_t count, double* inverses, double* x, double* out) {
  const size_t n = row.n, full = (n + 7) / 8;
  for (size_t i = 0; i < 8 * count; ++i) x[i] = 0;
  for (size_t block = full; block-- > 0;) {
    double sums[8][8] = {};
    for (size_t panel = block + 1; panel < count; ++panel) {
      const double* from = panels + place(panel, 8 * block);
      for (size_t c = 0; c < 8; ++c) {
        for (size_t r = 0; r < 8; ++r) sums[c][r] += from[8 * c + r] * x[8 * panel + r];
      }
    }
    for (size_t c = 8; c-- > 0;) {
      const size_t k = 8 * block + c;
      if (k >= n) continue;
      double value = panels[place(n / 8, k) + n % 8];
      for (size_t r = 0; r < 8; ++r) value -= sums[c][r];
      for (size_t e = c + 1; e < 8 && 8 * block + e < n; ++e) value -= panels[place(block, k) + e] * x[8 * block + e];
      x[k] = value * inverses[k];
    }
  }
  for (size_t k = 0; k < n; ++k) out[k] = x[k];
}

template <int L, int R, int N>
SECATEUR_SOLVE bool refit(const Row& row, double* values, double* panels) {
  const size_t count = (row.n + 1 + 7) / 8, full = (row.n + 7) / 8;
  double* inverses = panels + place(count, 0);  // 8 per panel, then x
  for (size_t block = 0; block < full; ++block) {
    double inverse[8];
    if (!diagonal<L, N>(row, panels, block, inverse)) return false;
    for (size_t c = 0; c < 8; ++c) inverses[8 * block + c] = inverse[c];
    size_t panel = block + 1;
    for (; panel + R <= count; panel += R) below<L, R, N>(row, panels, panel, block, inverse);
    for (; panel < count; ++panel) below<L, 1, N>(row, panels, panel, block, inverse);
  }
  backward(row, panels, count, inverses, inverses + 8 * count, values);
  return true;
}

}  // namespace
