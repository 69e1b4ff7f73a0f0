// Words of four bytes: signed weights of four neighbouring inputs, or unsigned steps of what those inputs hold. A product
// of words is the sum of four products, in int32, and exact: what floats make of the sums comes after the last of them.
#pragma once

#include <string.h>

#include "panels.h"
#include "words.h"

namespace {

struct Quads {
  static constexpr bool whole = true;

  template <typename Sum>
  static SECATEUR_INLINE Sum plus(Sum a, Sum b) {
    if constexpr (sizeof(Sum) == sizeof(float)) {
      int32_t x, y;
      memcpy(&x, &a, sizeof x);
      memcpy(&y, &b, sizeof y);
      x += y;
      memcpy(&a, &x, sizeof x);
      return a;
    } else {
      typedef typename Floats<int(sizeof(Sum) / sizeof(float))>::ints Ints;
      return (Sum)((Ints)a + (Ints)b);
    }
  }

  template <int L>
  static SECATEUR_INLINE Vector<L> splat(const float* word) {
    return splat_word<L>(word);
  }

  template <int L>
  static SECATEUR_INLINE void splat4(const float* words, Vector<L> (&out)[4]) {
    splat_words<L>(words, out);
  }

  template <int L>
  static SECATEUR_INLINE Vector<L> add(Vector<L> sum, Vector<L> weight, Vector<L> x) {
#if defined(__AVX512VNNI__)
    if constexpr (L == 16) return (Vector<L>)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)x, (__m512i)weight);
    if constexpr (L == 8) return (Vector<L>)_mm256_dpbusd_epi32((__m256i)sum, (__m256i)x, (__m256i)weight);
    if constexpr (L == 4) return (Vector<L>)_mm_dpbusd_epi32((__m128i)sum, (__m128i)x, (__m128i)weight);
#else
    // Not by products of bytes (vpmaddubsw): their sums end at 32767.
    typedef typename Floats<L>::ints Ints;
    const Ints a = (Ints)weight, b = (Ints)x;
    Ints all = (Ints)sum;
    all += (a << 24 >> 24) * (b & 255);
    all += (a << 16 >> 24) * (b >> 8 & 255);
    all += (a << 8 >> 24) * (b >> 16 & 255);
    all += (a >> 24) * (b >> 24 & 255);
    return (Vector<L>)all;
#endif
  }

  static SECATEUR_INLINE float add_one(float sum, const float* weight, const float* x) {
#if defined(__AVX512VNNI__)
    const __m128i a = _mm_castps_si128(_mm_load_ss(weight)), b = _mm_castps_si128(_mm_load_ss(x));
    return _mm_cvtss_f32(_mm_castsi128_ps(_mm_dpbusd_epi32(_mm_castps_si128(_mm_set_ss(sum)), b, a)));
#else
    int8_t a[4];
    uint8_t b[4];
    int32_t all;
    memcpy(a, weight, sizeof a);
    memcpy(b, x, sizeof b);
    memcpy(&all, &sum, sizeof all);
    all += a[0] * b[0] + a[1] * b[1] + a[2] * b[2] + a[3] * b[3];
    memcpy(&sum, &all, sizeof sum);
    return sum;
#endif
  }

  template <int L>
  using Whole = typename Floats<L>::ints;

  template <int L>
  static SECATEUR_INLINE Vector<L> scaled(Whole<L> sum, Vector<L> scale, Vector<L> step) {
    return __builtin_convertvector(sum, Vector<L>) * scale * step;
  }

  template <size_t W, int L, int R, int V, typename Rows>
  static SECATEUR_INLINE void finish(Tile<L, R, V>& tile, const secateur_panel& panel, Rows rows, size_t column) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const size_t row = rows.at(r);
      const Vector<L> scale = ::splat<L>(panel.scales[row]);
      const Vector<L> bias = ::splat<L>(panel.bias != nullptr ? panel.bias[row] : 0.0f);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        const size_t sample = column + size_t(L * v);
        const Whole<L> zero = (Whole<L>)load<L>(reinterpret_cast<const float*>(panel.zeros + sample));
        const Whole<L> sum = (Whole<L>)tile.at[r][v] - zero * panel.sums[row];
        tile.at[r][v] = scaled<L>(sum, scale, load<L>(panel.steps + sample)) + bias;
      }
      if (panel.residual == nullptr) continue;
      const float* residual = panel.residual + row * W + column;
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) tile.at[r][v] += load<L>(residual + L * v);
    }
  }

  // One sample, its rows side by side.
  template <int L>
  static SECATEUR_INLINE void finish_rows(const secateur_panel& panel, size_t rows) {
    const Vector<L> step = ::splat<L>(panel.steps[0]);
    for (size_t r = 0; r < rows; r += L) {
      const Whole<L> sums = (Whole<L>)load<L>(reinterpret_cast<const float*>(panel.sums + r));
      const Whole<L> sum = (Whole<L>)load<L>(panel.y + r) - sums * panel.zeros[0];
      Vector<L> y = scaled<L>(sum, load<L>(panel.scales + r), step);
      if (panel.bias != nullptr) y += load<L>(panel.bias + r);
      if (panel.residual != nullptr) y += load<L>(panel.residual + r);
      store<L>(panel.y + r, y);
    }
  }
};

