// Pooling of one plane.
#pragma once

#include "gather.h"

namespace {

template <int L>
SECATEUR_INLINE Vector<L> load_step(const float* p, size_t step) {
  if (step == 1) return load<L>(p);
  if (step == 2) return load_even<L>(p);
  float taken[L];
  for (size_t i = 0; i < L; ++i) taken[i] = p[i * step];
  return load<L>(taken);
}

// As torch: NaN wins.
template <int L>
SECATEUR_INLINE Vector<L> larger(Vector<L> x, Vector<L> best) {
  const Vector<L> most = x > best ? x : best;
  return x != x ? x : most;
}

template <int L>
SECATEUR_INLINE Vector<L> blank(Vector<L> x, const int32_t* mask) {
  typedef typename Floats<L>::ints Ints;
  typedef int32_t Loose __attribute__((vector_size(4 * L), aligned(4), may_alias));
  return (Vector<L>)((Ints)x & (Ints) * reinterpret_cast<const Loose*>(mask));
}

// First down the columns, which takes plain loads, into a line as long as a row; then along it.
template <int L>
void pool_plane(const secateur_pool& pool) {
  const size_t needed = (pool.floats - 1) * pool.step + pool.kernel;
  for (size_t row = 0; row < pool.rows; ++row) {
    const size_t top = row * pool.step;  // of the window, in rows of x and padding
    const size_t begin = top < pool.padding ? pool.padding - top : 0;
    const size_t left = pool.height + pool.padding - top;
    const size_t end = left < pool.kernel ? left : pool.kernel;
    const float share = 1.0f / float(pool.count_padding ? pool.kernel : end - begin);
    for (size_t column = 0; column < needed; column += L) {
      const float* x = pool.x + (top + begin) * pool.x_row + column;
      Vector<L> best = load<L>(x);
      for (size_t h = begin + 1; h < end; ++h) {
        x += pool.x_row;
        best = pool.average ? best + load<L>(x) : larger<L>(load<L>(x), best);
      }
      store<L>(pool.line + column, best);
    }
    for (size_t column = 0; column < pool.floats; column += L) {
      const float* line = pool.line + column * pool.step;
      Vector<L> best = pool.average ? Vector<L>{} : splat<L>(-__builtin_inff());
      for (size_t w = 0; w < pool.kernel; ++w) {
        const Vector<L> pixels = load_step<L>(line + w, pool.step);
        if (pool.average) {
          best += pixels;
        } else {
          const Vector<L> inside = load<L>(pool.inside + w * pool.floats + column);
          best = larger<L>(inside < 0.0f ? inside : pixels, best);
        }
      }
      if (pool.average) best *= load<L>(pool.scale + column) * share;
      store<L>(pool.y + row * pool.y_row + column, blank<L>(best, pool.mask + column));
    }
  }
}

// The same of 16 images side by side: a pixel is 16 floats.
template <int L>
void pool_images(const secateur_pool& pool) {
  const size_t width = pool.width, end_of_row = width + pool.padding;
  for (size_t row = 0; row < pool.rows; ++row) {
    const size_t top = row * pool.step, left = pool.height + pool.padding - top;
    const size_t begin = top < pool.padding ? pool.padding - top : 0, end = left < pool.kernel ? left : pool.kernel;
    const float* const x = pool.x + (top + begin) * pool.x_row + pool.padding * 16;  // of the image's first column
    for (size_t column = 0; column < width * 16; column += L) {
      Vector<L> best = load<L>(x + column);
      for (size_t h = 1; h < end - begin; ++h) {
        const Vector<L> pixels = load<L>(x + h * pool.x_row + column);
        best = pool.average ? best + pixels : larger<L>(pixels, best);
      }
      store<L>(pool.line + column, best);
    }
    for (size_t column = 0; column < pool.floats; ++column) {  // pixels of a row of y
      const size_t first = column * pool.step, last = first + pool.kernel;
      const size_t from = (first < pool.padding ? pool.padding : first) - pool.padding;
      const size_t to = (last < end_of_row ? last : end_of_row) - pool.padding;
      const size_t all = pool.kernel * pool.kernel, seen = (to - from) * (end - begin);
      const float scale = 1.0f / float(pool.count_padding ? all : seen);
      for (size_t lane = 0; lane < 16; lane += L) {
        const float* line = pool.line + from * 16 + lane;
        Vector<L> best = load<L>(line);
        for (size_t w = 1; w < to - from; ++w) {
          const Vector<L> pixels = load<L>(line + w * 16);
          best = pool.average ? best + pixels : larger<L>(pixels, best);
        }
        store<L>(pool.y + row * pool.y_row + column * 16 + lane, pool.average ? best * scale : best);
      }
    }
  }
}

template <int L>
void mean_images(const float* x, size_t n, float scale, float* y) {
  for (size_t lane = 0; lane < 16; lane += L) {
    Vector<L> sums[4] = {};
    size_t i = 0;
    for (; i + 4 <= n; i += 4) {
      for (size_t v = 0; v < 4; ++v) sums[v] += load<L>(x + (i + v) * 16 + lane);
    }
    for (; i < n; ++i) sums[0] += load<L>(x + i * 16 + lane);
    store<L>(y + lane, ((sums[0] + sums[1]) + (sums[2] + sums[3])) * scale);
  }
}

template <int L>
float mean(const float* x, size_t n, float scale) {
  Vector<L> sums[16 / L] = {};
  for (size_t i = 0; i < n; i += 16) {
    for (size_t v = 0; v < 16 / L; ++v) sums[v] += load<L>(x + i + v * L);
  }
  float lanes[16];
  for (size_t v = 0; v < 16 / L; ++v) store<L>(lanes + v * L, sums[v]);
  for (size_t step = 8; step > 0; step /= 2) {
    for (size_t i = 0; i < step; ++i) lanes[i] += lanes[i + step];
  }
  return lanes[0] * scale;
}

}  // namespace
