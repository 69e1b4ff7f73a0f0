// Panels of words: pairs of bf16 and quads of int8 from row-major samples, or from a panel of the same features.
#pragma once

#include "../spmm/packed.h"
#include "step.h"

namespace secateur {

// Floats in front of a panel of quads: the grid of its samples. Nothing stands in front of others.
size_t grid_floats(Word word, size_t lanes);
secateur_grid grid_at(float* memory, size_t lanes);

// A panel as it becomes one of words. The grid is read for quads alone, and must have been measured.
struct Source {
  const float* x;
  bool rows;  // row-major samples
  size_t samples, features, lanes;
};
void measure_grid(const KernelTable& table, const Source& source, size_t part, const secateur_grid& grid);
size_t grid_parts(size_t lanes);

// `columns` words from `first` on, which begins a run, and the zeros behind each run.
void to_words(const KernelTable& table, Word word, const Source& source, size_t first, size_t columns,
              const secateur_grid& grid, float* words);

// The rows of a panel that hold no feature: behind every run from `first` to `end`, and behind the last feature.
void zero_rows(float* y, size_t features, size_t first, size_t end, size_t lanes);

// Measures the grids of quads: a step of its own, before ToWords, which every one of its pieces needs whole.
class ToGrid : public Step {
 public:
  ToGrid(const KernelTable& table, size_t features, size_t lanes, Place from, Place to);
  size_t pieces() const override;
  void run(const Frame& frame, size_t piece) const override;

 private:
  const KernelTable& table_;
  size_t features_, lanes_;
  Place from_, to_;
};

// A value in words, behind its grid: for the steps that share it.
class ToWords : public Step {
 public:
  ToWords(const KernelTable& table, Word word, size_t features, size_t lanes, Place from, Place to);
  size_t pieces() const override;
  void run(const Frame& frame, size_t piece) const override;

 private:
  const KernelTable& table_;
  Word word_;
  size_t features_, lanes_;
  Place from_, to_;
};

}  // namespace secateur