// Keeps the compiler from fusing a product with what follows, which would round it once instead of twice, and not the
// same way everywhere.
SECATEUR_INLINE float settled(float value) {
#if defined(__x86_64__)
  __asm__("" : "+x"(value));
#elif defined(__aarch64__)
  __asm__("" : "+w"(value));
#else
  __asm__("" : "+m"(value));
#endif
  return value;
}

// To the nearest, ties to even, for sizes below 2^22; something for all others.
SECATEUR_INLINE int32_t nearest(float value) {
  const float shifted = settled(value) + 12582912.0f;  // 1.5 * 2^23: the nearest integer stands in the low bits
  uint32_t bits;
  memcpy(&bits, &shifted, sizeof bits);
  return int32_t(bits - 0x4b400000u);
}

// `strange` is 0, or NaN where the sample holds NaN or infinity. Steps and inverses are normal numbers.
SECATEUR_INLINE void put_grid(const secateur_grid& grid, size_t sample, float least, float greatest, float strange) {
  const bool sane = strange == 0.0f;
  const float wanted = greatest / 255.0f - least / 255.0f, step = wanted < 0x1p-126f ? 0x1p-126f : wanted;
  const float inverse = 1.0f / step;
  const int32_t zero = sane ? nearest(-least * inverse) : 0;
  grid.steps[sample] = sane ? step : __builtin_nanf("");
  grid.inverses[sample] = sane ? inverse : 0.0f;
  grid.zeros[sample] = zero > 255 ? 255 : zero;
}

constexpr size_t grid_samples = 16;

template <int L>
void grid_of_panel(const float* panel, size_t rows, size_t width, const secateur_grid& grid) {
  for (size_t lane = 0; lane < grid_samples; lane += L) {
    Vector<L> least{}, greatest{}, strange{};
    for (size_t row = 0; row < rows; ++row) {
      const Vector<L> x = load<L>(panel + row * width + lane);
      least = x < least ? x : least;
      greatest = x > greatest ? x : greatest;
      strange += x * 0.0f;
    }
    for (int i = 0; i < L; ++i) put_grid(grid, lane + size_t(i), least[i], greatest[i], strange[i]);
  }
}

template <int L>
void grid_of_samples(const float* samples, size_t n, size_t stride, size_t features, const secateur_grid& grid) {
  for (size_t s = 0; s < grid_samples; ++s) {
    Vector<L> least{}, greatest{}, strange{};
    const float* x = samples + s * stride;
    for (size_t f = 0; s < n && f < features; f += L) {
      Vector<L> here{};
      if (f + L <= features) {
        here = load<L>(x + f);
      } else {
        for (size_t i = 0; f + i < features; ++i) here[i] = x[f + i];
      }
      least = here < least ? here : least;
      greatest = here > greatest ? here : greatest;
      strange += here * 0.0f;
    }
    float low = 0.0f, high = 0.0f, odd = 0.0f;
    for (int i = 0; i < L; ++i) {
      low = least[i] < low ? least[i] : low;
      high = greatest[i] > high ? greatest[i] : high;
      odd += strange[i];
    }
    put_grid(grid, s, low, high, odd);
  }
}

SECATEUR_INLINE uint32_t byte_of(float x, const secateur_grid& grid, size_t sample) {
  const int32_t at = int32_t(uint32_t(nearest(x * grid.inverses[sample])) + uint32_t(grid.zeros[sample]));
  return at < 0 ? 0u : at > 255 ? 255u : uint32_t(at);
}

// panel[features][width], without its rows of zeros, to quads[features / 4][width].
inline void panel_to_quads_plain(const float* panel, size_t features, size_t width, const secateur_grid& grid, float* quads) {
  for (size_t f = 0; f < features; f += 4) {
    for (size_t s = 0; s < width; ++s) {
      uint32_t word = 0;
      for (size_t i = 0; i < 4 && f + i < features; ++i) word |= byte_of(panel[(f + i) * width + s], grid, s) << 8 * i;
      memcpy(quads + f / 4 * width + s, &word, sizeof word);
    }
  }
}

inline void samples_to_quads_plain(const float* samples, size_t n, size_t stride, size_t features, size_t width,
                                   const secateur_grid& grid, float* quads) {
  for (size_t s = 0; s < width; ++s) {
    const float* x = samples + s * stride;
    for (size_t f = 0; f < features; f += 4) {
      uint32_t word = 0;
      for (size_t i = 0; s < n && i < 4 && f + i < features; ++i) word |= byte_of(x[f + i], grid, s) << 8 * i;
      memcpy(quads + f / 4 * width + s, &word, sizeof word);
    }
  }
}

}  // namespace
