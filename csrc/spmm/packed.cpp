#include "packed.h"

#include <algorithm>
#include <memory>
#include <new>
#include <stdexcept>

namespace secateur {
namespace {

constexpr size_t tile = 16;        // rows of y are padded to it, for every kernel
constexpr size_t ell_window = 32;  // floats that one step of ell reads
constexpr size_t ell_record = 18;
constexpr uint8_t ell_nothing = 128;
constexpr size_t patterns = 15;
constexpr size_t even_header = 5;

size_t padded(size_t n) { return (n + tile - 1) / tile * tile; }

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument("packed weights: " + what); }

// Memory for panels, kept by each thread between calls: a fresh 200 KB costs more in page faults than the kernel takes.
class Scratch {
 public:
  float* take(size_t floats) {
    if (floats > size_) {
      memory_.reset();
      size_ = 0;
      memory_.reset(static_cast<float*>(::operator new[](floats * sizeof(float), std::align_val_t{64})));
      std::fill_n(memory_.get(), floats, 0.0f);
      size_ = floats;
    }
    return memory_.get();
  }

 private:
  struct Free {
    void operator()(float* memory) const { ::operator delete[](memory, std::align_val_t{64}); }
  };
  std::unique_ptr<float[], Free> memory_;
  size_t size_ = 0;
};

float* scratch(size_t floats) {
  thread_local Scratch memory;
  return memory.take(floats);
}

// Patterns 1 to 15 of four rows: how many values a column has.
size_t values_of_pattern(size_t pattern) {
  return (pattern & 1) + (pattern >> 1 & 1) + (pattern >> 2 & 1) + (pattern >> 3 & 1);
}

}  // namespace

Packed::Packed(const KernelTable& table, const Shape& shape, const Streams& streams)
    : table_(table), shape_(shape), streams_(streams) {
  choose_kernels();
  check_shape();
  shape_.block = std::min(shape_.block, std::max<size_t>(shape_.cols, 1));
  walk();
}

void Packed::choose_kernels() {
  const bool bytes = shape_.bits == 8;
  if (shape_.layout == "rows") {
    layout_ = Layout::rows;
    panel_kernel_ = bytes ? table_.spmm_rows8 : table_.spmm_rows16;
  } else if (shape_.layout == "even") {
    layout_ = Layout::even;
    panel_kernel_ = bytes ? table_.spmm_even8 : table_.spmm_even16;
  } else if (shape_.layout == "csr") {
    layout_ = Layout::csr;
    panel_kernel_ = table_.spmm_csr;
    single_kernel_ = table_.spmv_csr;
  } else if (shape_.layout == "blocks") {
    layout_ = Layout::blocks;
    panel_kernel_ = bytes ? table_.spmm_blocks8 : table_.spmm_blocks16;
    single_kernel_ = bytes ? table_.spmv_blocks8 : table_.spmv_blocks16;
  } else if (shape_.layout == "ell") {
    layout_ = Layout::ell;
    single_kernel_ = table_.spmv_ell;
  } else {
    refuse("layout '" + shape_.layout + "' is none of rows, even, csr, blocks, ell");
  }
}

void Packed::check_shape() const {
  constexpr size_t most = size_t(1) << 40;  // products of two lengths must not wrap around
  const size_t unit = shape_.unit, bits = shape_.bits;
  if (shape_.rows > most || shape_.cols > most / std::max<size_t>(shape_.rows, 1)) refuse("the matrix is too large");
  bool unit_fits = false;
  switch (layout_) {
    case Layout::rows:
    case Layout::even: unit_fits = unit == 4; break;
    case Layout::csr: unit_fits = unit == 1; break;
    case Layout::ell: unit_fits = unit == 16; break;
    case Layout::blocks: unit_fits = unit == 4 || unit == 8 || unit == 16; break;
  }
  if (!unit_fits) refuse("a group of " + std::to_string(unit) + " rows does not fit this layout");
  const bool only16 = layout_ == Layout::csr || layout_ == Layout::ell;
  if (bits != 16 && (bits != 8 || only16)) refuse("indices of " + std::to_string(bits) + " bits do not fit this layout");
  if (shape_.block < 1 || shape_.block >= size_t(1) << bits) {
    refuse("K-blocks of " + std::to_string(shape_.block) + " columns do not fit");
  }
  if (shape_.chunk < tile || shape_.chunk % tile != 0 || shape_.chunk > 65520) {
    refuse("chunks of " + std::to_string(shape_.chunk) + " rows do not fit");
  }
}

