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
template <typename Value>
SECATEUR_INLINE Value settled(Value value) {
#if defined(__AVX512F__)
  __asm__("" : "+v"(value));
#elif defined(__x86_64__)
  __asm__("" : "+x"(value));
#elif defined(__aarch64__)
  __asm__("" : "+w"(value));
#else
  __asm__("" : "+m"(value));
#endif
  return value;
}

constexpr float shift = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
constexpr uint32_t shift_bits = 0x4b400000u;

// To the nearest, ties to even, for sizes below 2^22; something for all others.
SECATEUR_INLINE int32_t nearest(float value) {
  const float shifted = settled(value) + shift;
  uint32_t bits;
  memcpy(&bits, &shifted, sizeof bits);
  return int32_t(bits - shift_bits);
}

// L samples. `strange` is 0, or NaN where the sample holds NaN or infinity. Steps and inverses are normal numbers.
template <int L>
SECATEUR_INLINE void put_grid(const secateur_grid& grid, size_t first, Vector<L> least, Vector<L> greatest, Vector<L> strange) {
  typedef typename Floats<L>::ints Ints;
  const Vector<L> smallest = splat<L>(0x1p-126f), wanted = greatest / 255.0f - least / 255.0f;
  const Vector<L> step = wanted < smallest ? smallest : wanted, inverse = 1.0f / step;
  const Ints zero = (Ints)(settled(-least * inverse) + shift) - int32_t(shift_bits);
  const auto sane = strange == 0.0f;
  store<L>(grid.steps + first, sane ? step : splat<L>(__builtin_nanf("")));
  store<L>(grid.inverses + first, sane ? inverse : Vector<L>{});
  const Ints kept = sane ? zero : Ints{};
  const Ints capped = kept > 255 ? 255 - Ints{} : kept;
  store<L>(reinterpret_cast<float*>(grid.zeros + first), (Vector<L>)capped);
}

constexpr size_t grid_samples = 16;

// What has been seen of L numbers side by side.
template <int L>
struct Range {
  Vector<L> least{}, greatest{}, strange{};

  SECATEUR_INLINE void see(Vector<L> x) {
    least = x < least ? x : least;
    greatest = x > greatest ? x : greatest;
    strange += x * 0.0f;
  }
};

template <int L>
SECATEUR_INLINE void grid_of_panel(const float* panel, size_t rows, size_t width, const secateur_grid& grid) {
  for (size_t lane = 0; lane < grid_samples; lane += L) {
    Range<L> range;
    for (size_t row = 0; row < rows; ++row) range.see(load<L>(panel + row * width + lane));
    put_grid<L>(grid, lane, range.least, range.greatest, range.strange);
  }
}

// One sample's place among the 16; halves of a range are folded upon each other until one number is left.
template <int L>
SECATEUR_INLINE void fold(const Range<L>& range, float* least, float* greatest, float* strange) {
  float low[L], high[L], odd[L];
  store<L>(low, range.least);
  store<L>(high, range.greatest);
  store<L>(odd, range.strange);
#pragma GCC unroll 4
  for (int half = L / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < half; ++i) {
      low[i] = low[i + half] < low[i] ? low[i + half] : low[i];
      high[i] = high[i + half] > high[i] ? high[i + half] : high[i];
      odd[i] += odd[i + half];
    }
  }
  *least = low[0];
  *greatest = high[0];
  *strange = odd[0];
}

template <int L>
SECATEUR_INLINE void grid_of_samples(const float* samples, size_t n, size_t stride, size_t features, const secateur_grid& grid) {
  float least[grid_samples] = {}, greatest[grid_samples] = {}, strange[grid_samples] = {};
  for (size_t s = 0; s < n && s < grid_samples; ++s) {
    const float* x = samples + s * stride;
    Range<L> range, other;
    size_t f = 0;
    for (; f + 2 * L <= features; f += 2 * L) {
      range.see(load<L>(x + f));
      other.see(load<L>(x + f + L));
    }
    for (; f < features; f += L) {
      float rest[L] = {};
      const size_t left = features - f < L ? features - f : L;
      for (size_t i = 0; i < left; ++i) rest[i] = x[f + i];
      range.see(load<L>(rest));
    }
    range.see(other.least);
    range.see(other.greatest);
    range.strange += other.strange;
    fold<L>(range, least + s, greatest + s, strange + s);
  }
  for (size_t s = 0; s < grid_samples; s += L) {
    put_grid<L>(grid, s, load<L>(least + s), load<L>(greatest + s), load<L>(strange + s));
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
