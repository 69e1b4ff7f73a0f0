// AVX-512 with vpdpbusd: four times the products of float32 in an instruction.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 says it of its own header (its bug 105593)
#endif
#include <immintrin.h>

#include "avx512.h"
#include "int8_entries.h"

namespace {

struct MaskedQuads {
  static SECATEUR_INLINE __m512 add_where(__mmask16 there, __m512 sum, __m512 weight, __m512 x) {
    return (__m512)_mm512_mask_dpbusd_epi32((__m512i)sum, there, (__m512i)x, (__m512i)weight);
  }
};

// The numbers of one sample, or 16 of them, on their grid; not yet cut to a byte.
inline __m512i on_grid(__m512 x, __m512 inverse, __m512i zero) {
  return _mm512_add_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(x, inverse)), zero);
}

// Cut to bytes: of every 128 bits four bytes of a, of b, of c and of d.
inline __m512i cut(__m512i a, __m512i b, __m512i c, __m512i d) {
  return _mm512_packus_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
}

// 16 words from 64 numbers of one sample; what lies beyond `n` is not read.
SECATEUR_INLINE __m512i words_of(const float* x, size_t n, __m512 inverse, __m512i zero) {
  const uint64_t there = n >= 64 ? ~uint64_t(0) : (uint64_t(1) << n) - 1;
  const __m512i a = on_grid(_mm512_maskz_loadu_ps(__mmask16(there), x), inverse, zero);
  const __m512i b = on_grid(_mm512_maskz_loadu_ps(__mmask16(there >> 16), x + 16), inverse, zero);
  const __m512i c = on_grid(_mm512_maskz_loadu_ps(__mmask16(there >> 32), x + 32), inverse, zero);
  const __m512i d = on_grid(_mm512_maskz_loadu_ps(__mmask16(there >> 48), x + 48), inverse, zero);
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_permutexvar_epi32(order, cut(a, b, c, d));
}

void panel_to_quads(const float* panel, size_t features, size_t width, const secateur_grid& grid, float* quads) {
  if (width == 1) {
    const __m512 inverse = _mm512_set1_ps(grid.inverses[0]);
    const __m512i zero = _mm512_set1_epi32(grid.zeros[0]);
    for (size_t f = 0; f < features; f += 64) {
      const size_t left = features - f < 64 ? features - f : 64, words = (left + 3) / 4;
      _mm512_mask_storeu_epi32(quads + f / 4, __mmask16((1u << words) - 1), words_of(panel + f, left, inverse, zero));
    }
    return;
  }
  const __m512i by_sample =
      _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  for (size_t s = 0; s < width; s += 16) {
    const __m512 inverse = _mm512_loadu_ps(grid.inverses + s);
    const __m512i zero = _mm512_loadu_si512(grid.zeros + s);
    for (size_t f = 0; f < features; f += 4) {
      const float* x = panel + f * width + s;
      __m512i rows[4];
#pragma GCC unroll 4
      for (size_t i = 0; i < 4; ++i) {
        rows[i] = f + i < features ? on_grid(_mm512_loadu_ps(x + i * width), inverse, zero) : _mm512_setzero_si512();
      }
      const __m512i bytes = cut(rows[0], rows[1], rows[2], rows[3]);
      _mm512_storeu_si512(quads + f / 4 * width + s, _mm512_shuffle_epi8(bytes, by_sample));
    }
  }
}

void samples_to_quads(const float* samples, size_t n, size_t stride, size_t features, size_t width, const secateur_grid& grid,
                      float* quads) {
  if (width == 1) return panel_to_quads(samples, features, 1, grid, quads);
  alignas(64) float words[256], turned[256];
  for (size_t s = 0; s < width; s += 16) {
    for (size_t f = 0; f < features; f += 64) {
      const size_t left = features - f < 64 ? features - f : 64, wide = (left + 3) / 4;
      float* const to = quads + f / 4 * width + s;
      const auto row = [&](size_t i, size_t numbers) {
        return words_of(samples + (s + i) * stride + f, numbers, _mm512_set1_ps(grid.inverses[s + i]),
                        _mm512_set1_epi32(grid.zeros[s + i]));
      };
      if (s + 16 <= n && left == 64) {
        for (size_t i = 0; i < 16; ++i) _mm512_store_si512(words + 16 * i, row(i, 64));
        Square::run(words, 16, to, width);
        continue;
      }
      for (size_t i = 0; i < 16; ++i) {
        _mm512_store_si512(words + 16 * i, s + i < n ? row(i, left) : _mm512_setzero_si512());
      }
      Square::run(words, 16, turned, 16);
      for (size_t i = 0; i < wide; ++i) _mm512_storeu_ps(to + i * width, _mm512_load_ps(turned + 16 * i));
    }
  }
}

template <typename Math, int L>
using Ell = PermutedEll<Math, MaskedQuads>;

}  // namespace

SECATEUR_INT8(avx512vnni, 16, 4, panel_to_quads, samples_to_quads, Ell)
