// Elimination of columns one by one: in order (SparseGPT), and cheapest first (OBC).
#pragma once

#include "kernels.h"

namespace {

// Of the `of` columns from `first` on: the `of - keep` cheapest go.
inline __attribute__((always_inline)) void choose_group(const double* weights, uint8_t* kept, const double* factor,
                                                        size_t stride, size_t first, size_t keep, size_t of) {
  double costs[64];
  for (size_t i = 0; i < of; ++i) {
    const double ratio = weights[first + i] / factor[(first + i) * stride + first + i];
    costs[i] = kept[first + i] != 0 ? ratio * ratio : -1.0;
    kept[first + i] = 1;
  }
  for (size_t gone = keep; gone < of; ++gone) {
    size_t least = of;
    for (size_t i = 0; i < of; ++i) {
      if (kept[first + i] != 0 && (least == of || costs[i] < costs[least])) least = i;
    }
    kept[first + least] = 0;
  }
  for (size_t i = 0; i < of; ++i) kept[first + i] = uint8_t(kept[first + i] != 0 && costs[i] >= 0);
}

inline __attribute__((always_inline)) void eliminate_columns(double* __restrict weights, double* __restrict errors,
                                                             uint8_t* kept, const double* __restrict factor,
                                                             size_t stride, size_t width, size_t keep, size_t of) {
  for (size_t j = 0; j < width; ++j) {
    if (of > 0 && j % of == 0 && j + of <= width) choose_group(weights, kept, factor, stride, j, keep, of);
    const double* line = factor + j * stride;
    errors[j] = kept[j] != 0 ? 0.0 : weights[j] / line[j];
    if (kept[j] != 0) continue;
    const double error = errors[j];
    weights[j] = 0;
    for (size_t k = j + 1; k < width; ++k) weights[k] -= error * line[k];
  }
}

struct Elimination {
  double* __restrict inverse;
  size_t columns;
  double* __restrict weights;

  // Takes column q out; the others are refitted. Columns taken out before have a zero row, so they cost nothing more.
  inline __attribute__((always_inline)) void remove(size_t q) const {
    const double* __restrict line = inverse + q * columns;
    const double scale = 1.0 / line[q], error = weights[q] * scale;
    for (size_t k = 0; k < columns; ++k) weights[k] -= error * line[k];
    weights[q] = 0;
    for (size_t i = 0; i < columns; ++i) {
      const double factor = inverse[i * columns + q] * scale;
      if (i == q || factor == 0) continue;
      double* __restrict other = inverse + i * columns;
      for (size_t k = 0; k < columns; ++k) other[k] -= factor * line[k];
    }
    for (size_t k = 0; k < columns; ++k) inverse[q * columns + k] = 0;
    for (size_t k = 0; k < columns; ++k) inverse[k * columns + q] = 0;
  }
};

inline __attribute__((always_inline)) size_t eliminate_greedily(double* inverse, size_t columns, double* weights,
                                                                const uint8_t* kept, size_t keep, size_t of,
                                                                int32_t* order, double* costs) {
  const Elimination row{inverse, columns, weights};
  for (size_t q = 0; q < columns; ++q) {
    if (kept[q] == 0) row.remove(q);
  }
  size_t steps = 0;
  for (;;) {
    size_t least = columns;
    double cost = 0;
    for (size_t q = 0; q < columns; ++q) {
      const double pivot = inverse[q * columns + q];
      if (!(pivot > 0)) continue;  // gone
      if (of > 0) {
        const size_t first = q / of * of;
        if (first + of > columns) continue;
        size_t left = 0;
        for (size_t i = first; i < first + of; ++i) left += inverse[i * columns + i] > 0;
        if (left <= keep) continue;
      }
      const double here = weights[q] * weights[q] / pivot;
      if (least == columns || here < cost) least = q, cost = here;
    }
    if (least == columns) return steps;
    row.remove(least);
    order[steps] = int32_t(least);
    costs[steps++] = cost;
  }
}

}  // namespace
