#include "packed.h"

#include <algorithm>
#include <stdexcept>

#include "../program/panel.h"

namespace secateur {
namespace {

constexpr size_t tile = panel::tile;
constexpr size_t ell_window = 64;  // floats that one step of ell reads
constexpr size_t ell_steps = 4;    // of a record
constexpr size_t ell_nothing = 63;
constexpr size_t patterns = 15;
constexpr size_t even_header = 5;
constexpr size_t most_quad_inputs = ((size_t(1) << 31) - 1) / (127 * 255);  // more could leave int32

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument("packed weights: " + what); }

// Patterns 1 to 15 of four rows: how many values a column has.
size_t values_of_pattern(size_t pattern) {
  return (pattern & 1) + (pattern >> 1 & 1) + (pattern >> 2 & 1) + (pattern >> 3 & 1);
}

}  // namespace

Packed::Packed(const KernelTable& table, const Shape& shape, const Streams& streams)
    : table_(table), shape_(shape), streams_(streams) {
  choose_kernels();
  check_shape();
  walk();
  spread_rows();
}

void Packed::choose_kernels() {
  const bool bytes = shape_.bits == 8;
  const KernelTable& t = table_;
  if (shape_.layout == "rows") {
    layout_ = Layout::rows;
    panel_kernel_ = bytes ? kernel(t.spmm_rows8, t.bf16_spmm_rows8, t.int8_spmm_rows8)
                          : kernel(t.spmm_rows16, t.bf16_spmm_rows16, t.int8_spmm_rows16);
  } else if (shape_.layout == "even") {
    layout_ = Layout::even;
    panel_kernel_ = bytes ? kernel(t.spmm_even8, t.bf16_spmm_even8, t.int8_spmm_even8)
                          : kernel(t.spmm_even16, t.bf16_spmm_even16, t.int8_spmm_even16);
  } else if (shape_.layout == "csr") {
    layout_ = Layout::csr;
    panel_kernel_ = kernel(t.spmm_csr, t.bf16_spmm_csr, t.int8_spmm_csr);
    single_kernel_ = kernel(t.spmv_csr, t.bf16_spmv_csr, t.int8_spmv_csr);
  } else if (shape_.layout == "blocks") {
    layout_ = Layout::blocks;
    panel_kernel_ = bytes ? kernel(t.spmm_blocks8, t.bf16_spmm_blocks8, t.int8_spmm_blocks8)
                          : kernel(t.spmm_blocks16, t.bf16_spmm_blocks16, t.int8_spmm_blocks16);
    single_kernel_ = bytes ? kernel(t.spmv_blocks8, t.bf16_spmv_blocks8, t.int8_spmv_blocks8)
                           : kernel(t.spmv_blocks16, t.bf16_spmv_blocks16, t.int8_spmv_blocks16);
  } else if (shape_.layout == "ell") {
    layout_ = Layout::ell;
    single_kernel_ = kernel(t.spmv_ell, t.bf16_spmv_ell, t.int8_spmv_ell);
  } else if (shape_.layout == "nm") {
    layout_ = Layout::nm;
    if (shape_.word != Word::single) refuse("layout 'nm' is one of float32");
    single_kernel_ = t.spmv_nm;
  } else {
    refuse("layout '" + shape_.layout + "' is none of rows, even, csr, blocks, ell, nm");
  }
}

void Packed::check_shape() const {
  constexpr size_t most = size_t(1) << 40;  // products of two lengths must not wrap around
  const size_t unit = shape_.unit, bits = shape_.bits;
  if (shape_.rows > most || shape_.cols > most / std::max<size_t>(shape_.rows, 1)) refuse("the matrix is too large");
  if (shape_.word == Word::quad) {
    if (shape_.cols > most_quad_inputs) refuse("int8 sums at most " + std::to_string(most_quad_inputs) + " inputs");
    if (shape_.rows > 0 && (streams_.scales == nullptr || streams_.sums == nullptr)) refuse("int8 needs scales and sums");
  }
  bool unit_fits = false;
  switch (layout_) {
    case Layout::rows:
    case Layout::even: unit_fits = unit == 4; break;
    case Layout::csr: unit_fits = unit == 1; break;
    case Layout::nm: unit_fits = unit == tile; break;
    case Layout::ell: unit_fits = unit == tile || unit == 2 * tile; break;
    case Layout::blocks: unit_fits = unit == 4 || unit == 8 || unit == 16; break;
  }
  if (!unit_fits) refuse("a group of " + std::to_string(unit) + " rows does not fit this layout");
  const bool only16 = layout_ == Layout::csr || layout_ == Layout::ell || layout_ == Layout::nm;
  if (bits != 16 && (bits != 8 || only16)) refuse("indices of " + std::to_string(bits) + " bits do not fit this layout");
  if (shape_.block < 1 || shape_.block % panel::run != 0 || panel::columns(shape_.block) > size_t(1) << bits) {
    refuse("K-blocks of " + std::to_string(shape_.block) + " columns do not fit");
  }
  if (shape_.chunk < 1 || shape_.chunk % panel::run != 0 || panel::row_of(shape_.chunk) > 65535) {
    refuse("chunks of " + std::to_string(shape_.chunk) + " rows do not fit");
  }
}

