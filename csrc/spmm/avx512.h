// What the files of AVX-512 share: 16 x 16 words turned in registers, ell and nm by permutations.
#pragma once

#include <string.h>

#include "ell.h"
#include "nm.h"

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

// A window stays in four registers for the steps that share it, and a step is two permutations of 32 floats. Its last place
// is nobody's and holds 0 here: lanes without a weight multiply 0 by that, so no step needs a mask for them.
// (Leaving empty places out of the stream, by vexpandps, takes a third as long again.)
struct EllWindow {
  __m512 tables[4];

  explicit EllWindow(const float* x) {
#pragma GCC unroll 3
    for (size_t i = 0; i < 3; ++i) tables[i] = _mm512_loadu_ps(x + 16 * i);
    tables[3] = _mm512_maskz_loadu_ps(0x7fff, x + 48);
  }

  // `places`: of every lane, the byte of this step lowest; `all` still has it where it was.
  __m512 take(__m512i places, __m512i all, size_t step) const {
    const __mmask16 right = _mm512_test_epi32_mask(all, _mm512_set1_epi32(int(32u << 8 * step)));
    const __m512 low = _mm512_permutex2var_ps(tables[0], places, tables[1]);
    return _mm512_mask_blend_ps(right, low, _mm512_permutex2var_ps(tables[2], places, tables[3]));
  }
};

template <typename Math, typename Masked>
struct PermutedEll {
  // sums[step] where a lane has one row, sums[2 * (step & 1) + row] where it has two.
  template <typename Form>
  static SECATEUR_INLINE void add(__m512 (&sums)[4], const uint8_t* record, const float* value, const float* x) {
    constexpr size_t shared = ell_steps / Form::bases;
    uint16_t first[Form::bases];
    memcpy(first, record, sizeof first);
    const __m512i all = _mm512_loadu_si512(record + sizeof first);
#pragma GCC unroll 2
    for (size_t base = 0; base < Form::bases; ++base) {
      const EllWindow window(x + first[base]);
#pragma GCC unroll 4
      for (size_t step = base * shared; step < (base + 1) * shared; ++step) {
        const __m512 taken = window.take(_mm512_srli_epi32(all, unsigned(8 * step)), all, step);
        const __m512 weight = _mm512_loadu_ps(value + 16 * step);
        if constexpr (Form::rows == 1) {
          sums[step] = (__m512)Math::template add<16>((Vector<16>)sums[step], (Vector<16>)weight, (Vector<16>)taken);
        } else {
          __m512* const pair = sums + 2 * (step & 1);
          const __mmask16 second = _mm512_test_epi32_mask(all, _mm512_set1_epi32(int(64u << 8 * step)));
          pair[0] = Masked::add_where(__mmask16(~second), pair[0], weight, taken);
          pair[1] = Masked::add_where(second, pair[1], weight, taken);
        }
      }
    }
  }

  template <typename Form>
  static SECATEUR_INLINE void run(const secateur_stream& stream, const secateur_panel& panel) {
    const uint32_t* records = static_cast<const uint32_t*>(stream.counts);
    const uint8_t* record = static_cast<const uint8_t*>(stream.index);
    const float* value = stream.values;
    for (size_t tile = 0; tile < stream.groups; tile += Form::rows) {
      const bool both = Form::rows == 2 && tile + 1 < stream.groups;
      __m512 sums[4] = {(__m512)begin_vector<Math, 16>(panel, 16 * tile)};
      if (both) sums[1] = (__m512)begin_vector<Math, 16>(panel, 16 * tile + 16);
      for (uint32_t left = *records++; left > 0; --left, record += Form::record, value += 16 * ell_steps) {
        add<Form>(sums, record, value, panel.x);
      }
      if constexpr (Form::rows == 1) {
        const __m512 halves[2] = {Math::plus(sums[0], sums[1]), Math::plus(sums[2], sums[3])};
        _mm512_storeu_ps(panel.y + 16 * tile, Math::plus(halves[0], halves[1]));
      } else {
        _mm512_storeu_ps(panel.y + 16 * tile, Math::plus(sums[0], sums[2]));
        if (both) _mm512_storeu_ps(panel.y + 16 * tile + 16, Math::plus(sums[1], sums[3]));
      }
    }
    finish_single<Math, 16>(panel, 16 * stream.groups);
  }
};

// One window: `Each` steps, from step `from` of a word of indices on. Permutations of 16 floats read the lowest 4 bits.
template <typename Math, size_t Each>
SECATEUR_INLINE void nm_add(__m512 (&sums)[4], __m512i words, size_t from, const float* value, const float* x) {
  const __m512 window = _mm512_loadu_ps(x);
#pragma GCC unroll 8
  for (size_t step = 0; step < Each; ++step) {
    const __m512 taken = _mm512_permutexvar_ps(_mm512_srli_epi32(words, unsigned(4 * (from + step))), window);
    __m512& sum = sums[(from + step) % 4];
    sum = (__m512)Math::template add<16>((Vector<16>)sum, load<16>(value + 16 * step), (Vector<16>)taken);
  }
}

template <typename Math, size_t Each>
SECATEUR_INLINE void nm_slice(__m512 (&sums)[4], const uint32_t* words, const float* value, const float* x, size_t windows) {
  constexpr size_t whole = nm_steps / Each;  // windows of a word
  size_t window = 0;
  for (; window + whole <= windows; window += whole, words += 16) {
    const __m512i all = _mm512_loadu_si512(words);
#pragma GCC unroll 8
    for (size_t i = 0; i < whole; ++i, value += 16 * Each) {
      nm_add<Math, Each>(sums, all, i * Each, value, x + nm_place(window + i));
    }
  }
  if (window == windows) return;
  __m512i all = _mm512_loadu_si512(words);
  for (; window < windows; ++window, value += 16 * Each) {
    nm_add<Math, Each>(sums, all, 0, value, x + nm_place(window));
    all = _mm512_srli_epi32(all, 4 * Each);
  }
}

template <typename Math, int L>
SECATEUR_INLINE void nm_permuted(const secateur_stream* stream, const secateur_panel* panel) {
  const uint16_t* counts = static_cast<const uint16_t*>(stream->counts);
  const uint32_t* words = static_cast<const uint32_t*>(stream->index);
  const float* value = stream->values;
  for (size_t tile = 0; tile < stream->groups; ++tile, counts += 2) {
    const size_t windows = counts[1], steps = counts[0] * windows;
    __m512 sums[4] = {(__m512)begin_vector<Math, 16>(*panel, 16 * tile)};
    switch (counts[0]) {
      case 1: nm_slice<Math, 1>(sums, words, value, panel->x, windows); break;
      case 2: nm_slice<Math, 2>(sums, words, value, panel->x, windows); break;
      case 4: nm_slice<Math, 4>(sums, words, value, panel->x, windows); break;
      case 8: nm_slice<Math, 8>(sums, words, value, panel->x, windows); break;
    }
    const __m512 halves[2] = {Math::plus(sums[0], sums[1]), Math::plus(sums[2], sums[3])};
    _mm512_storeu_ps(panel->y + 16 * tile, Math::plus(halves[0], halves[1]));
    words += (steps + nm_steps - 1) / nm_steps * 16;
    value += 16 * steps;
  }
  finish_single<Math, 16>(*panel, 16 * stream->groups);
}

}  // namespace
