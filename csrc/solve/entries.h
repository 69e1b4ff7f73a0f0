// The entry points of one instruction set.
#pragma once

#include "elimination.h"
#include "refit.h"

// Vectors of L doubles; R panels of 8 rows by N columns are summed up in registers.
#define SECATEUR_SOLVERS(isa, L, R, N)                                                                                 \
  extern "C" {                                                                                                         \
  bool secateur_refit_row_##isa(const double* gram, size_t columns, const int32_t* support, size_t n, double* values,  \
                                double* scratch) {                                                                     \
    return refit<L, R, N>(Row{gram, columns, support, n, values}, values, scratch);                                    \
  }                                                                                                                    \
  void secateur_obs_columns_##isa(double* weights, double* errors, uint8_t* kept, const double* factor, size_t stride, \
                                  size_t width, size_t keep, size_t of) {                                              \
    eliminate_columns(weights, errors, kept, factor, stride, width, keep, of);                                         \
  }                                                                                                                    \
  size_t secateur_obs_order_##isa(double* inverse, size_t columns, double* weights, const uint8_t* kept, size_t keep,  \
                                  size_t of, int32_t* order, double* costs) {                                          \
    return eliminate_greedily(inverse, columns, weights, kept, keep, of, order, costs);                                \
  }                                                                                                                    \
  }