void Packed::spread_rows() {
  if (shape_.word != Word::quad) return;
  scales_.assign(panel::rows(shape_.rows), 0.0f);
  sums_.assign(scales_.size(), 0);
  for (size_t row = 0; row < shape_.rows; ++row) {
    scales_[panel::row_of(row)] = streams_.scales[row];
    sums_[panel::row_of(row)] = streams_.sums[row];
  }
}

size_t Packed::k_blocks() const { return std::max<size_t>(1, (columns() + shape_.block - 1) / shape_.block); }
size_t Packed::chunks() const { return (shape_.rows + shape_.chunk - 1) / shape_.chunk; }
size_t Packed::rows_of(size_t chunk) const { return std::min(shape_.chunk, shape_.rows - chunk * shape_.chunk); }
size_t Packed::columns_of(size_t k) const { return std::min(shape_.block, columns() - std::min(columns(), column_of(k))); }

// Rows that share no loads read every activation from where it lies: a slice of x should nearly fit the first cache.
size_t Packed::lanes(size_t most) const {
  constexpr size_t slice = size_t(50) << 10;  // bytes
  const size_t row = panel::columns(columns_of(0)) * sizeof(float);
  if (layout_ == Layout::even) while (most > tile && most * row > slice) most /= 2;
  return most;
}

// What the kernels trust: that counts, indices and row names stay inside the streams, the K-block and the chunk.
void Packed::walk() {
  for (size_t chunk = 0; chunk < chunks(); ++chunk) {
    const size_t first = first_of(chunk), end = first + rows_of(chunk);
    const size_t step = layout_ == Layout::even ? shape_.chunk : panel::run;  // even names its rows
    for (size_t k = 0; k < k_blocks(); ++k) {
      pieces_from_.push_back(pieces_.size());
      for (size_t row = first; row < end; row += step) {
        walk_piece(row, std::min(step, end - row), panel::columns(columns_of(k)));
      }
    }
  }
  pieces_from_.push_back(pieces_.size());
  if (counts_at_ != streams_.counts_bytes) refuse("the stream of counts is too long");
  if (index_at_ != streams_.index_bytes) refuse("there are more indices than counts");
  if (values_at_ != streams_.values_length) refuse("the stream of values has a wrong length");
}

void Packed::walk_piece(size_t first, size_t rows, size_t width) {
  pieces_.push_back({first, rows, static_cast<const char*>(streams_.counts) + counts_at_,
                     static_cast<const char*>(streams_.index) + index_at_, streams_.values + values_at_});
  counts_at_ += walk_counts(rows, width);
}

