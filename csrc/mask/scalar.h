// Element by element: the meaning of every mask kernel, and the tails of the vector versions.
// The anonymous namespace gives each including file its own copy, compiled with its own flags and never merged.
#pragma once

#include <string.h>

#include "../kernels.h"

namespace {

inline bool bit_at(const uint8_t* bits, size_t i) { return (bits[i >> 3] >> (i & 7)) & 1; }

inline uint64_t load_word(const uint8_t* bits) {
  uint64_t word;
  memcpy(&word, bits, sizeof word);
  return word;
}

// The elements [begin, n); begin is a multiple of 8.
inline void pack_tail(const uint8_t* bools, size_t begin, size_t n, uint8_t* bits) {
  for (size_t i = begin; i < n; i += 8) {
    const size_t width = n - i < 8 ? n - i : 8;
    unsigned byte = 0;
    for (size_t j = 0; j < width; ++j) byte |= unsigned(bools[i + j] != 0) << j;
    bits[i >> 3] = uint8_t(byte);
  }
}

inline void unpack_tail(const uint8_t* bits, size_t begin, size_t n, uint8_t* bools) {
  for (size_t i = begin; i < n; ++i) bools[i] = bit_at(bits, i);
}

inline uint64_t popcount_tail(const uint8_t* bits, size_t begin, size_t n) {
  uint64_t total = 0;
  for (size_t i = begin; i < n; ++i) total += bit_at(bits, i);
  return total;
}

template <typename Element>
inline void apply_tail(Element* data, const uint8_t* bits, size_t begin, size_t n) {
  for (size_t i = begin; i < n; ++i) {
    if (!bit_at(bits, i) && data[i] != 0) data[i] = 0;
  }
}

// Groups [0, groups) of `of` scores each, one after the other.
inline void nm_groups(const float* scores, size_t groups, size_t keep, size_t of, uint8_t* kept) {
  for (size_t g = 0; g < groups; ++g, scores += of, kept += of) {
    for (size_t i = 0; i < of; ++i) {
      size_t ahead = 0;
      for (size_t j = 0; j < of; ++j) ahead += scores[j] > scores[i] || (scores[j] == scores[i] && j > i);
      kept[i] = ahead < keep;
    }
  }
}

// Walks the rows, giving whole groups to `run(scores, groups, kept)` and keeping the tail of each row.
template <typename Run>
inline void nm_rows(const float* scores, size_t rows, size_t cols, size_t of, uint8_t* kept, Run run) {
  const size_t groups = cols / of;
  const size_t tail = cols % of;
  if (tail == 0) return run(scores, rows * groups, kept);
  for (size_t r = 0; r < rows; ++r) {
    run(scores + r * cols, groups, kept + r * cols);
    memset(kept + (r + 1) * cols - tail, 1, tail);
  }
}

template <typename Whole>
inline Whole in_order(Whole bits) {
  constexpr int top = 8 * int(sizeof(Whole)) - 1;
  return bits ^ Whole((bits >> top) & ~(Whole(1) << top));
}

template <typename Whole>
inline uint64_t digits(const Whole* bits, size_t n, int shift, Whole prefix, uint64_t* counts) {
  constexpr int size = 8 * int(sizeof(Whole));
  if (shift + 16 == size) {
    for (size_t i = 0; i < n; ++i) ++counts[size_t((in_order(bits[i]) >> (size - 16)) + 32768)];
    return 0;
  }
  // Few match: runs without any are only looked at.
  constexpr size_t run = 64;
  uint64_t above = 0;
  for (size_t begin = 0; begin < n; begin += run) {
    const size_t width = n - begin < run ? n - begin : run;
    Whole more = 0, equal = 0;
    for (size_t i = 0; i < width; ++i) {
      const Whole high = in_order(bits[begin + i]) >> (shift + 16);
      more += high > prefix;
      equal += high == prefix;
    }
    above += uint64_t(more);
    for (size_t i = 0; equal > 0 && i < width; ++i) {
      const Whole whole = in_order(bits[begin + i]);
      if (whole >> (shift + 16) == prefix) ++counts[(whole >> shift) & 65535];
    }
  }
  return above;
}

}  // namespace
