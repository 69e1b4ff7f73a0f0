// What a convolution kernel is: plain functions on raw memory, one thread, one image or
// 16 side by side, float32.
//
// A value is `channels` planes, `stride` floats apart; a plane is rows of pixels with zeros around them (planes.h).
// A sparse convolution walks tiles of output pixels. What a tile needs of a block of channels lies in the first cache,
// aligned for every tap ("copied"), or is read where it is ("direct"); then all output channels run over it. Weights
// are streams read from front to back: counts, offsets into that slice, values.
// Files compiled for a higher instruction set include nothing of the C++ library (see mask/kernels.h).
#pragma once

#include "../spmm/kernels.h"

extern "C" {

// The streams of one chunk of output channels and one block of input channels. Trusted: checked once, at creation.
// Groups of `unit` output channels share their offsets; they stand in any order, best by rising count.
typedef struct {
  const uint16_t* counts;  // per group: its number, then how many offsets it has (of each pattern); even: see there
  const uint16_t* offsets;
  const float* values;
  size_t groups;
  size_t unit;   // output channels of a group: 1, 2, 4
  size_t shift;  // an offset counts steps of 2^shift floats
  size_t step;   // 2: every second pixel of 16 images; else 1
} secateur_conv_stream;

// What is read next, fetched to the second cache meanwhile: runs of pixels of 16 images, a cache line each.
typedef struct {
  const float* x;  // or null
  size_t stride, channels, row, rows, pixels;
} secateur_conv_ahead;

typedef struct {
  const float* x;         // where offset 0 of this tile is
  float* sums;            // [output channels of the chunk][vectors * lanes], between blocks of channels
  const float* bias;      // of the chunk, or null
  float* y;               // the tile's first pixel in the plane of the chunk's first output channel
  const float* residual;  // likewise, or null
  size_t y_stride, residual_stride;
  const int32_t* out;   // per vector: where it goes, in floats from y (and from residual)
  const int32_t* mask;  // [vectors * lanes]: all bits set for a pixel, none for a place that holds zero
  size_t vectors, lanes;  // 8 or 16 floats in a vector
  size_t channels;        // output channels of the chunk; the last group may have fewer than `unit`
  int first, last;        // block of channels
  secateur_conv_ahead ahead;
  int images;  // 16 images side by side: each pixel is a cache line
  int past;    // of such: results are not wanted in the caches
  int activation;
} secateur_conv_tile;

typedef void conv_fn(const secateur_conv_stream* stream, const secateur_conv_tile* tile);

// Per group and offset `unit` values: single weights, and blocks along the outputs (a dense weight is made of such).
typedef conv_fn conv_blocks_fn;

// Unstructured, 2 or 4 output channels: offsets by occupancy pattern (bit r: channel r), a count per pattern from 1 on;
// values of an offset in the order of its channels.
typedef conv_fn conv_rows_fn;

// Unstructured, groups of 4 output channels that keep (almost) as many weights each in this block, whichever channels
// those are. counts[group][9]: steps, then for each of the four its number and how many offsets it has beyond them. Per
// step 4 offsets and 4 values, one for each channel; then the rest, channel by channel.
typedef conv_fn conv_even_fn;

// Pixels for a tile, to where all taps are aligned: of every channel, for every column of the kernel and every phase of
// the step, `rows` rows of every step-th pixel.
typedef struct {
  const float* x;  // where the first tap of the tile's first pixel lies in the first plane
  size_t stride, channels, x_row, step;
  size_t columns, dilation;  // of the kernel
  const size_t* rows;        // [step]: of each phase, 0 where no tap meets it
  size_t missing;            // so many of them are not there at the end of a plane; they keep their places
  size_t floats;             // of a copied row, a multiple of 8; up to step - 1 floats behind the last one may be read
  float* to;
} secateur_gather;

typedef void conv_gather_fn(const secateur_gather* gather);

// Pooling of one plane.
typedef struct {
  const float* x;  // where the first tap of the first output pixel lies, outside the plane if there is padding
  float* y;        // the first pixel
  float* line;     // memory for floats * step + kernel + 16 * step
  size_t x_row, y_row, step, kernel, rows, floats;  // floats: of a row of y, rounded up to 16
  size_t height, width, padding;                    // of x
  const float* inside;  // maximum: [kernel][floats], 0 where this column of the kernel meets a pixel, -inf elsewhere
  const int32_t* mask;  // [floats], as in a tile
  const float* scale;   // average: [floats], 1 / pixels of a row of the window
  int average;          // 0: the maximum
  int count_padding;    // average: rows of padding count, too
} secateur_pool;

typedef void conv_pool_fn(const secateur_pool* pool);

// A depthwise convolution of one plane, by all taps of a square kernel or by a list of them.
typedef struct {
  const float* x;         // where the first tap of the first output pixel lies, outside the plane if there is padding
  float* y;               // the first pixel
  const float* residual;  // likewise, or null
  const float* weights;   // of the taps
  const int32_t* places;  // of the taps, in floats from x
  size_t taps;
  size_t kernel;          // 3 or 5, with a step of 1 or 2: the taps are all of such a square, row by row; else 0
  size_t x_row, y_row, step, rows, columns;  // rows and columns of y; it is written up to whole vectors
  float bias;
  int activation;
} secateur_depthwise;

typedef void conv_depthwise_fn(const secateur_depthwise* plane);

// The same of 16 images side by side; floats: pixels of a row of y; line: memory for a row of x; no inside, mask, scale.
typedef conv_pool_fn conv_pool_images_fn;

// The sums of n pixels of 16 images, times `scale`.
typedef void conv_mean_images_fn(const float* x, size_t n, float scale, float* y);

// The sum of n floats, a multiple of 16, times `scale`.
typedef float conv_mean_fn(const float* x, size_t n, float scale);
}
