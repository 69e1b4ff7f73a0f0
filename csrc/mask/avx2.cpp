// AVX2 and POPCNT. A lane learns whether it stays by testing its own bit of the broadcast mask.
#include <immintrin.h>

#include "scalar.h"

namespace {

// 16 elements of 2 bytes: 4 registers for a word of 64 bits.
struct Lanes2 {
  static constexpr int lanes = 16;
  static __m256i stays(uint64_t keep) {
    const __m256i bit = _mm256_setr_epi16(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, -32768);
    return _mm256_cmpeq_epi16(_mm256_and_si256(_mm256_set1_epi16(short(keep)), bit), bit);
  }
};
struct Lanes4 {
  static constexpr int lanes = 8;
  static __m256i stays(uint64_t keep) {
    const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(int(keep)), bit), bit);
  }
};
struct Lanes8 {
  static constexpr int lanes = 4;
  static __m256i stays(uint64_t keep) {
    const __m256i bit = _mm256_setr_epi64x(1, 2, 4, 8);
    return _mm256_cmpeq_epi64(_mm256_and_si256(_mm256_set1_epi64x((long long)(keep)), bit), bit);
  }
};

inline __m256i load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline void store(void* p, __m256i v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }

// Four registers: clear what the mask removes, and store only if that changed anything.
template <typename L>
inline void apply_four(uint8_t* data, uint64_t keep) {
  __m256i kept[4];
  __m256i changed = _mm256_setzero_si256();
#pragma GCC unroll 4
  for (int v = 0; v < 4; ++v) {
    const __m256i old = load(data + 32 * v);
    const __m256i stays = L::stays(keep >> (L::lanes * v));
    kept[v] = _mm256_and_si256(stays, old);
    changed = _mm256_or_si256(changed, _mm256_andnot_si256(stays, old));
  }
  if (_mm256_testz_si256(changed, changed)) return;
#pragma GCC unroll 4
  for (int v = 0; v < 4; ++v) store(data + 32 * v, kept[v]);
}

template <typename L, typename Element>
inline void apply_words(void* memory, const uint8_t* bits, size_t n) {
  const size_t words = n / 64;
  uint8_t* data = static_cast<uint8_t*>(memory);
  for (size_t w = 0; w < words; ++w, data += 64 * sizeof(Element)) {
    const uint64_t keep = load_word(bits + 8 * w);
    if (keep == ~uint64_t(0)) continue;
    for (int at = 0; at < 64; at += 4 * L::lanes) apply_four<L>(data + size_t(at) * sizeof(Element), keep >> at);
  }
  apply_tail(reinterpret_cast<Element*>(data), bits + 8 * words, 0, n - 64 * words);
}

inline __m256i unpack_32(uint32_t bits) {
  const __m256i spread = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1,  //
                                          2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
  const __m256i bit = _mm256_set1_epi64x((long long)(0x8040201008040201u));
  const __m256i bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(int(bits)), spread);
  return _mm256_and_si256(_mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit), bit), _mm256_set1_epi8(1));
}

inline uint32_t pack_32(const uint8_t* bools) {
  const __m256i zero = _mm256_cmpeq_epi8(load(bools), _mm256_setzero_si256());
  return ~uint32_t(_mm256_movemask_epi8(zero));
}

// Groups of `of` (2, 4 or 8) never straddle a register: rank each score by comparing with its group rotated.
inline size_t nm_vectors(const float* scores, size_t groups, size_t keep, size_t of, uint8_t* kept) {
  const size_t vectors = groups * of / 8;
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i inside = _mm256_set1_epi32(int(of) - 1);
  const __m256i limit = _mm256_set1_epi32(int(keep));
  for (size_t v = 0; v < vectors; ++v) {
    const __m256 mine = _mm256_loadu_ps(scores + 8 * v);
    __m256i ahead = _mm256_setzero_si256();
    for (size_t r = 1; r < of; ++r) {
      const __m256i turned = _mm256_and_si256(_mm256_add_epi32(lane, _mm256_set1_epi32(int(r))), inside);
      const __m256i source = _mm256_or_si256(_mm256_andnot_si256(inside, lane), turned);
      const __m256 other = _mm256_permutevar8x32_ps(mine, source);
      const __m256i later = _mm256_cmpgt_epi32(source, lane);
      const __m256i higher = _mm256_castps_si256(_mm256_cmp_ps(other, mine, _CMP_GT_OQ));
      const __m256i equal = _mm256_castps_si256(_mm256_cmp_ps(other, mine, _CMP_EQ_OQ));
      ahead = _mm256_sub_epi32(ahead, _mm256_or_si256(higher, _mm256_and_si256(equal, later)));
    }
    const int stays = _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(limit, ahead)));
    for (int j = 0; j < 8; ++j) kept[8 * v + size_t(j)] = uint8_t((stays >> j) & 1);
  }
  return vectors * 8 / of;
}

}  // namespace

extern "C" {

void secateur_pack_avx2(const uint8_t* bools, size_t n, uint8_t* bits) {
  const size_t runs = n / 32;
  for (size_t w = 0; w < runs; ++w) {
    const uint32_t word = pack_32(bools + 32 * w);
    memcpy(bits + 4 * w, &word, sizeof word);
  }
  pack_tail(bools, 32 * runs, n, bits);
}

void secateur_unpack_avx2(const uint8_t* bits, size_t n, uint8_t* bools) {
  const size_t runs = n / 32;
  for (size_t w = 0; w < runs; ++w) {
    uint32_t word;
    memcpy(&word, bits + 4 * w, sizeof word);
    store(bools + 32 * w, unpack_32(word));
  }
  unpack_tail(bits, 32 * runs, n, bools);
}

uint64_t secateur_popcount_avx2(const uint8_t* bits, size_t n) {
  uint64_t total = 0;
  for (size_t w = 0; w < n / 64; ++w) total += uint64_t(_mm_popcnt_u64(load_word(bits + 8 * w)));
  return total + popcount_tail(bits, n / 64 * 64, n);
}

void secateur_apply2_avx2(void* data, const uint8_t* bits, size_t n) { apply_words<Lanes2, uint16_t>(data, bits, n); }
void secateur_apply4_avx2(void* data, const uint8_t* bits, size_t n) { apply_words<Lanes4, uint32_t>(data, bits, n); }
void secateur_apply8_avx2(void* data, const uint8_t* bits, size_t n) { apply_words<Lanes8, uint64_t>(data, bits, n); }

void secateur_nm_select_avx2(const float* scores, size_t rows, size_t cols, size_t keep, size_t of, uint8_t* kept) {
  const bool fits = of <= 8 && 8 % of == 0;
  nm_rows(scores, rows, cols, of, kept, [=](const float* run, size_t groups, uint8_t* out) {
    const size_t done = fits ? nm_vectors(run, groups, keep, of, out) : 0;
    nm_groups(run + done * of, groups - done, keep, of, out + done * of);
  });
}

uint64_t secateur_digits4_avx2(const void* values, size_t n, int shift, int64_t prefix, uint64_t* counts) {
  return digits(static_cast<const int32_t*>(values), n, shift, int32_t(prefix), counts);
}

uint64_t secateur_digits8_avx2(const void* values, size_t n, int shift, int64_t prefix, uint64_t* counts) {
  return digits(static_cast<const int64_t*>(values), n, shift, prefix, counts);
}
}
