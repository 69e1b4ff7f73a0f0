// Row-major samples to feature-major panels and back, by transposes of T x T floats in registers. What is left over at
// the edges goes through a square of its own.
#pragma once

#include <string.h>

#include "../kernels.h"

namespace {

// Samples so far apart share their places in the first cache, which holds 8 lines of one kind: 16 at once push each
// other out.
inline bool crowded(size_t stride) { return stride * sizeof(float) % 4096 == 0; }

// Square::run(from, from_stride, to, to_stride) transposes Square::side rows of as many floats, and Square::part makes
// Square::few rows of the result.
template <typename Square>
inline void samples_to_panel(const float* samples, size_t n, size_t stride, size_t features, size_t width, float* panel) {
  constexpr size_t T = Square::side, span = 6 * T, apart = span + T;
  alignas(64) float copy[T * apart];
  for (size_t s = 0; s < width; s += T) {
    const float* rows = samples + s * stride;
    size_t step = stride;
    for (size_t f = 0; f < features; f += T) {
      if (s + T > n || f + T > features) {
        float edge[T * T] = {}, turned[T * T];
        const size_t wide = features - f < T ? features - f : T;
        for (size_t i = 0; i < T && s + i < n; ++i) memcpy(edge + i * T, samples + (s + i) * stride + f, wide * sizeof(float));
        Square::run(edge, T, turned, T);
        for (size_t i = 0; i < wide; ++i) memcpy(panel + (f + i) * width + s, turned + i * T, T * sizeof(float));
        continue;
      }
      if (f % span == 0 && crowded(stride)) {  // sample by sample to where they lie apart
        const size_t wide = features - f < span ? features - f : span;
        for (size_t i = 0; i < T; ++i) memcpy(copy + i * apart, samples + (s + i) * stride + f, wide * sizeof(float));
        rows = copy - f;
        step = apart;
      }
      Square::run(rows + f, step, panel + f * width + s, width);
    }
  }
}

template <typename Square>
inline void panel_to_samples(const float* panel, size_t n, size_t stride, size_t features, size_t width, float* samples) {
  constexpr size_t T = Square::side;
  const size_t rows = crowded(stride) ? Square::few : T, whole = features - features % T;
  for (size_t s = 0; s < n; s += T) {
    float* const to = samples + s * stride;
    for (size_t i = 0; s + T <= n && i < T; i += rows) {
      for (size_t f = 0; f < whole; f += T) {
        if (rows == T) Square::run(panel + f * width + s, width, to + f, stride);
        else Square::part(panel + f * width + s + i, width, to + i * stride + f, stride);
      }
    }
    for (size_t f = s + T <= n ? whole : 0; f < features; f += T) {
      float edge[T * T] = {}, turned[T * T];
      const size_t wide = features - f < T ? features - f : T;
      for (size_t i = 0; i < wide; ++i) memcpy(edge + i * T, panel + (f + i) * width + s, T * sizeof(float));
      Square::run(edge, T, turned, T);
      for (size_t i = 0; i < T && s + i < n; ++i) memcpy(to + i * stride + f, turned + i * T, wide * sizeof(float));
    }
  }
}

}  // namespace