size_t Packed::k_blocks() const { return std::max<size_t>(1, (shape_.cols + shape_.block - 1) / shape_.block); }
size_t Packed::chunks() const { return (shape_.rows + shape_.chunk - 1) / shape_.chunk; }
size_t Packed::rows_of(size_t chunk) const { return std::min(shape_.chunk, shape_.rows - chunk * shape_.chunk); }
size_t Packed::width_of(size_t k) const {
  return std::min(shape_.block, shape_.cols - std::min(shape_.cols, k * shape_.block));
}

// What the kernels trust: that counts, indices and row names stay inside the streams, the K-block and the chunk.
void Packed::walk() {
  for (size_t chunk = 0; chunk < chunks(); ++chunk) {
    for (size_t k = 0; k < k_blocks(); ++k) {
      pieces_.push_back({static_cast<const char*>(streams_.counts) + counts_at_,
                         static_cast<const char*>(streams_.index) + index_at_, streams_.values + values_at_});
      counts_at_ += walk_counts(counts_at_, rows_of(chunk), width_of(k));
    }
  }
  if (counts_at_ != streams_.counts_bytes) refuse("the stream of counts is too long");
  if (index_at_ != streams_.index_bytes) refuse("there are more indices than counts");
  if (values_at_ != streams_.values_length) refuse("the stream of values has a wrong length");
}

// One piece; returns how many bytes of counts it has.
size_t Packed::walk_counts(size_t counts, size_t rows, size_t width) {
  const size_t groups = (rows + shape_.unit - 1) / shape_.unit, size = shape_.bits / 8;
  const size_t per_group = layout_ == Layout::rows   ? patterns * size
                           : layout_ == Layout::even ? even_header * sizeof(uint16_t)
                           : layout_ == Layout::ell  ? sizeof(uint32_t)
                                                     : size;
  if (groups * per_group > streams_.counts_bytes - counts) refuse("the stream of counts is too short");
  switch (layout_) {
    case Layout::ell: walk_ell(counts, groups, width); break;
    case Layout::even:
      size == 1 ? walk_even<uint8_t>(counts, groups, rows, width) : walk_even<uint16_t>(counts, groups, rows, width);
      break;
    default: size == 1 ? walk_columns<uint8_t>(counts, groups, width) : walk_columns<uint16_t>(counts, groups, width);
  }
  if (values_at_ > streams_.values_length) refuse("the stream of values is too short");
  return groups * per_group;
}

template <typename Index>
void Packed::take_indices(size_t n, size_t limit) {
  if (n > (streams_.index_bytes - index_at_) / sizeof(Index)) refuse("counts reach beyond the indices");
  const Index* index = reinterpret_cast<const Index*>(static_cast<const char*>(streams_.index) + index_at_);
  if (std::any_of(index, index + n, [=](Index at) { return at >= limit; })) refuse("an index lies outside its K-block");
  index_at_ += n * sizeof(Index);
}

template <typename Index>
void Packed::walk_columns(size_t counts, size_t groups, size_t width) {
  const size_t per_group = layout_ == Layout::rows ? patterns : 1;
  const Index* count = reinterpret_cast<const Index*>(static_cast<const char*>(streams_.counts) + counts);
  for (size_t i = 0; i < groups * per_group; ++i) {
    take_indices<Index>(count[i], width);
    values_at_ += count[i] * (layout_ == Layout::rows ? values_of_pattern(i % patterns + 1) : shape_.unit);
  }
}

template <typename Index>
void Packed::walk_even(size_t counts, size_t groups, size_t rows, size_t width) {
  const uint16_t* header = reinterpret_cast<const uint16_t*>(static_cast<const char*>(streams_.counts) + counts);
  std::vector<bool> seen(padded(rows));
  for (size_t group = 0; group < groups; ++group, header += even_header) {
    for (size_t r = 1; r < even_header; ++r) {
      if (header[r] >= seen.size() || seen[header[r]]) refuse("a group names a row that is not there, or one twice");
      seen[header[r]] = true;
    }
    take_indices<Index>(4 * size_t(header[0]), width + 1);  // the column behind the block is zero
    values_at_ += 4 * size_t(header[0]);
  }
  if (std::find(seen.begin(), seen.begin() + ptrdiff_t(rows), false) != seen.begin() + ptrdiff_t(rows)) {
    refuse("a row is in no group");
  }
}

