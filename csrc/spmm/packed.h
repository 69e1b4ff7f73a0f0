// A sparse matrix in one of the packed layouts, checked once and then run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "../dispatch.h"

namespace secateur {

// What a word of the values and of the panel is: a float, or two neighbouring inputs in bf16, or four in int8.
enum class Word { single, pair, quad };

// Inputs of a word.
constexpr size_t inputs_of(Word word) { return word == Word::quad ? 4 : word == Word::pair ? 2 : 1; }

// The memory belongs to the caller and must stay as it was when it was checked.
struct Streams {
  const void* counts;
  size_t counts_bytes;
  const void* index;
  size_t index_bytes;
  const float* values;  // words of 32 bits
  size_t values_length;
  // Of quads, one per row, else null: what 1 is in its weights, and their sum.
  const float* scales = nullptr;
  const int32_t* sums = nullptr;
};

struct Shape {
  std::string layout;  // rows, even, csr, blocks, ell, nm
  size_t rows, cols;   // features
  size_t unit;         // rows of a group
  size_t chunk;        // rows of a chunk: whole runs (program/panel.h)
  size_t block;        // columns of a K-block, words: whole runs
  size_t bits;         // of an index: 8 or 16
  Word word = Word::single;
};

// Panels as program/panel.h lays them out, that of pairs too; x begins with the K-block, y, bias and residual with the chunk.
struct Operands {
  const float* x;
  float* y;
  const float* bias;      // one per row of a panel, or null
  const float* residual;  // as y, or null
  size_t lanes;           // 1, 16, 32, 64
  int activation;
  secateur_errand* errand = nullptr;
  const secateur_grid* grid = nullptr;  // of the samples of x, where they are quads
};

class Packed {
 public:
  // Throws std::invalid_argument for streams that a kernel would read out of bounds.
  // The streams hold chunk after chunk (of rows; the last may be short), inside a chunk K-block after K-block.
  Packed(const KernelTable& table, const Shape& shape, const Streams& streams);

  const KernelTable& table() const { return table_; }
  size_t rows() const { return shape_.rows; }
  size_t cols() const { return shape_.cols; }
  bool runs_single() const { return single_kernel_ != nullptr; }
  bool runs_panels() const { return panel_kernel_ != nullptr; }

  size_t chunks() const;
  size_t first_of(size_t chunk) const { return chunk * shape_.chunk; }
  size_t rows_of(size_t chunk) const;
  Word word() const { return shape_.word; }
  size_t columns() const { return (shape_.cols + inputs_of(shape_.word) - 1) / inputs_of(shape_.word); }
  size_t k_blocks() const;
  size_t column_of(size_t k_block) const { return k_block * shape_.block; }
  size_t columns_of(size_t k_block) const;

  // Samples side by side, of at most so many, that suit this layout best where nothing else decides.
  size_t lanes(size_t most) const;

  // Whether its kernel does an errand.
  bool runs_errands() const { return layout_ == Layout::blocks; }

  // One K-block of one chunk. The first K-block starts from bias and residual, the last one activates.
  void run(size_t chunk, size_t k_block, const Operands& operands) const;

 private:
  enum class Layout { rows, even, csr, blocks, ell, nm };

  // One K-block of a run of rows (`even`: of a chunk): where its weights begin in each stream.
  struct Piece {
    size_t first, rows;
    const char* counts;
    const char* index;
    const float* values;
  };

  void choose_kernels();
  spmm_fn* kernel(spmm_fn* singles, spmm_fn* pairs, spmm_fn* quads) const {
    return shape_.word == Word::quad ? quads : shape_.word == Word::pair ? pairs : singles;
  }
  void spread_rows();
  void check_shape() const;
  void walk();
  void walk_piece(size_t first, size_t rows, size_t width);
  size_t walk_counts(size_t rows, size_t width);
  template <typename Index>
  void walk_columns(size_t groups, size_t width);
  template <typename Index>
  void walk_even(size_t groups, size_t rows, size_t width);
  void walk_ell(size_t groups, size_t width);
  void walk_nm(size_t groups, size_t width);
  template <typename Index>
  void take_indices(size_t n, size_t limit);

  const KernelTable& table_;
  Shape shape_;
  Layout layout_;
  Streams streams_;
  std::vector<Piece> pieces_;
  std::vector<size_t> pieces_from_;  // [chunk * K-blocks + K-block] -> its first piece, and one more at the end
  std::vector<float> scales_;        // as the rows of a panel
  std::vector<int32_t> sums_;
  size_t counts_at_ = 0, index_at_ = 0, values_at_ = 0;  // how far the check has walked: bytes, bytes, floats
  spmm_fn* panel_kernel_ = nullptr;
  spmm_fn* single_kernel_ = nullptr;
};

}  // namespace secateur
