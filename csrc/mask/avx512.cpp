// AVX-512 F, BW, VL. A word of 64 mask bits is a run of mask registers, so the bits are used as they are stored.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 says it of its own header (its bug 105593)
#endif
#include <immintrin.h>

#include "scalar.h"

namespace {

struct Lanes2 {  // 32 elements of 2 bytes in a register
  static constexpr int lanes = 32;
  static __m512i load(uint64_t lanes, const uint8_t* p) { return _mm512_maskz_loadu_epi16(__mmask32(lanes), p); }
  static void clear(uint64_t lanes, uint8_t* p) { _mm512_mask_storeu_epi16(p, __mmask32(lanes), __m512i{}); }
};
struct Lanes4 {
  static constexpr int lanes = 16;
  static __m512i load(uint64_t lanes, const uint8_t* p) { return _mm512_maskz_loadu_epi32(__mmask16(lanes), p); }
  static void clear(uint64_t lanes, uint8_t* p) { _mm512_mask_storeu_epi32(p, __mmask16(lanes), __m512i{}); }
};
struct Lanes8 {
  static constexpr int lanes = 8;
  static __m512i load(uint64_t lanes, const uint8_t* p) { return _mm512_maskz_loadu_epi64(__mmask8(lanes), p); }
  static void clear(uint64_t lanes, uint8_t* p) { _mm512_mask_storeu_epi64(p, __mmask8(lanes), __m512i{}); }
};

// 64 elements: look at those that go (bit set in `gone`), and store only if one of them is not zero yet.
// Looking at the masked lanes alone is up to a fifth faster than clearing in registers and comparing.
template <typename L>
inline void apply_word(uint8_t* data, uint64_t gone) {
  constexpr int vectors = 64 / L::lanes;
  __m512i dirty = _mm512_setzero_si512();
#pragma GCC unroll 8
  for (int v = 0; v < vectors; ++v) dirty = _mm512_or_si512(dirty, L::load(gone >> (L::lanes * v), data + 64 * v));
  if (_mm512_test_epi64_mask(dirty, dirty) == 0) return;
#pragma GCC unroll 8
  for (int v = 0; v < vectors; ++v) L::clear(gone >> (L::lanes * v), data + 64 * v);
}

template <typename L, typename Element>
inline void apply_words(void* memory, const uint8_t* bits, size_t n) {
  const size_t words = n / 64;
  uint8_t* data = static_cast<uint8_t*>(memory);
  for (size_t w = 0; w < words; ++w, data += 64 * sizeof(Element)) {
    const uint64_t gone = ~load_word(bits + 8 * w);
    if (gone != 0) apply_word<L>(data, gone);
  }
  apply_tail(reinterpret_cast<Element*>(data), bits + 8 * words, 0, n - 64 * words);
}

// Groups of `of` (a divisor of 16) never straddle a register: rank each score by comparing with its group rotated.
inline size_t nm_vectors(const float* scores, size_t groups, size_t keep, size_t of, uint8_t* kept) {
  const size_t vectors = groups * of / 16;
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i inside = _mm512_set1_epi32(int(of) - 1);
  const __m512i limit = _mm512_set1_epi32(int(keep));
  const __m512i one = _mm512_set1_epi32(1);
  for (size_t v = 0; v < vectors; ++v) {
    const __m512 mine = _mm512_loadu_ps(scores + 16 * v);
    __m512i ahead = _mm512_setzero_si512();
    for (size_t r = 1; r < of; ++r) {
      const __m512i turned = _mm512_and_si512(_mm512_add_epi32(lane, _mm512_set1_epi32(int(r))), inside);
      const __m512i source = _mm512_or_si512(_mm512_andnot_si512(inside, lane), turned);
      const __m512 other = _mm512_permutexvar_ps(source, mine);
      const __mmask16 later = _mm512_cmpgt_epi32_mask(source, lane);
      const __mmask16 higher = _mm512_cmp_ps_mask(other, mine, _CMP_GT_OQ);
      const __mmask16 tied = _mm512_mask_cmp_ps_mask(later, other, mine, _CMP_EQ_OQ);
      ahead = _mm512_mask_add_epi32(ahead, __mmask16(higher | tied), ahead, one);
    }
    const __mmask16 stays = _mm512_cmplt_epi32_mask(ahead, limit);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(kept + 16 * v), _mm_maskz_set1_epi8(stays, 1));
  }
  return vectors * 16 / of;
}

}  // namespace

extern "C" {

void secateur_pack_avx512(const uint8_t* bools, size_t n, uint8_t* bits) {
  const size_t words = n / 64;
  for (size_t w = 0; w < words; ++w) {
    const __m512i v = _mm512_loadu_si512(bools + 64 * w);
    const uint64_t word = _mm512_test_epi8_mask(v, v);
    memcpy(bits + 8 * w, &word, sizeof word);
  }
  pack_tail(bools, 64 * words, n, bits);
}

void secateur_unpack_avx512(const uint8_t* bits, size_t n, uint8_t* bools) {
  const size_t words = n / 64;
  for (size_t w = 0; w < words; ++w) {
    _mm512_storeu_si512(bools + 64 * w, _mm512_maskz_set1_epi8(load_word(bits + 8 * w), 1));
  }
  unpack_tail(bits, 64 * words, n, bools);
}

uint64_t secateur_popcount_avx512(const uint8_t* bits, size_t n) {
  uint64_t total = 0;
  for (size_t w = 0; w < n / 64; ++w) total += uint64_t(_mm_popcnt_u64(load_word(bits + 8 * w)));
  return total + popcount_tail(bits, n / 64 * 64, n);
}

void secateur_apply2_avx512(void* data, const uint8_t* bits, size_t n) { apply_words<Lanes2, uint16_t>(data, bits, n); }
void secateur_apply4_avx512(void* data, const uint8_t* bits, size_t n) { apply_words<Lanes4, uint32_t>(data, bits, n); }
void secateur_apply8_avx512(void* data, const uint8_t* bits, size_t n) { apply_words<Lanes8, uint64_t>(data, bits, n); }

void secateur_nm_select_avx512(const float* scores, size_t rows, size_t cols, size_t keep, size_t of, uint8_t* kept) {
  const bool fits = of <= 16 && 16 % of == 0;
  nm_rows(scores, rows, cols, of, kept, [=](const float* run, size_t groups, uint8_t* out) {
    const size_t done = fits ? nm_vectors(run, groups, keep, of, out) : 0;
    nm_groups(run + done * of, groups - done, keep, of, out + done * of);
  });
}

uint64_t secateur_digits4_avx512(const void* values, size_t n, int shift, int64_t prefix, uint64_t* counts) {
  return digits(static_cast<const int32_t*>(values), n, shift, int32_t(prefix), counts);
}

uint64_t secateur_digits8_avx512(const void* values, size_t n, int shift, int64_t prefix, uint64_t* counts) {
  return digits(static_cast<const int64_t*>(values), n, shift, prefix, counts);
}
}
