// The entry points of one instruction set.
#pragma once

#include "depthwise.h"
#include "even.h"
#include "gather.h"
#include "pool.h"
#include "sparse.h"

// Vectors of L floats. ONE, TWO, FOUR: how many of them a group of so many output channels keeps in registers. LINE: how
// many of an output row a depthwise convolution does, of which several rows are under way.
#define SECATEUR_CONV(isa, L, ONE, TWO, FOUR, LINE)                                                                    \
  extern "C" {                                                                                                         \
  void secateur_conv_blocks_##isa(const secateur_conv_stream* stream, const secateur_conv_tile* tile) {                \
    if (L > 8 && tile->lanes == 8) return run_units<Blocks, L < 8 ? L : 8, ONE, TWO, FOUR>(stream, tile);              \
    run_units<Blocks, L, ONE, TWO, FOUR>(stream, tile);                                                                \
  }                                                                                                                    \
  void secateur_conv_rows_##isa(const secateur_conv_stream* stream, const secateur_conv_tile* tile) {                  \
    if (L > 8 && tile->lanes == 8) return run_units<Rows, L < 8 ? L : 8, 0, TWO, FOUR>(stream, tile);                  \
    run_units<Rows, L, 0, TWO, FOUR>(stream, tile);                                                                    \
  }                                                                                                                    \
  void secateur_conv_even_##isa(const secateur_conv_stream* stream, const secateur_conv_tile* tile) {                  \
    if (L > 8 && tile->lanes == 8) return run_steps<Even, L < 8 ? L : 8, 4, FOUR>(stream, tile);                       \
    run_steps<Even, L, 4, FOUR>(stream, tile);                                                                         \
  }                                                                                                                    \
  void secateur_conv_gather_##isa(const secateur_gather* gather) {                                                     \
    if (L > 8 && gather->floats % L != 0) return gather_tile<L < 8 ? L : 8>(*gather);                                  \
    gather_tile<L>(*gather);                                                                                           \
  }                                                                                                                    \
  void secateur_conv_depthwise_##isa(const secateur_depthwise* plane) { depthwise_plane<L, LINE>(*plane); }             \
  void secateur_conv_pool_##isa(const secateur_pool* pool) { pool_plane<L>(*pool); }                                   \
  float secateur_conv_mean_##isa(const float* x, size_t n, float scale) { return mean<L>(x, n, scale); }               \
  void secateur_conv_pool_images_##isa(const secateur_pool* pool) { pool_images<L>(*pool); }                           \
  void secateur_conv_mean_images_##isa(const float* x, size_t n, float scale, float* y) {                              \
    mean_images<L>(x, n, scale, y);                                                                                    \
  }                                                                                                                    \
  }
