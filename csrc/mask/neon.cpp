// AArch64 NEON, which every 64-bit ARM has. Byte order is little-endian, as on every platform we build for.
#include <arm_neon.h>

#include "scalar.h"

namespace {

// A register of bytes, its mask of all-ones lanes where the element stays.
struct Lanes2 {
  static constexpr int lanes = 8;
  static uint8x16_t stays(uint64_t keep) {
    const uint16_t bits[8] = {1, 2, 4, 8, 16, 32, 64, 128};
    return vreinterpretq_u8_u16(vtstq_u16(vdupq_n_u16(uint16_t(keep)), vld1q_u16(bits)));
  }
};
struct Lanes4 {
  static constexpr int lanes = 4;
  static uint8x16_t stays(uint64_t keep) {
    const uint32_t bits[4] = {1, 2, 4, 8};
    return vreinterpretq_u8_u32(vtstq_u32(vdupq_n_u32(uint32_t(keep)), vld1q_u32(bits)));
  }
};
struct Lanes8 {
  static constexpr int lanes = 2;
  static uint8x16_t stays(uint64_t keep) {
    const uint64_t bits[2] = {1, 2};
    return vreinterpretq_u8_u64(vtstq_u64(vdupq_n_u64(keep), vld1q_u64(bits)));
  }
};

inline bool any(uint8x16_t v) { return vmaxvq_u8(v) != 0; }

// Four registers: clear what the mask removes, and store only if that changed anything.
template <typename L>
inline void apply_four(uint8_t* data, uint64_t keep) {
  uint8x16_t kept[4];
  uint8x16_t changed = vdupq_n_u8(0);
#pragma GCC unroll 4
  for (int v = 0; v < 4; ++v) {
    const uint8x16_t old = vld1q_u8(data + 16 * v);
    const uint8x16_t stays = L::stays(keep >> (L::lanes * v));
    kept[v] = vandq_u8(old, stays);
    changed = vorrq_u8(changed, vbicq_u8(old, stays));
  }
  if (!any(changed)) return;
#pragma GCC unroll 4
  for (int v = 0; v < 4; ++v) vst1q_u8(data + 16 * v, kept[v]);
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

inline uint8x16_t bit_of_lane() { return vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201u)); }

// Four scores of one group (of = 4) or of two groups (of = 2): how many of its group stand ahead of each.
inline uint32x4_t ahead_by(float32x4_t mine, float32x4_t other, uint32x4_t later) {
  return vorrq_u32(vcgtq_f32(other, mine), vandq_u32(vceqq_f32(other, mine), later));
}

inline uint32x4_t lanes_mask(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  const uint32_t lanes[4] = {a, b, c, d};
  return vld1q_u32(lanes);
}

inline size_t nm_vectors(const float* scores, size_t groups, size_t keep, size_t of, uint8_t* kept) {
  const size_t vectors = groups * of / 4;
  const uint32_t yes = ~uint32_t(0);
  for (size_t v = 0; v < vectors; ++v) {
    const float32x4_t mine = vld1q_f32(scores + 4 * v);
    uint32x4_t ahead;  // counts downwards: a true lane is -1
    if (of == 4) {
      ahead = ahead_by(mine, vextq_f32(mine, mine, 1), lanes_mask(yes, yes, yes, 0));
      ahead = vaddq_u32(ahead, ahead_by(mine, vextq_f32(mine, mine, 2), lanes_mask(yes, yes, 0, 0)));
      ahead = vaddq_u32(ahead, ahead_by(mine, vextq_f32(mine, mine, 3), lanes_mask(yes, 0, 0, 0)));
    } else {
      ahead = ahead_by(mine, vrev64q_f32(mine), lanes_mask(yes, 0, yes, 0));
    }
    const uint32x4_t stays = vcltq_s32(vnegq_s32(vreinterpretq_s32_u32(ahead)), vdupq_n_s32(int32_t(keep)));
    for (int j = 0; j < 4; ++j) kept[4 * v + size_t(j)] = uint8_t(stays[j] & 1);
  }
  return vectors * 4 / of;
}

}  // namespace

extern "C" {

void secateur_pack_neon(const uint8_t* bools, size_t n, uint8_t* bits) {
  const size_t runs = n / 16;
  for (size_t w = 0; w < runs; ++w) {
    const uint8x16_t v = vld1q_u8(bools + 16 * w);
    const uint8x16_t set = vandq_u8(vtstq_u8(v, v), bit_of_lane());
    bits[2 * w] = vaddv_u8(vget_low_u8(set));
    bits[2 * w + 1] = vaddv_u8(vget_high_u8(set));
  }
  pack_tail(bools, 16 * runs, n, bits);
}

void secateur_unpack_neon(const uint8_t* bits, size_t n, uint8_t* bools) {
  const size_t runs = n / 16;
  for (size_t w = 0; w < runs; ++w) {
    const uint8x16_t bytes = vcombine_u8(vdup_n_u8(bits[2 * w]), vdup_n_u8(bits[2 * w + 1]));
    vst1q_u8(bools + 16 * w, vandq_u8(vtstq_u8(bytes, bit_of_lane()), vdupq_n_u8(1)));
  }
  unpack_tail(bits, 16 * runs, n, bools);
}

uint64_t secateur_popcount_neon(const uint8_t* bits, size_t n) {
  const size_t runs = n / 128;
  uint64_t total = 0;
  for (size_t w = 0; w < runs; ++w) total += vaddvq_u8(vcntq_u8(vld1q_u8(bits + 16 * w)));
  return total + popcount_tail(bits, 128 * runs, n);
}

void secateur_apply2_neon(void* data, const uint8_t* bits, size_t n) { apply_words<Lanes2, uint16_t>(data, bits, n); }
void secateur_apply4_neon(void* data, const uint8_t* bits, size_t n) { apply_words<Lanes4, uint32_t>(data, bits, n); }
void secateur_apply8_neon(void* data, const uint8_t* bits, size_t n) { apply_words<Lanes8, uint64_t>(data, bits, n); }

void secateur_nm_select_neon(const float* scores, size_t rows, size_t cols, size_t keep, size_t of, uint8_t* kept) {
  const bool fits = of == 2 || of == 4;
  nm_rows(scores, rows, cols, of, kept, [=](const float* run, size_t groups, uint8_t* out) {
    const size_t done = fits ? nm_vectors(run, groups, keep, of, out) : 0;
    nm_groups(run + done * of, groups - done, keep, of, out + done * of);
  });
}

uint64_t secateur_digits4_neon(const void* values, size_t n, int shift, int64_t prefix, uint64_t* counts) {
  return digits(static_cast<const int32_t*>(values), n, shift, int32_t(prefix), counts);
}

uint64_t secateur_digits8_neon(const void* values, size_t n, int shift, int64_t prefix, uint64_t* counts) {
  return digits(static_cast<const int64_t*>(values), n, shift, prefix, counts);
}
}
