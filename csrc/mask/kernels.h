// What a mask kernel is: plain functions on raw memory. Bit i of byte j stands for flat element 8j + i; 1 means kept.
// Files compiled for a higher instruction set include nothing of the C++ library but these C headers: an inline
// function merged by the linker from such a file would be an illegal instruction on an older CPU.
#pragma once

#include <stddef.h>
#include <stdint.h>

extern "C" {

// bools[n] bytes, nonzero is true -> bits[ceil(n/8)]; spare bits become 0.
typedef void pack_fn(const uint8_t* bools, size_t n, uint8_t* bits);

// bits -> bools[n] bytes of 0 or 1.
typedef void unpack_fn(const uint8_t* bits, size_t n, uint8_t* bools);

// How many of the first n bits are set; spare bits are not read.
typedef uint64_t popcount_fn(const uint8_t* bits, size_t n);

// Elements of 2, 4 or 8 bytes: +0 where the bit is 0, untouched where it is 1. Memory that is already clean is only
// read: after an optimiser step on masked gradients that is all of it.
typedef void apply_fn(void* data, const uint8_t* bits, size_t n);
typedef apply_fn apply2_fn;
typedef apply_fn apply4_fn;
typedef apply_fn apply8_fn;

// Of each run of `of` scores in a row keep the `keep` highest; among equals the lower index goes first.
// What is left over at the end of a row (cols % of) is kept. kept[rows * cols] bytes of 0 or 1. No NaN.
typedef void nm_select_fn(const float* scores, size_t rows, size_t cols, size_t keep, size_t of, uint8_t* kept);

// Floats of 4 or 8 bytes as whole numbers in the order of the floats (-0 just below +0), at 16 of their bits:
// counts[65536] grows by how many have each value there. With shift 16 (48) these are the highest bits, the sign turned
// so that the value rises with the float, and all count; below, those count whose bits above shift + 16 are `prefix`.
// Returns how many have more than that there.
typedef uint64_t digits_fn(const void* values, size_t n, int shift, int64_t prefix, uint64_t* counts);
typedef digits_fn digits4_fn;
typedef digits_fn digits8_fn;
}
