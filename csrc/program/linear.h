// y = activation(W x + bias + residual), and the ways of samples into and out of panels.
#pragma once

#include <memory>
#include <vector>

#include "../spmm/packed.h"
#include "step.h"
#include "words.h"

namespace secateur {

// Where x is an input, its rows are turned to panels slice by slice, just before they are read, and never leave the first
// cache, and so is a panel turned to words; where y is an output, a chunk of rows is turned back as soon as it is done.
// From an input to an output the panels are as narrow as the weight likes them: every chunk of it meets them in turn.
class Linear : public Step {
 public:
  // bias: one per row of the weight, copied, or null. rounded: x is a panel of words already. Throws
  // std::invalid_argument.
  Linear(std::shared_ptr<const Packed> weight, size_t lanes, Place x, Place y, const Place* residual, const float* bias,
         int activation, bool rounded = false);
  size_t pieces() const override;
  void run(const Frame& frame, size_t piece) const override;

 private:
  // Samples that go through together: all of a frame, or `lanes` of them.
  struct Part {
    const float* x;  // as the step finds it
    float* y;        // row-major, or null
    size_t samples, lanes;
    secateur_grid grid;
  };

  size_t sums() const;
  Part part_of(const Frame& frame, size_t first, float* grids) const;
  Source source(const Part& part) const;
  void fetch(const Part& part, size_t first, size_t columns, float* panel) const;
  void run_chunk(const Frame& frame, const Part& part, size_t chunk, const float* x, float* slice, float* y,
                 secateur_errand* errand) const;
  void leave(const Frame& frame, const Part& part, size_t chunk, const float* y, secateur_errand* errand) const;
  void leave_nothing(float* y) const;

  std::shared_ptr<const Packed> weight_;
  size_t lanes_, narrow_;  // of a frame, and of a part
  Place x_, y_, residual_;
  bool has_residual_;
  bool ready_;               // x is a panel as the kernel reads it
  std::vector<float> bias_;  // as the rows of a panel
  int activation_;
};

// y[n][rows] = activation(x[n][cols] W^T + bias[rows]), row-major, as a program of this one step; bias may be null.
void run_linear(std::shared_ptr<const Packed> weight, const float* x, size_t n, float* y, const float* bias, int activation);

// Row-major samples to a panel.
class ToPanel : public Step {
 public:
  ToPanel(const KernelTable& table, size_t features, size_t lanes, Place from, Place to);
  size_t pieces() const override;
  void run(const Frame& frame, size_t piece) const override;

 private:
  const KernelTable& table_;
  size_t features_, lanes_;
  Place from_, to_;
};

// And back.
class FromPanel : public Step {
 public:
  FromPanel(const KernelTable& table, size_t features, size_t lanes, Place from, Place to);
  size_t pieces() const override;
  void run(const Frame& frame, size_t piece) const override;

 private:
  const KernelTable& table_;
  size_t features_, lanes_;
  Place from_, to_;
};

// y = activation(x + other), on panels or anything else that is as long and lies alike, places of zeros included.
class Add : public Step {
 public:
  // other may be null.
  Add(const KernelTable& table, size_t floats, Place x, const Place* other, Place y, int activation);
  void run(const Frame& frame, size_t piece) const override;

 private:
  const KernelTable& table_;
  size_t floats_;
  Place x_, other_, y_;
  bool has_other_;
  int activation_;
};

class LayerNorm : public Step {
 public:
  // scale and shift: one per feature, copied, or null.
  LayerNorm(const KernelTable& table, size_t features, size_t lanes, Place x, Place y, const float* scale, const float* shift,
            float eps);
  void run(const Frame& frame, size_t piece) const override;

 private:
  const KernelTable& table_;
  size_t features_, lanes_;
  Place x_, y_;
  std::vector<float> scale_, shift_;
  float eps_;
};

}  // namespace secateur