// Returns how many bytes of counts this piece has.
size_t Packed::walk_counts(size_t rows, size_t width) {
  const size_t groups = (rows + shape_.unit - 1) / shape_.unit, size = shape_.bits / 8;
  const size_t per_group = layout_ == Layout::rows   ? patterns * size
                           : layout_ == Layout::even ? even_header * sizeof(uint16_t)
                           : layout_ == Layout::ell  ? sizeof(uint32_t)
                           : layout_ == Layout::nm   ? 2 * sizeof(uint16_t)
                                                     : size;
  if (groups * per_group > streams_.counts_bytes - counts_at_) refuse("the stream of counts is too short");
  switch (layout_) {
    case Layout::ell: walk_ell(groups, width); break;
    case Layout::nm: walk_nm(groups, width); break;
    case Layout::even: size == 1 ? walk_even<uint8_t>(groups, rows, width) : walk_even<uint16_t>(groups, rows, width); break;
    default: size == 1 ? walk_columns<uint8_t>(groups, width) : walk_columns<uint16_t>(groups, width);
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
void Packed::walk_columns(size_t groups, size_t width) {
  const size_t per_group = layout_ == Layout::rows ? patterns : 1;
  const Index* count = reinterpret_cast<const Index*>(static_cast<const char*>(streams_.counts) + counts_at_);
  for (size_t i = 0; i < groups * per_group; ++i) {
    take_indices<Index>(count[i], width);
    values_at_ += count[i] * (layout_ == Layout::rows ? values_of_pattern(i % patterns + 1) : shape_.unit);
  }
}

template <typename Index>
void Packed::walk_even(size_t groups, size_t rows, size_t width) {
  const uint16_t* header = reinterpret_cast<const uint16_t*>(static_cast<const char*>(streams_.counts) + counts_at_);
  std::vector<bool> seen(panel::row_of(panel::padded(rows)));
  for (size_t group = 0; group < groups; ++group, header += even_header) {
    for (size_t r = 1; r < even_header; ++r) {
      const size_t row = header[r];
      const bool zero = row % (panel::run + 1) == panel::run;
      if (row >= seen.size() || zero || seen[row]) refuse("a group names a row that is not there, or one twice");
      seen[row] = true;
    }
    take_indices<Index>(4 * size_t(header[0]), width);
    values_at_ += 4 * size_t(header[0]);
  }
  for (size_t row = 0; row < rows; ++row) {
    if (!seen[panel::row_of(row)]) refuse("a row is in no group");
  }
}

void Packed::walk_ell(size_t groups, size_t width) {
  const uint32_t* count = reinterpret_cast<const uint32_t*>(static_cast<const char*>(streams_.counts) + counts_at_);
  const size_t rows = shape_.unit / tile, bases = rows, places = ell_steps * tile, record = 2 * bases + places;
  for (size_t group = 0; group < groups; ++group) {
    if (count[group] > (streams_.index_bytes - index_at_) / record) refuse("counts reach beyond the steps");
    for (size_t i = 0; i < count[group]; ++i, index_at_ += record, values_at_ += places) {
      const uint8_t* at = static_cast<const uint8_t*>(streams_.index) + index_at_;
      const uint8_t* byte = at + 2 * bases;
      for (size_t place = 0; place < places; ++place) {
        const size_t window = place % ell_steps * bases / ell_steps, column = byte[place] % ell_window;
        const size_t base = size_t(at[2 * window]) | size_t(at[2 * window + 1]) << 8;
        if (base >= width) refuse("a window begins outside its K-block");
        if (byte[place] >= rows * ell_window) refuse("a lane has no such row");
        if (column != ell_nothing && base + column >= width) refuse("an index lies outside its window");
      }
    }
  }
}

void Packed::walk_nm(size_t groups, size_t width) {
  const uint16_t* count = reinterpret_cast<const uint16_t*>(static_cast<const char*>(streams_.counts) + counts_at_);
  const size_t features = width - (width + panel::run) / (panel::run + 1), rest = features % tile;
  for (size_t group = 0; group < groups; ++group, count += 2) {
    const size_t each = count[0], windows = count[1], steps = each * windows, words = (steps + 7) / 8 * tile;
    if (each != 1 && each != 2 && each != 4 && each != 8) refuse("a window keeps 1, 2, 4 or 8 inputs");
    if (windows != (features + tile - 1) / tile) refuse("the windows do not cover the K-block");
    if (words > (streams_.index_bytes - index_at_) / sizeof(uint32_t)) refuse("counts reach beyond the indices");
    const uint32_t* word = reinterpret_cast<const uint32_t*>(static_cast<const char*>(streams_.index) + index_at_);
    for (size_t i = (windows - (rest > 0)) * each * tile; i < steps * tile; ++i) {  // others cannot lie outside
      const size_t step = i / tile;
      if ((word[step / 8 * tile + i % tile] >> 4 * (step % 8) & 15) > rest) refuse("an index lies outside its window");
    }
    index_at_ += words * sizeof(uint32_t);
    values_at_ += steps * tile;
  }
}

void Packed::run(size_t chunk, size_t k, const Operands& operands) const {
  const size_t at = chunk * k_blocks() + k;
  const bool quads = shape_.word == Word::quad;
  spmm_fn* const kernel = operands.lanes == 1 ? single_kernel_ : panel_kernel_;
  const size_t group = layout_ == Layout::ell ? tile : shape_.unit;
  for (size_t i = pieces_from_[at]; i < pieces_from_[at + 1]; ++i) {
    const Piece& piece = pieces_[i];
    const size_t row = panel::row_of(piece.first - first_of(chunk));
    const secateur_stream stream{piece.counts, piece.index, piece.values, (piece.rows + group - 1) / group,
                                 shape_.unit};
    const secateur_panel operand{operands.x,
                               operands.y + row * operands.lanes,
                               operands.bias == nullptr ? nullptr : operands.bias + row,
                               operands.residual == nullptr ? nullptr : operands.residual + row * operands.lanes,
                               operands.lanes,
                               k == 0,
                               k + 1 == k_blocks(),
                               operands.activation,
                               quads ? scales_.data() + panel::row_of(piece.first) : nullptr,
                               quads ? sums_.data() + panel::row_of(piece.first) : nullptr,
                               quads ? operands.grid->steps : nullptr,
                               quads ? operands.grid->zeros : nullptr,
                               operands.errand};
    kernel(&stream, &operand);
  }
}

}  // namespace secateur
