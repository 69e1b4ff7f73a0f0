// y = activation(W * x + bias + residual), a convolution with a sparse weight.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../dispatch.h"
#include "../program/step.h"
#include "planes.h"

namespace secateur {

struct Window {
  size_t height, width;  // of the kernel
  size_t step, padding, dilation;
  size_t groups;  // each reads its own share of x's channels and makes its own share of y's

  // Throws std::invalid_argument unless y has as many rows and columns of pixels as this window gives of x, and the
  // groups divide the channels of both.
  void check(const Planes& x, const Planes& y) const;
};

// How a convolution is cut.
struct ConvCut {
  std::string layout;  // blocks (with unit 1: single weights), rows or even
  size_t unit;         // output channels of a group: 1, 2, 4; of rows 2, 4; of even 4
  bool direct;         // x is read where it is: 16 images side by side, or step 1 and rows of x and y equally long;
                       // else copied: for 16 images side by side if the kernel is 1 x 1
  size_t lanes;        // 8 or 16 floats in a vector
  size_t tile;         // rows of output pixels; where direct or side by side, vectors, at most
  size_t block;        // input channels
  size_t chunk;        // output channels, a multiple of the unit
};

// The memory belongs to the caller of SparseConv, and must stay as it was when it was checked.
struct ConvStreams {
  const uint16_t* counts;
  size_t counts_length;
  const uint16_t* offsets;
  size_t offsets_length;
  const float* values;
  size_t values_length;
};

class SparseConv : public Step {
 public:
  // bias: one per channel of y, copied, or null; residual: where a value of y's geometry lies, or null. y does not
  // overlap x; of 16 images side by side it may be laid over the residual, place for place. The streams hold group
  // after group, in a group chunk after chunk, in a chunk block after block. past: results of 16 images side by side,
  // without a residual, go past the caches; for values that are larger. Throws std::invalid_argument.
  SparseConv(const KernelTable& table, const Planes& x, const Planes& y, const Window& window, const ConvCut& cut,
             const ConvStreams& streams, Place from, Place to, const Place* residual, const float* bias,
             int activation, bool past = false);
  size_t pieces() const override { return window_.groups * chunks() * parts(); }
  void run(const Frame& frame, size_t piece) const override;

 private:
  struct Tile {
    size_t x, y;     // in floats, in a plane of x and of y
    size_t rows;     // of output pixels; where direct or side by side, vectors
    size_t shape;    // which of the tables of where the vectors go
  };
  struct Shape {
    std::vector<int32_t> out, mask;
  };

  struct Taken {
    size_t offsets, values;
  };

  void choose_kernel();
  void check() const;
  void cut_copied();
  void cut_direct();
  void cut_images();
  void add_shape(size_t vectors);
  size_t header() const { return cut_.layout == "even" ? 9 : cut_.layout == "rows" ? size_t(1) << cut_.unit : 2; }
  Taken taken_of(const uint16_t* count, std::vector<bool>& seen) const;
  void walk(const ConvStreams& streams);
  // Of a group: channels in and out, and what they are cut into.
  size_t inputs() const { return x_.channels / window_.groups; }
  size_t outputs() const { return y_.channels / window_.groups; }
  size_t blocks() const { return (inputs() + cut_.block - 1) / cut_.block; }
  size_t chunks() const { return (outputs() + cut_.chunk - 1) / cut_.chunk; }
  // Copied pixels of 16 images serve all output channels: threads share the tiles instead.
  size_t parts() const { return x_.lanes > 1 && !cut_.direct ? std::min<size_t>(tiles_.size(), 32) : 1; }
  size_t inputs_of(size_t block) const { return std::min(cut_.block, inputs() - block * cut_.block); }
  size_t outputs_of(size_t chunk) const { return std::min(cut_.chunk, outputs() - chunk * cut_.chunk); }
  size_t limit_of(size_t block) const;
  secateur_conv_ahead ahead_of(const float* x, size_t tile, size_t block) const;
  void gather(const float* x, const Tile& tile, size_t block, float* to) const;
  void gather_images(const float* x, const Tile& tile, size_t block, float* to) const;

  const KernelTable& table_;
  Planes x_, y_;
  Window window_;
  ConvCut cut_;
  Place from_, to_, residual_;
  bool has_residual_;
  std::vector<float> bias_;
  int activation_;
  bool past_;
  conv_fn* kernel_ = nullptr;
  size_t shift_ = 0;
  size_t row_ = 0;                          // copied: floats of a row
  size_t run_ = 0;                          // and of all that a channel has
  std::vector<size_t> phase_rows_;          // and per phase of the step its rows
  size_t width_ = 0;                        // floats of the widest tile
  std::vector<Tile> tiles_;
  std::vector<Shape> shapes_;
  std::vector<secateur_conv_stream> streams_;  // [group][chunk][block]
};

}  // namespace secateur
