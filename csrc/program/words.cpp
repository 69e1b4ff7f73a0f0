#include "words.h"

#include <algorithm>
#include <stdexcept>

#include "panel.h"

namespace secateur {
namespace {

constexpr size_t tile = panel::tile;  // samples that are measured at once

void check(size_t lanes, const Place& from, const Place& to) {
  if (lanes != 1 && lanes != 16 && lanes != 32 && lanes != 64) {
    throw std::invalid_argument("program: lanes are 1, 16, 32 or 64");
  }
  if (from.where == Place::output || to.where != Place::arena) {
    throw std::invalid_argument("program: to_words goes from an input or the arena to the arena");
  }
}

Source source_of(const Frame& frame, const Place& from, size_t features, size_t lanes) {
  return {from.read(frame), from.where == Place::input, frame.samples, features, lanes};
}

}  // namespace

size_t grid_floats(Word word, size_t lanes) { return word == Word::quad ? 3 * std::max(lanes, tile) : 0; }

secateur_grid grid_at(float* memory, size_t lanes) {
  const size_t samples = std::max(lanes, tile);
  return {memory, memory + samples, reinterpret_cast<int32_t*>(memory + 2 * samples)};
}

size_t grid_parts(size_t lanes) { return std::max<size_t>(1, lanes / tile); }

void measure_grid(const KernelTable& table, const Source& source, size_t part, const secateur_grid& grid) {
  const size_t first = part * tile;
  const secateur_grid here{grid.steps + first, grid.inverses + first, grid.zeros + first};
  if (source.rows) {
    const size_t n = source.samples - std::min(source.samples, first);
    table.int8_grid_of_samples(source.x + (n == 0 ? 0 : first * source.features), n, source.features, source.features, &here);
    return;
  }
  const size_t rows = source.features == 0 ? 0 : panel::row_of(source.features - 1) + 1;
  if (source.lanes == 1) {
    table.int8_grid_of_samples(source.x, 1, rows, rows, &here);
  } else {
    table.int8_grid_of_panel(source.x + first, rows, source.lanes, &here);
  }
}

void to_words(const KernelTable& table, Word word, const Source& source, size_t first, size_t columns,
              const secateur_grid& grid, float* words) {
  const size_t inputs = inputs_of(word);
  const size_t share = source.rows ? panel::run : panel::run / inputs;  // words between two rows of zeros, of x or these
  const size_t lanes = source.lanes, n = source.samples;
  for (size_t at = first; at < first + columns; at += share) {
    const size_t taken = std::min(share, first + columns - at), feature = inputs * at;
    const size_t width = std::min(inputs * taken, source.features - feature);
    const float* const x = source.x + (source.rows ? feature : panel::row_of(feature) * lanes);
    if (word == Word::quad) {
      source.rows ? table.int8_from_samples(x, n, source.features, width, lanes, &grid, words)
                  : table.int8_from_panel(x, width, lanes, &grid, words);
    } else {
      source.rows ? table.bf16_from_samples(x, n, source.features, width, lanes, words)
                  : table.bf16_from_panel(x, width, lanes, words);
    }
    words += taken * lanes;
    if ((at + taken - first) % panel::run != 0 && at + taken < first + columns) continue;
    std::fill_n(words, lanes, 0.0f);
    words += lanes;
  }
}

void zero_rows(float* y, size_t features, size_t first, size_t end, size_t lanes) {
  for (size_t feature = first / panel::run * panel::run + panel::run; feature <= end; feature += panel::run) {
    std::fill_n(y + (panel::row_of(feature) - 1) * lanes, lanes, 0.0f);
  }
  if (end == features) {
    const size_t row = features == 0 ? 0 : panel::row_of(features - 1) + 1;
    std::fill_n(y + row * lanes, (panel::rows(features) - row) * lanes + panel::slack, 0.0f);
  }
}

ToGrid::ToGrid(const KernelTable& table, size_t features, size_t lanes, Place from, Place to)
    : table_(table), features_(features), lanes_(lanes), from_(from), to_(to) {
  check(lanes, from, to);
}

size_t ToGrid::pieces() const { return grid_parts(lanes_); }

void ToGrid::run(const Frame& frame, size_t piece) const {
  measure_grid(table_, source_of(frame, from_, features_, lanes_), piece, grid_at(frame.arena + to_.at, lanes_));
}

ToWords::ToWords(const KernelTable& table, Word word, size_t features, size_t lanes, Place from, Place to)
    : table_(table), word_(word), features_(features), lanes_(lanes), from_(from), to_(to) {
  check(lanes, from, to);
  if (word == Word::single) throw std::invalid_argument("program: to_words makes pairs or quads");
}

size_t ToWords::pieces() const {
  const size_t inputs = inputs_of(word_);
  return std::max<size_t>(1, panel::runs((features_ + inputs - 1) / inputs));
}

void ToWords::run(const Frame& frame, size_t piece) const {
  const size_t inputs = inputs_of(word_), columns = (features_ + inputs - 1) / inputs;
  const size_t first = piece * panel::run, width = std::min(panel::run, columns - first);
  float* const memory = frame.arena + to_.at;
  float* const words = memory + grid_floats(word_, lanes_);
  to_words(table_, word_, source_of(frame, from_, features_, lanes_), first, width, grid_at(memory, lanes_),
           words + panel::row_of(first) * lanes_);
  if (first + width == columns) zero_rows(words, columns, first, columns, lanes_);
}

}  // namespace secateur
