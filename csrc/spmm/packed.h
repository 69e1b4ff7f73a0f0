// A sparse matrix in one of the packed layouts, checked once and then run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "../dispatch.h"

namespace secateur {

// The memory belongs to the caller and must stay as it was when it was checked.
struct Streams {
  const void* counts;
  size_t counts_bytes;
  const void* index;
  size_t index_bytes;
  const float* values;
  size_t values_length;
};

struct Shape {
  std::string layout;  // rows, even, csr, blocks, ell
  size_t rows, cols;
  size_t unit;   // rows of a group
  size_t chunk;  // rows of a chunk, a multiple of 16
  size_t block;  // columns of a K-block
  size_t bits;   // of an index: 8 or 16
};

class Packed {
 public:
  // Throws std::invalid_argument for streams that a kernel would read out of bounds.
  // The streams hold chunk after chunk (of rows; the last may be short), inside a chunk K-block after K-block.
  Packed(const KernelTable& table, const Shape& shape, const Streams& streams);

  // y[n][rows] = activation(x[n][cols] W^T + bias[rows]); bias may be null.
  void run(const float* x, size_t n, float* y, const float* bias, int activation) const;

 private:
  enum class Layout { rows, even, csr, blocks, ell };

  // One chunk of one K-block: where its weights begin in each stream.
  struct Piece {
    const char* counts;
    const char* index;
    const float* values;
  };

  void choose_kernels();
  void check_shape() const;
  void walk();
  size_t walk_counts(size_t counts, size_t rows, size_t width);
  template <typename Index>
  void walk_columns(size_t counts, size_t groups, size_t width);
  template <typename Index>
  void walk_even(size_t counts, size_t groups, size_t rows, size_t width);
  void walk_ell(size_t counts, size_t groups, size_t width);
  template <typename Index>
  void take_indices(size_t n, size_t limit);
  void run_piece(spmm_fn* kernel, size_t chunk, size_t k, secateur_panel panel) const;
  void run_single(const float* x, float* y, const float* bias, int activation) const;
  void run_panel(const float* x, size_t n, size_t width, float* y, const float* bias, int activation) const;
  size_t k_blocks() const;
  size_t chunks() const;
  size_t rows_of(size_t chunk) const;
  size_t width_of(size_t k_block) const;

  const KernelTable& table_;
  Shape shape_;
  Layout layout_;
  Streams streams_;
  std::vector<Piece> pieces_;  // [chunk][K-block]
  size_t counts_at_ = 0, index_at_ = 0, values_at_ = 0;  // how far the check has walked: bytes, bytes, floats
  spmm_fn* panel_kernel_ = nullptr;
  spmm_fn* single_kernel_ = nullptr;
};

}  // namespace secateur
