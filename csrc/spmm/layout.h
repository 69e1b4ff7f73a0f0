// Row-major samples to feature-major panels and back, by transposes of T x T floats in registers. What is left over at
// the edges goes through a square of its own.
#pragma once

#include <string.h>

#include "../kernels.h"

namespace {

// Square::run(from, from_stride, to, to_stride) transposes Square::side rows of as many floats.
template <typename Square>
inline void samples_to_panel(const float* samples, size_t n, size_t stride, size_t features, size_t width, float* panel) {
  constexpr size_t T = Square::side;
  for (size_t s = 0; s < width; s += T) {
    for (size_t f = 0; f < features; f += T) {
      if (s + T <= n && f + T <= features) {
        Square::run(samples + s * stride + f, stride, panel + f * width + s, width);
        continue;
      }
      float edge[T * T] = {}, turned[T * T];
      const size_t wide = features - f < T ? features - f : T;
      for (size_t i = 0; i < T && s + i < n; ++i) memcpy(edge + i * T, samples + (s + i) * stride + f, wide * sizeof(float));
      Square::run(edge, T, turned, T);
      for (size_t i = 0; i < wide; ++i) memcpy(panel + (f + i) * width + s, turned + i * T, T * sizeof(float));
    }
  }
}

template <typename Square>
inline void panel_to_samples(const float* panel, size_t n, size_t stride, size_t features, size_t width, float* samples) {
  constexpr size_t T = Square::side;
  for (size_t s = 0; s < n; s += T) {
    for (size_t f = 0; f < features; f += T) {
      if (s + T <= n && f + T <= features) {
        Square::run(panel + f * width + s, width, samples + s * stride + f, stride);
        continue;
      }
      float edge[T * T] = {}, turned[T * T];
      const size_t wide = features - f < T ? features - f : T;
      for (size_t i = 0; i < wide; ++i) memcpy(edge + i * T, panel + (f + i) * width + s, T * sizeof(float));
      Square::run(edge, T, turned, T);
      for (size_t i = 0; i < T && s + i < n; ++i) memcpy(samples + (s + i) * stride + f, turned + i * T, wide * sizeof(float));
    }
  }
}

}  // namespace
