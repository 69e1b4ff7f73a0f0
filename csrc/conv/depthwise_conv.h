// y = activation(W * x + bias + residual), a convolution in which every output channel reads one input channel.
#pragma once

#include <cstdint>
#include <vector>

#include "../dispatch.h"
#include "../program/step.h"
#include "planes.h"
#include "sparse_conv.h"

namespace secateur {

class DepthwiseConv : public Step {
 public:
  // window.groups are the channels of x; y has as many or a multiple. weights: [channels of y][height][width], copied;
  // one that is 0 was removed. chunk: output channels of a piece. bias, residual: as of SparseConv. Throws
  // std::invalid_argument.
  DepthwiseConv(const KernelTable& table, const Planes& x, const Planes& y, const Window& window, size_t chunk,
                const float* weights, size_t length, Place from, Place to, const Place* residual, const float* bias,
                int activation);
  size_t pieces() const override { return (y_.channels + chunk_ - 1) / chunk_; }
  void run(const Frame& frame, size_t piece) const override;

 private:
  // Of a plane: its kept weights begin at `at`; whole: none was removed, and the kernel has a form for such a window.
  struct Taps {
    size_t at, count;
    bool whole;
  };

  void check(size_t length) const;
  void take(const float* weights);

  const KernelTable& table_;
  Planes x_, y_;
  Window window_;
  size_t chunk_;
  Place from_, to_, residual_;
  bool has_residual_;
  int activation_;
  size_t covered_;  // floats of a row that the kernel writes at least: the narrowest vectors have 4
  std::vector<float> bias_, weights_;
  std::vector<int32_t> places_;
  std::vector<Taps> taps_;
};

}  // namespace secateur
