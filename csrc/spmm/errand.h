// What a kernel does between two groups of rows: a square of a finished panel becomes row-major. Beside multiplications,
// which wait for nothing but each other, that costs little; alone it waits for the second cache. (By a call instead of
// in line, half of the gain is gone.)
#pragma once

#include "../kernels.h"

namespace {

constexpr size_t errand_run = 96;  // features between two rows of zeros (program/panel.h)

template <typename Square>
inline __attribute__((always_inline)) void next_square(secateur_errand* errand) {
  constexpr size_t T = Square::side;
  if (errand == nullptr || errand->sample == errand->width) return;
  const size_t f = errand->feature, s = errand->sample, width = errand->width, stride = errand->stride;
  const float* const from = errand->panel + (f + f / errand_run) * width + s;
  float* const to = errand->samples + s * stride + f;
  for (size_t i = 0; i < 16; i += T) {
    for (size_t j = 0; j < 16; j += T) Square::run(from + i * width + j, width, to + j * stride + i, stride);
  }
  errand->feature += 16;
  if (errand->feature < errand->features) return;
  errand->feature = 0;
  errand->sample += 16;
}

}  // namespace
