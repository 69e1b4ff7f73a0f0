// The reference: plain C++, correct on every machine.
#include "scalar.h"

namespace {

// A word of 64 elements: one look to find whether anything must be cleared, one pass to clear it.
template <typename Element>
inline void apply_words(Element* data, const uint8_t* bits, size_t n) {
  const size_t words = n / 64;
  for (size_t w = 0; w < words; ++w, data += 64) {
    const uint64_t keep = load_word(bits + 8 * w);
    if (keep == ~uint64_t(0)) continue;
    Element mask[64];
    Element dirty = 0;
    for (size_t j = 0; j < 64; ++j) {
      mask[j] = Element(-Element((keep >> j) & 1));
      dirty |= Element(data[j] & Element(~mask[j]));
    }
    if (dirty == 0) continue;
    for (size_t j = 0; j < 64; ++j) data[j] &= mask[j];
  }
  apply_tail(data, bits + 8 * words, 0, n - 64 * words);
}

inline uint64_t count_word(uint64_t word) {
  word -= (word >> 1) & 0x5555555555555555u;
  word = (word & 0x3333333333333333u) + ((word >> 2) & 0x3333333333333333u);
  word = (word + (word >> 4)) & 0x0f0f0f0f0f0f0f0fu;
  return (word * 0x0101010101010101u) >> 56;
}

}  // namespace

extern "C" {

void secateur_pack_portable(const uint8_t* bools, size_t n, uint8_t* bits) { pack_tail(bools, 0, n, bits); }

void secateur_unpack_portable(const uint8_t* bits, size_t n, uint8_t* bools) { unpack_tail(bits, 0, n, bools); }

uint64_t secateur_popcount_portable(const uint8_t* bits, size_t n) {
  uint64_t total = 0;
  for (size_t w = 0; w < n / 64; ++w) total += count_word(load_word(bits + 8 * w));
  return total + popcount_tail(bits, n / 64 * 64, n);
}

void secateur_apply2_portable(void* data, const uint8_t* bits, size_t n) {
  apply_words(static_cast<uint16_t*>(data), bits, n);
}

void secateur_apply4_portable(void* data, const uint8_t* bits, size_t n) {
  apply_words(static_cast<uint32_t*>(data), bits, n);
}

void secateur_apply8_portable(void* data, const uint8_t* bits, size_t n) {
  apply_words(static_cast<uint64_t*>(data), bits, n);
}

void secateur_nm_select_portable(const float* scores, size_t rows, size_t cols, size_t keep, size_t of, uint8_t* kept) {
  nm_rows(scores, rows, cols, of, kept, [=](const float* run, size_t groups, uint8_t* out) {
    nm_groups(run, groups, keep, of, out);
  });
}

uint64_t secateur_digits4_portable(const void* values, size_t n, int shift, int64_t prefix, uint64_t* counts) {
  return digits(static_cast<const int32_t*>(values), n, shift, int32_t(prefix), counts);
}

uint64_t secateur_digits8_portable(const void* values, size_t n, int shift, int64_t prefix, uint64_t* counts) {
  return digits(static_cast<const int64_t*>(values), n, shift, prefix, counts);
}
}
