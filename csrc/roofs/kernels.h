// Loops that reach what one core can do at most: a sparse kernel is held against them. They compute nothing of use.
// Files compiled for a higher instruction set include nothing of the C++ library (see mask/kernels.h).
#pragma once

#include <stddef.h>
#include <stdint.h>

extern "C" {
// `rounds` times sum = x + sum * weight in as many registers as hide the latency, register i from `start` + i. The sum of
// the registers goes to out[16], as many floats as a vector has. Returns the operations: a multiply-add is two of them.
typedef uint64_t roof_fma_fn(size_t rounds, float start, float weight, float x, float* out);

// The same with products of two pairs of bf16, of which the second pair is 0: four operations each.
typedef roof_fma_fn bf16_roof_fma_fn;

// The sum of n floats, a multiple of 256: nothing but loads that the adders keep up with.
typedef float roof_read_fn(const float* x, size_t n);
}
