// The entry points of one instruction set: SECATEUR_SPMM(isa, L, WIDE, Square, ell, nm), with L floats in a vector, tiles
// of up to WIDE vectors, its transpose, its ell and its nm.
#pragma once

#include "layout.h"
#include "nm.h"
#include "norm.h"
#include "products.h"

#define SECATEUR_SPMM(isa, L, WIDE, Square, ell, nm)                                                                   \
  SECATEUR_PRODUCTS(, isa, L, WIDE, Singles, ell)                                                                      \
  extern "C" {                                                                                                         \
  void secateur_spmv_nm_##isa(const secateur_stream* s, const secateur_panel* p) { nm<Singles, L>(s, p); }             \
  void secateur_to_panel_##isa(const float* samples, size_t n, size_t stride, size_t features, size_t width, float* panel) {\
    samples_to_panel<Square>(samples, n, stride, features, width, panel);                                               \
  }                                                                                                                     \
  void secateur_from_panel_##isa(const float* panel, size_t n, size_t stride, size_t features, size_t width, float* samples) {\
    panel_to_samples<Square>(panel, n, stride, features, width, samples);                                               \
  }                                                                                                                     \
  void secateur_finish_errand_##isa(secateur_errand* errand) {                                                          \
    while (errand->sample < errand->width) next_square<Square>(errand);                                                 \
  }                                                                                                                     \
  void secateur_add_##isa(const float* x, const float* other, float* y, size_t n, int activation) {                     \
    add_of<L>(x, other, y, n, activation);                                                                              \
  }                                                                                                                     \
  void secateur_layer_norm_##isa(const float* x, float* y, size_t features, size_t width, const float* scale,           \
                                 const float* shift, float eps) {                                                       \
    norm_of<L>(x, y, features, width, scale, shift, eps);                                                               \
  }                                                                                                                     \
  }
