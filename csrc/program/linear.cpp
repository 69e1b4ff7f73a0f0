#include "linear.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "panel.h"
#include "scratch.h"
#include "words.h"

namespace secateur {
namespace {

constexpr size_t errand_floats = size_t(16) << 10;  // two of them leave the second cache room for the panel of x

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument("program: " + what); }

void check_lanes(size_t lanes) {
  if (lanes != 1 && lanes != 16 && lanes != 32 && lanes != 64) refuse("lanes are 1, 16, 32 or 64");
}

void check_activation(int activation) {
  if (activation < 0 || activation >= secateur_activations) refuse("there is no such activation");
}

// `width` features from `first` on, which begins a run, and the zeros behind each run.
void to_rows(const KernelTable& table, const float* samples, size_t n, size_t features, size_t lanes, size_t first,
             size_t width, float* panel) {
  for (size_t at = first; at < first + width; at += panel::run) {
    const size_t taken = std::min(panel::run, first + width - at);
    if (lanes == 1) {
      std::memcpy(panel, samples + at, taken * sizeof(float));
    } else {
      table.to_panel(samples + at, n, features, taken, lanes, panel);
    }
    panel += taken * lanes;
    std::fill_n(panel, lanes, 0.0f);
    panel += lanes;
  }
}

void from_rows(const KernelTable& table, const float* panel, size_t n, size_t features, size_t lanes, size_t first,
               size_t width, bool past, float* samples) {
  from_panel_fn* const turn = past ? table.from_panel_past : table.from_panel;
  for (size_t at = first; at < first + width; at += panel::run) {
    const size_t taken = std::min(panel::run, first + width - at);
    if (lanes == 1) {
      std::memcpy(samples + at, panel, taken * sizeof(float));
    } else {
      turn(panel, n, features, taken, lanes, samples + at);
    }
    panel += (panel::run + 1) * lanes;
  }
}

// Whoever is told that a step is done must find what it wrote past the caches.
void fence([[maybe_unused]] bool past) {
#if defined(__x86_64__)
  if (past) __builtin_ia32_sfence();
#endif
}

}  // namespace

Linear::Linear(std::shared_ptr<const Packed> weight, size_t lanes, Place x, Place y, const Place* residual,
               const float* bias, int activation, bool rounded)
    : weight_(std::move(weight)),
      lanes_(lanes),
      narrow_(x.where == Place::input && y.where == Place::output ? weight_->lanes(lanes) : lanes),
      x_(x),
      y_(y),
      residual_(residual == nullptr ? Place{} : *residual),
      has_residual_(residual != nullptr),
      ready_(x.where == Place::arena && rounded == (weight_->word() != Word::single)),
      activation_(activation) {
  check_lanes(lanes);
  check_activation(activation);
  if (lanes == 1 ? !weight_->runs_single() : !weight_->runs_panels()) refuse("this layout does not run at these lanes");
  if (x.where == Place::output || y.where == Place::input) refuse("a step reads inputs and writes outputs");
  if (rounded && !ready_) refuse("only weights in words read words, from the arena");
  if (has_residual_ && (residual->where != Place::arena || y.where != Place::arena)) refuse("residuals lie in the arena");
  if (bias == nullptr) return;
  const size_t rows = weight_->rows();
  bias_.assign(panel::rows(rows), 0.0f);
  for (size_t row = 0; row < rows; row += panel::run) {
    std::copy_n(bias + row, std::min(panel::run, rows - row), bias_.data() + panel::row_of(row));
  }
}

size_t Linear::pieces() const { return ready_ ? std::max<size_t>(1, weight_->chunks()) : 1; }

