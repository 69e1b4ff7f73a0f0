// What a sparse matrix kernel is: plain functions on raw memory, one thread, float32, pairs of bf16 or quads of int8.
//
// y = W x, one K-block (a run of input columns) after the other. Activations are feature-major panels x[K][width] with a
// width of 16, 32 or 64 samples, or one sample x[K]. Weights are streams that the kernel reads from front to back:
// counts, column indices inside the block, values. Every call runs all groups of one K-block.
// Files compiled for a higher instruction set include nothing of the C++ library (see mask/kernels.h).
#pragma once

#include <stddef.h>
#include <stdint.h>

extern "C" {

enum secateur_activation {
  secateur_none,
  secateur_relu,
  secateur_gelu,
  secateur_gelu_tanh,
  secateur_silu,
  secateur_relu6,
  secateur_hardswish,
  secateur_leaky_tenth,      // slope 0.1 below zero
  secateur_leaky_hundredth,  // and 0.01
  secateur_activations  // how many there are
};

// A finished panel on its way to row-major samples, square by square (errand.h): features and width are multiples of 16.
typedef struct {
  const float* panel;
  float* samples;
  size_t features, width, stride;
  size_t feature, sample;  // of the next square; sample is width when all is done
} secateur_errand;

// The streams of one K-block, and how many groups of rows they describe. Trusted: checked once, at creation.
typedef struct {
  const void* counts;
  const void* index;
  const float* values;
  size_t groups;
  size_t unit;  // rows of a block: 4, 8 or 16, or of a slice of ell: 16 or 32; not read elsewhere
} secateur_stream;

// Where to read and write. `x` is the slice of this K-block; the rows of `y` are padded to a multiple of 16.
typedef struct {
  const float* x;
  float* y;
  const float* bias;      // one per row of y, padded alike, or null
  const float* residual;  // as y, or null
  size_t width;       // samples side by side: 16, 32, 64; 1 for spmv
  int first;          // the first K-block starts from bias + residual, later ones from y
  int last;           // the last K-block applies the activation
  int activation;
  // Of int8 alone. y holds sums (int32) between K-blocks, and bias and residual come in after the last one:
  // y = scale[row] * step[sample] * (sum - zero[sample] * sums[row]) + bias[row] + residual
  const float* scales;   // what 1 is in the weights of each row of y
  const int32_t* sums;   // of the weights of each row
  const float* steps;    // what 1 is in each sample of x
  const int32_t* zeros;  // what 0 is there
  secateur_errand* errand;  // of blocks: a square after each 4 rows; or null
} secateur_panel;

typedef void spmm_fn(const secateur_stream* stream, const secateur_panel* panel);

// Unstructured, groups of 4 rows. counts[group][15]: how many columns have occupancy pattern p (bit r: row r), p = 1 to
// 15; `index` holds the columns in this order, `values` those of a column in the order of its rows. Counts and indices
// have 8 or 16 bits.
typedef spmm_fn spmm_rows8_fn;
typedef spmm_fn spmm_rows16_fn;

// Unstructured, groups of 4 rows that have (almost) as many columns each in this K-block, whichever rows those are: per
// group 5 counts of 16 bits, the steps and the 4 rows of y; per step 4 indices and 4 values, one for each row. A row that
// runs out takes value 0 at the last index of the block, where x holds zeros.
typedef spmm_fn spmm_even8_fn;
typedef spmm_fn spmm_even16_fn;

// Row by row, for very high sparsity: counts[row] and indices of 16 bits.
typedef spmm_fn spmm_csr_fn;

// Blocks of `unit` rows: counts[group], and per index `unit` values.
typedef spmm_fn spmm_blocks8_fn;
typedef spmm_fn spmm_blocks16_fn;

// One sample, in the formats of csr and blocks, and in ell: 16 lanes, which have one row each (slices of `unit` = 16 rows)
// or two (32: lane i has rows i and 16 + i). counts[slice] records (32 bits); `groups` counts runs of 16 rows, as the last
// slice of 32 may have one. A record is four steps: 64 values, those of a step side by side, and in `index` the first
// columns of the windows of 64 that the steps read (16 bits each; one for all steps where lanes have one row, else one
// for two), then for each lane a byte per step: its place in the window, 63 where it takes no part (its value is 0 then),
// and 64 more for the lane's second row. x is readable 64 floats beyond its end.
typedef spmm_fn spmv_ell_fn;
typedef spmm_fn spmv_csr_fn;
typedef spmm_fn spmv_blocks8_fn;
typedef spmm_fn spmv_blocks16_fn;

// One sample where every row keeps as many of every 16 inputs: slices of 16 rows, counts[slice]: how many (1, 2, 4 or 8),
// and how many windows of 16 inputs (16 bits each). A step has 16 values, one for each row; the indices of 8 steps are 4
// bits each of 16 words, the first step lowest. A row that has fewer in a last window of less than 16 takes value 0 at the
// zero behind it. x is readable 16 floats beyond its end.
typedef spmm_fn spmv_nm_fn;

// The same in bf16: a column is a pair of neighbouring inputs, a value of a weight and of x a word of two bf16 numbers
// (bf16.h); y, bias and residual are float32.
typedef spmm_fn bf16_spmm_rows8_fn;
typedef spmm_fn bf16_spmm_rows16_fn;
typedef spmm_fn bf16_spmm_even8_fn;
typedef spmm_fn bf16_spmm_even16_fn;
typedef spmm_fn bf16_spmm_csr_fn;
typedef spmm_fn bf16_spmm_blocks8_fn;
typedef spmm_fn bf16_spmm_blocks16_fn;
typedef spmm_fn bf16_spmv_ell_fn;
typedef spmm_fn bf16_spmv_csr_fn;
typedef spmm_fn bf16_spmv_blocks8_fn;
typedef spmm_fn bf16_spmv_blocks16_fn;

// panel[features][width] without its rows of zeros to pairs[features / 2][width]; an odd feature goes with 0.
typedef void bf16_from_panel_fn(const float* panel, size_t features, size_t width, float* pairs);

// `features` columns of samples[n][stride] (n <= width) to such pairs; samples that are not there become 0.
typedef void bf16_from_samples_fn(const float* samples, size_t n, size_t stride, size_t features, size_t width, float* pairs);

// The same in int8: a column is four neighbouring inputs, a value of a weight four signed and one of x four unsigned bytes
// (int8.h); sums are exact.
typedef spmm_fn int8_spmm_rows8_fn;
typedef spmm_fn int8_spmm_rows16_fn;
typedef spmm_fn int8_spmm_even8_fn;
typedef spmm_fn int8_spmm_even16_fn;
typedef spmm_fn int8_spmm_csr_fn;
typedef spmm_fn int8_spmm_blocks8_fn;
typedef spmm_fn int8_spmm_blocks16_fn;
typedef spmm_fn int8_spmv_ell_fn;
typedef spmm_fn int8_spmv_csr_fn;
typedef spmm_fn int8_spmv_blocks8_fn;
typedef spmm_fn int8_spmv_blocks16_fn;

// How the numbers of each sample become bytes: byte = round(x * inverse) + zero, from 0 to 255, and x = step * (byte - zero).
// A step of NaN tells a sample that holds NaN or infinity.
typedef struct {
  float* steps;
  float* inverses;
  int32_t* zeros;
} secateur_grid;

// Of up to 16 samples, from least and greatest of x and 0: those of a panel[rows][width] of 16 samples and more (rows of
// zeros may be among them), and those of samples[n][stride].
typedef void int8_grid_of_panel_fn(const float* panel, size_t rows, size_t width, const secateur_grid* grid);
typedef void int8_grid_of_samples_fn(const float* samples, size_t n, size_t stride, size_t features, const secateur_grid* grid);

// As bf16_from_panel and bf16_from_samples, to quads[features / 4][width]; features that are missing become 0.
typedef void int8_from_panel_fn(const float* panel, size_t features, size_t width, const secateur_grid* grid, float* quads);
typedef void int8_from_samples_fn(const float* samples, size_t n, size_t stride, size_t features, size_t width,
                                  const secateur_grid* grid, float* quads);

// `features` columns of samples[n][stride] (n <= width) to panel[features][width]; samples that are not there become 0.
typedef void to_panel_fn(const float* samples, size_t n, size_t stride, size_t features, size_t width, float* panel);

// panel[features][width] to columns of samples[n][stride].
typedef void from_panel_fn(const float* panel, size_t n, size_t stride, size_t features, size_t width, float* samples);

// The same past the caches, where the instruction set can: for samples that are too many for them. The caller fences.
typedef void from_panel_past_fn(const float* panel, size_t n, size_t stride, size_t features, size_t width, float* samples);

// What is left of an errand.
typedef void finish_errand_fn(secateur_errand* errand);

// y = activation(x + other), n floats; other may be null.
typedef void add_fn(const float* x, const float* other, float* y, size_t n, int activation);

// Layer norm of a panel[features][width] with its rows of zeros; scale and shift may be null.
typedef void layer_norm_fn(const float* x, float* y, size_t features, size_t width, const float* scale, const float* shift,
                           float eps);
}
