// AVX-512 with vdpbf16ps: twice the products of float32 in an instruction.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 says it of its own header (its bug 105593)
#endif
#include <immintrin.h>

#include "avx512.h"
#include "bf16_entries.h"

namespace {

struct MaskedPairs {
  static SECATEUR_INLINE __m512 add_where(__mmask16 there, __m512 sum, __m512 weight, __m512 x) {
    return _mm512_mask_dpbf16_ps(sum, there, (__m512bh)weight, (__m512bh)x);
  }
};

// 16 words from 32 numbers; those beyond `n` are 0.
inline __m512i words_of(const float* x, size_t n) {
  const uint32_t there = n >= 32 ? 0xffffffffu : (uint32_t(1) << n) - 1;
  const __m512 low = _mm512_maskz_loadu_ps(__mmask16(there), x);
  const __m512 high = _mm512_maskz_loadu_ps(__mmask16(there >> 16), x + 16);
  return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}

void panel_to_pairs(const float* panel, size_t features, size_t width, float* pairs) {
  if (width == 1) {
    for (size_t f = 0; f < features; f += 32) {
      const size_t left = features - f < 32 ? features - f : 32, words = (left + 1) / 2;
      _mm512_mask_storeu_epi32(pairs + f / 2, __mmask16((1u << words) - 1), words_of(panel + f, left));
    }
    return;
  }
  // Number s of the first row, then number s of the second: 0, 16, 1, 17, ...
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i turn = _mm512_or_si512(_mm512_slli_epi32(lanes, 16), _mm512_or_si512(lanes, _mm512_set1_epi32(16 << 16)));
  for (size_t f = 0; f < features; f += 2) {
    const float* x = panel + f * width;
    for (size_t s = 0; s < width; s += 16) {
      const __m512 high = f + 1 < features ? _mm512_loadu_ps(x + width + s) : _mm512_setzero_ps();
      const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(high, _mm512_loadu_ps(x + s));
      _mm512_storeu_si512(pairs + f / 2 * width + s, _mm512_permutexvar_epi16(turn, both));
    }
  }
}

// Lane l of the result: 4 words from 8 numbers of row 4 l, as Square::gather has them.
inline __m512 gather_words(const float* p, size_t stride) {
  const auto load = [](const float* at) { return _mm256_castps_pd(_mm256_loadu_ps(at)); };
  const __m512d low = _mm512_insertf64x4(_mm512_castpd256_pd512(load(p)), load(p + 4 * stride), 1);
  const __m512d high = _mm512_insertf64x4(_mm512_castpd256_pd512(load(p + 8 * stride)), load(p + 12 * stride), 1);
  return (__m512)_mm512_cvtne2ps_pbh(_mm512_castpd_ps(high), _mm512_castpd_ps(low));
}

// 16 samples of 32 features.
inline void turn_pairs(const float* from, size_t stride, float* to, size_t width) {
#pragma GCC unroll 4
  for (size_t j = 0; j < 4; ++j) {
    const float* p = from + 8 * j;
    Square::put(gather_words(p, stride), gather_words(p + stride, stride), gather_words(p + 2 * stride, stride),
                gather_words(p + 3 * stride, stride), to + 4 * j * width, width);
  }
}

void samples_to_pairs(const float* samples, size_t n, size_t stride, size_t features, size_t width, float* pairs) {
  if (width == 1) return panel_to_pairs(samples, features, 1, pairs);
  alignas(64) float words[256], turned[256];
  for (size_t s = 0; s < width; s += 16) {
    for (size_t f = 0; f < features; f += 32) {
      float* to = pairs + f / 2 * width + s;
      if (s + 16 <= n && f + 32 <= features) {
        turn_pairs(samples + s * stride + f, stride, to, width);
        continue;
      }
      const size_t left = features - f < 32 ? features - f : 32, wide = (left + 1) / 2;
      for (size_t i = 0; i < 16; ++i) {
        _mm512_store_si512(words + 16 * i, s + i < n ? words_of(samples + (s + i) * stride + f, left) : _mm512_setzero_si512());
      }
      Square::run(words, 16, turned, 16);
      for (size_t i = 0; i < wide; ++i) _mm512_storeu_ps(to + i * width, _mm512_load_ps(turned + 16 * i));
    }
  }
}

template <typename Math, int L>
using Ell = PermutedEll<Math, MaskedPairs>;

}  // namespace

SECATEUR_BF16(avx512bf16, 16, 4, panel_to_pairs, samples_to_pairs, Ell)