void Packed::walk_ell(size_t counts, size_t groups, size_t width) {
  const uint32_t* count = reinterpret_cast<const uint32_t*>(static_cast<const char*>(streams_.counts) + counts);
  for (size_t group = 0; group < groups; ++group) {
    if (count[group] > (streams_.index_bytes - index_at_) / ell_record) refuse("counts reach beyond the steps");
    for (size_t step = 0; step < count[group]; ++step, index_at_ += ell_record, values_at_ += tile) {
      const uint8_t* record = static_cast<const uint8_t*>(streams_.index) + index_at_;
      const size_t base = size_t(record[0]) | size_t(record[1]) << 8;
      if (base >= width) refuse("a window begins outside its K-block");
      for (size_t r = 0; r < tile; ++r) {
        const uint8_t column = record[2 + r];
        if (column != ell_nothing && (column >= ell_window || base + column >= width)) {
          refuse("an index lies outside its window");
        }
      }
    }
  }
}

// One K-block of one chunk; x is the slice of this K-block.
void Packed::run_piece(spmm_fn* kernel, size_t chunk, size_t k, secateur_panel panel) const {
  const Piece& piece = pieces_[chunk * k_blocks() + k];
  const size_t groups = (rows_of(chunk) + shape_.unit - 1) / shape_.unit;
  const secateur_stream stream{piece.counts, piece.index, piece.values, groups, shape_.unit};
  panel.first = k == 0;
  panel.last = k + 1 == k_blocks();
  kernel(&stream, &panel);
}

void Packed::run_single(const float* x, float* y, const float* bias, int activation) const {
  const size_t x_floats = padded(shape_.cols + ell_window), y_floats = shape_.chunk;
  float* const memory = scratch(x_floats + 2 * y_floats);
  float* const sums = memory + x_floats;
  float* const padded_bias = sums + y_floats;
  if (layout_ == Layout::ell) {  // its windows reach beyond the end
    std::copy_n(x, shape_.cols, memory);
    std::fill(memory + shape_.cols, memory + x_floats, 0.0f);
    x = memory;
  }
  for (size_t chunk = 0; chunk < chunks(); ++chunk) {
    const size_t first = chunk * shape_.chunk, rows = rows_of(chunk);
    if (bias != nullptr) std::copy_n(bias + first, rows, padded_bias);
    const float* const start = bias != nullptr ? padded_bias : nullptr;
    for (size_t k = 0; k < k_blocks(); ++k) {
      run_piece(single_kernel_, chunk, k, {x + k * shape_.block, sums, start, 1, 0, 0, activation});
    }
    std::copy_n(sums, rows, y + first);
  }
}

// A single chunk turns each slice of x to a panel just before its use, into the same memory: it never leaves the first
// cache. Several chunks share the panel of all slices.
void Packed::run_panel(const float* x, size_t n, size_t width, float* y, const float* bias, int activation) const {
  const bool shared = chunks() > 1;
  const size_t step = (shape_.block + 1) * width;  // a column of zeros behind each slice
  const size_t x_floats = (shared ? k_blocks() : 1) * step;
  const size_t y_floats = std::min(shape_.chunk, padded(shape_.rows)) * width;
  float* const memory = scratch(x_floats + y_floats + shape_.chunk);
  float* const sums = memory + x_floats;
  float* const padded_bias = sums + y_floats;
  for (size_t chunk = 0; chunk < chunks(); ++chunk) {
    const size_t first = chunk * shape_.chunk, rows = rows_of(chunk);
    if (bias != nullptr) std::copy_n(bias + first, rows, padded_bias);
    for (size_t k = 0; k < k_blocks(); ++k) {
      float* const slice = memory + (shared ? k * step : 0);
      if (chunk == 0) {
        table_.to_panel(x + k * shape_.block, n, shape_.cols, width_of(k), width, slice);
        std::fill_n(slice + width_of(k) * width, width, 0.0f);
      }
      run_piece(panel_kernel_, chunk, k, {slice, sums, bias != nullptr ? padded_bias : nullptr, width, 0, 0, activation});
    }
    table_.from_panel(sums, n, shape_.rows, rows, width, y + first);
  }
}

void Packed::run(const float* x, size_t n, float* y, const float* bias, int activation) const {
  if (activation < 0 || activation >= secateur_activations) refuse("there is no such activation");
  while (n > 0) {
    size_t taken = 1;
    if (panel_kernel_ == nullptr || (n == 1 && single_kernel_ != nullptr)) {
      run_single(x, y, bias, activation);
    } else {
      const size_t width = n > 32 ? 64 : n > 16 ? 32 : 16;
      taken = std::min(n, width);
      run_panel(x, taken, width, y, bias, activation);
    }
    n -= taken;
    x += taken * shape_.cols;
    y += taken * shape_.rows;
  }
}

}  // namespace secateur