void Linear::run(const Frame& frame, size_t piece) const {
  const size_t chunks = weight_->chunks(), front = grid_floats(weight_->word(), lanes_);
  if (ready_) {
    float* const y = y_.where == Place::arena ? frame.arena + y_.at : scratch(sums());
    if (chunks == 0) return leave_nothing(y);
    float* const memory = frame.arena + x_.at;
    const Part part = part_of(frame, 0, memory);
    run_chunk(frame, part, piece, memory + front, nullptr, y, nullptr);
    leave(frame, part, piece, y, nullptr);
    return fence(frame.past);
  }
  // Several chunks share the panel of all slices; a single one turns each slice just before its use, into the same memory.
  const bool shared = chunks > 1;
  const size_t columns = shared ? weight_->columns() : weight_->columns_of(0);
  const size_t x_floats = panel::columns(columns) * narrow_ + panel::tile * narrow_ + panel::slack;
  const size_t parts = (frame.samples + narrow_ - 1) / narrow_;
  float* const grids = scratch(front + (shared ? parts : 1) * x_floats + 2 * sums());
  float* const memory = grids + front;
  float* const y = y_.where == Place::arena ? frame.arena + y_.at : memory + (shared ? parts : 1) * x_floats;
  const Source whole{x_.read(frame), x_.where == Place::input, frame.samples, weight_->cols(), lanes_};
  for (size_t part = 0; weight_->word() == Word::quad && part < grid_parts(lanes_); ++part) {
    measure_grid(weight_->table(), whole, part, grid_at(grids, lanes_));
  }
  for (size_t i = 0; shared && i < parts; ++i) fetch(part_of(frame, i * narrow_, grids), 0, columns, memory + i * x_floats);
  if (chunks == 0) return leave_nothing(y);
  // What is done leaves while the next is made: two in turn, where they are small.
  secateur_errand errand{nullptr, nullptr, 0, 0, 0, 0, 0};
  const bool meanwhile = weight_->runs_errands() && sums() > 0 && sums() <= errand_floats && !frame.past;
  float* here = y;
  for (size_t chunk = 0; chunk < chunks; ++chunk) {
    for (size_t i = 0; i < parts; ++i) {
      const Part part = part_of(frame, i * narrow_, grids);
      run_chunk(frame, part, chunk, memory + (shared ? i * x_floats : 0), shared ? nullptr : memory, here, &errand);
      weight_->table().finish_errand(&errand);
      leave(frame, part, chunk, here, meanwhile ? &errand : nullptr);
      if (meanwhile) here = here == y ? y + sums() : y;
    }
  }
  weight_->table().finish_errand(&errand);
  fence(frame.past);
}

// The samples from `first` on; a frame whose ends are not both row-major is one part.
Linear::Part Linear::part_of(const Frame& frame, size_t first, float* grids) const {
  const secateur_grid grid = grid_at(grids, lanes_);
  return {x_.read(frame) + first * weight_->cols(),
          y_.where == Place::output ? frame.outputs[y_.at] + first * weight_->rows() : nullptr,
          std::min(narrow_, frame.samples - first),
          narrow_,
          {grid.steps + first, grid.inverses + first, grid.zeros + first}};
}

Source Linear::source(const Part& part) const {
  return {part.x, x_.where == Place::input, part.samples, weight_->cols(), part.lanes};
}

// Columns of x as the kernel reads them, and what a window may read behind them.
void Linear::fetch(const Part& part, size_t first, size_t columns, float* panel) const {
  if (weight_->word() == Word::single) {
    to_rows(weight_->table(), part.x, part.samples, weight_->cols(), part.lanes, first, columns, panel);
  } else {
    to_words(weight_->table(), weight_->word(), source(part), first, columns, part.grid, panel);
  }
  std::fill_n(panel + panel::columns(columns) * part.lanes, panel::slack, 0.0f);
}

// Floats of a chunk of an output, before it is turned to rows.
size_t Linear::sums() const {
  return y_.where == Place::arena || weight_->chunks() == 0 ? 0 : panel::floats(weight_->rows_of(0), narrow_);
}

// A weight without rows: in the arena its value is rows of zeros that others may read, an output has nothing at all.
void Linear::leave_nothing(float* y) const {
  if (y_.where == Place::arena) zero_rows(y, 0, 0, 0, lanes_);
}

// `slice`: memory for one K-block of x where x is not a panel yet. `y` is the whole value, or where y is an output, memory
// for one chunk.
void Linear::run_chunk(const Frame& frame, const Part& part, size_t chunk, const float* x, float* slice, float* y,
                       secateur_errand* errand) const {
  const size_t first = weight_->first_of(chunk), rows = weight_->rows_of(chunk), row = panel::row_of(first);
  const size_t lanes = part.lanes;
  const bool inside = y_.where == Place::arena;
  float* const value = y;
  if (inside) y += row * lanes;
  const Operands operands{x, y, bias_.empty() ? nullptr : bias_.data() + row,
                          has_residual_ ? frame.arena + residual_.at + row * lanes : nullptr, lanes, activation_, errand,
                          &part.grid};
  for (size_t k = 0; k < weight_->k_blocks(); ++k) {
    Operands here = operands;
    if (slice != nullptr) {
      fetch(part, weight_->column_of(k), weight_->columns_of(k), slice);
    } else {
      here.x = x + panel::row_of(weight_->column_of(k)) * lanes;
    }
    weight_->run(chunk, k, here);
  }
  // Last: a kernel writes whole groups, and what it makes of rows that are not there may be NaN.
  inside ? zero_rows(value, weight_->rows(), first, first + rows, lanes) : zero_rows(y, rows, 0, rows, lanes);
}

