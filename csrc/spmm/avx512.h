// What the files of AVX-512 share: 16 x 16 words turned in registers, and ell by permutations of 32 words.
#pragma once

#include <string.h>

#include "single.h"

namespace {

// `past`: results go to memory, not to the caches; they lie in whole lines then.
template <bool past>
struct Turn {
  static constexpr size_t side = 16;

  // Lane l of the result: 4 floats of row 4 l. Loads put the 4 x 4 squares where they belong, which spares half of the
  // shuffles of a transpose by registers alone.
  static SECATEUR_INLINE __m512 gather(const float* p, size_t stride) {
    __m512 lanes = _mm512_castps128_ps512(_mm_loadu_ps(p));
    lanes = _mm512_insertf32x4(lanes, _mm_loadu_ps(p + 4 * stride), 1);
    lanes = _mm512_insertf32x4(lanes, _mm_loadu_ps(p + 8 * stride), 2);
    return _mm512_insertf32x4(lanes, _mm_loadu_ps(p + 12 * stride), 3);
  }

  // The squares of 4 x 4 turned, and 4 rows of the result stored.
  static SECATEUR_INLINE void put(__m512 a0, __m512 a1, __m512 a2, __m512 a3, float* to, size_t stride) {
    const __m512 b0 = _mm512_unpacklo_ps(a0, a1), b1 = _mm512_unpackhi_ps(a0, a1);
    const __m512 b2 = _mm512_unpacklo_ps(a2, a3), b3 = _mm512_unpackhi_ps(a2, a3);
    store(to, _mm512_shuffle_ps(b0, b2, 0x44));
    store(to + stride, _mm512_shuffle_ps(b0, b2, 0xee));
    store(to + 2 * stride, _mm512_shuffle_ps(b1, b3, 0x44));
    store(to + 3 * stride, _mm512_shuffle_ps(b1, b3, 0xee));
  }

  static SECATEUR_INLINE void store(float* to, __m512 x) { past ? _mm512_stream_ps(to, x) : _mm512_storeu_ps(to, x); }

  static constexpr size_t few = 4;
  static SECATEUR_INLINE void part(const float* from, size_t from_stride, float* to, size_t to_stride) {
    put(gather(from, from_stride), gather(from + from_stride, from_stride), gather(from + 2 * from_stride, from_stride),
        gather(from + 3 * from_stride, from_stride), to, to_stride);
  }

  static SECATEUR_INLINE void run(const float* from, size_t from_stride, float* to, size_t to_stride) {
#pragma GCC unroll 4
    for (size_t j = 0; j < 4; ++j) part(from + 4 * j, from_stride, to + 4 * j * to_stride, to_stride);
  }
};

using Square = Turn<false>;

// One step: 16 rows, each at its own column of a window of 32 floats. A row without a weight here takes no part, so that
// its padding never meets an activation. (Leaving the padding out of the stream, by vexpandps, takes half as long again.)
template <typename Masked>
inline __m512 ell_step(__m512 sum, const uint8_t* record, const float* value, const float* x) {
  uint16_t base;
  memcpy(&base, record, sizeof base);
  const __m128i at = _mm_loadu_si128(reinterpret_cast<const __m128i*>(record + 2));
  const __mmask16 there = __mmask16(~_mm_movepi8_mask(at));
  const __m512 low = _mm512_loadu_ps(x + base);
  const __m512 high = _mm512_loadu_ps(x + base + 16);
  const __m512 taken = _mm512_permutex2var_ps(low, _mm512_cvtepu8_epi32(at), high);
  return Masked::add_where(there, sum, _mm512_loadu_ps(value), taken);
}

template <typename Math, typename Masked>
inline void ell_permuted(const secateur_stream* stream, const secateur_panel* panel) {
  const uint32_t* counts = static_cast<const uint32_t*>(stream->counts);
  const uint8_t* record = static_cast<const uint8_t*>(stream->index);
  const float* value = stream->values;
  for (size_t slice = 0; slice < stream->groups; ++slice) {
    float start[16];
    begin_single<Math>(*panel, 16 * slice, 16, start);
    __m512 sums[4] = {_mm512_loadu_ps(start)};
    const size_t steps = counts[slice];
    size_t i = 0;
    for (; i + 4 <= steps; i += 4) {
#pragma GCC unroll 4
      for (size_t s = 0; s < 4; ++s) {
        sums[s] = ell_step<Masked>(sums[s], record + (i + s) * ell_record, value + (i + s) * 16, panel->x);
      }
    }
    for (; i < steps; ++i) sums[0] = ell_step<Masked>(sums[0], record + i * ell_record, value + i * 16, panel->x);
    const __m512 halves[2] = {Math::plus(sums[0], sums[1]), Math::plus(sums[2], sums[3])};
    _mm512_storeu_ps(panel->y + 16 * slice, Math::plus(halves[0], halves[1]));
    record += steps * ell_record;
    value += steps * 16;
  }
  finish_single<Math, 16>(*panel, 16 * stream->groups);
}

}  // namespace
