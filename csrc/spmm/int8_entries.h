// The entry points of one instruction set for quads of int8: SECATEUR_INT8(isa, L, WIDE, from_panel, from_samples, ell).
#pragma once

#include "int8.h"
#include "products.h"

#define SECATEUR_INT8(isa, L, WIDE, from_panel, from_samples, ell)                                                     \
  SECATEUR_PRODUCTS(int8_, isa, L, WIDE, Quads, ell)                                                                   \
  extern "C" {                                                                                                         \
  void secateur_int8_grid_of_panel_##isa(const float* panel, size_t rows, size_t width, const secateur_grid* grid) {   \
    grid_of_panel<L>(panel, rows, width, *grid);                                                                       \
  }                                                                                                                    \
  void secateur_int8_grid_of_samples_##isa(const float* samples, size_t n, size_t stride, size_t features,             \
                                           const secateur_grid* grid) {                                                \
    grid_of_samples<L>(samples, n, stride, features, *grid);                                                           \
  }                                                                                                                    \
  void secateur_int8_from_panel_##isa(const float* panel, size_t features, size_t width, const secateur_grid* grid,    \
                                      float* quads) {                                                                  \
    from_panel(panel, features, width, *grid, quads);                                                                  \
  }                                                                                                                    \
  void secateur_int8_from_samples_##isa(const float* samples, size_t n, size_t stride, size_t features, size_t width,  \
                                        const secateur_grid* grid, float* quads) {                                     \
    from_samples(samples, n, stride, features, width, *grid, quads);                                                   \
  }                                                                                                                    \
  }