// A chunk of an output, turned to rows at once, or by an errand beside the next one.
void Linear::leave(const Frame& frame, const Part& part, size_t chunk, const float* y, secateur_errand* errand) const {
  if (y_.where == Place::arena) return;
  const size_t first = weight_->first_of(chunk), rows = weight_->rows_of(chunk);
  if (errand != nullptr && part.samples == part.lanes && part.lanes % panel::tile == 0 && rows % panel::tile == 0) {
    *errand = {y, part.y + first, rows, part.lanes, weight_->rows(), 0, 0};
    return;
  }
  from_rows(weight_->table(), y, part.samples, weight_->rows(), part.lanes, first, rows, frame.past, part.y);
}

void run_linear(std::shared_ptr<const Packed> weight, const float* x, size_t n, float* y, const float* bias, int activation) {
  const bool single = !weight->runs_panels() || (n == 1 && weight->runs_single());
  const size_t lanes = single ? 1 : n > 32 ? 64 : n > 16 ? 32 : 16;
  const size_t rows = weight->rows(), cols = weight->cols();
  const Linear step(std::move(weight), lanes, {Place::input, 0}, {Place::output, 0}, nullptr, bias, activation);
  for (size_t first = 0; first < n; first += lanes) {
    const float* const from = x + first * cols;
    float* const to = y + first * rows;
    step.run({nullptr, &from, &to, std::min(lanes, n - first), 0, past_caches(n * rows)}, 0);
  }
}

ToPanel::ToPanel(const KernelTable& table, size_t features, size_t lanes, Place from, Place to)
    : table_(table), features_(features), lanes_(lanes), from_(from), to_(to) {
  check_lanes(lanes);
  if (from.where != Place::input || to.where != Place::arena) refuse("to_panel goes from an input to the arena");
}

size_t ToPanel::pieces() const { return std::max<size_t>(1, panel::runs(features_)); }

void ToPanel::run(const Frame& frame, size_t piece) const {
  const size_t first = piece * panel::run, width = std::min(panel::run, features_ - first);
  float* const panel = frame.arena + to_.at;
  if (features_ > 0) {
    to_rows(table_, frame.inputs[from_.at], frame.samples, features_, lanes_, first, width, panel + panel::row_of(first) * lanes_);
  }
  if (first + width == features_) zero_rows(panel, features_, first, features_, lanes_);
}

FromPanel::FromPanel(const KernelTable& table, size_t features, size_t lanes, Place from, Place to)
    : table_(table), features_(features), lanes_(lanes), from_(from), to_(to) {
  check_lanes(lanes);
  if (from.where != Place::arena || to.where != Place::output) refuse("from_panel goes from the arena to an output");
}

size_t FromPanel::pieces() const { return std::max<size_t>(1, panel::runs(features_)); }

void FromPanel::run(const Frame& frame, size_t piece) const {
  if (features_ == 0) return;
  const size_t first = piece * panel::run, width = std::min(panel::run, features_ - first);
  from_rows(table_, frame.arena + from_.at + panel::row_of(first) * lanes_, frame.samples, features_, lanes_, first, width,
            frame.past, frame.outputs[to_.at]);
  fence(frame.past);
}

Add::Add(const KernelTable& table, size_t floats, Place x, const Place* other, Place y, int activation)
    : table_(table),
      floats_(floats),
      x_(x),
      other_(other == nullptr ? Place{} : *other),
      y_(y),
      has_other_(other != nullptr),
      activation_(activation) {
  check_activation(activation);
  if (x.where != Place::arena || other_.where != Place::arena || y.where != Place::arena) refuse("add works in the arena");
}

void Add::run(const Frame& frame, size_t) const {
  table_.add(frame.arena + x_.at, has_other_ ? frame.arena + other_.at : nullptr, frame.arena + y_.at, floats_, activation_);
}

LayerNorm::LayerNorm(const KernelTable& table, size_t features, size_t lanes, Place x, Place y, const float* scale,
                     const float* shift, float eps)
    : table_(table), features_(features), lanes_(lanes), x_(x), y_(y), eps_(eps) {
  check_lanes(lanes);
  if (features == 0) refuse("a layer norm needs features");
  if (x.where != Place::arena || y.where != Place::arena) refuse("layer norm works in the arena");
  if (scale != nullptr) scale_.assign(scale, scale + features);
  if (shift != nullptr) shift_.assign(shift, shift + features);
}

void LayerNorm::run(const Frame& frame, size_t) const {
  float* const y = frame.arena + y_.at;
  zero_rows(y, features_, 0, features_, lanes_);
  table_.layer_norm(frame.arena + x_.at, y, features_, lanes_, scale_.empty() ? nullptr : scale_.data(),
                    shift_.empty() ? nullptr : shift_.data(), eps_);
}

}  // namespace secateur
