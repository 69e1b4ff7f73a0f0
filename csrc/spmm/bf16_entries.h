// The entry points of one instruction set for pairs of bf16: SECATEUR_BF16(isa, L, WIDE, from_panel, from_samples, ell),
// with its two ways to round to pairs.
#pragma once

#include "bf16.h"
#include "products.h"

#define SECATEUR_BF16(isa, L, WIDE, from_panel, from_samples, ell)                                                     \
  SECATEUR_PRODUCTS(bf16_, isa, L, WIDE, Pairs, ell)                                                                   \
  extern "C" {                                                                                                         \
  void secateur_bf16_from_panel_##isa(const float* panel, size_t features, size_t width, float* pairs) {               \
    from_panel(panel, features, width, pairs);                                                                         \
  }                                                                                                                    \
  void secateur_bf16_from_samples_##isa(const float* samples, size_t n, size_t stride, size_t features, size_t width,  \
                                        float* pairs) {                                                                \
    from_samples(samples, n, stride, features, width, pairs);                                                          \
  }                                                                                                                    \
  }
