// One sample of a weight that keeps equally many of every 16 inputs in every row (2:4 keeps 8). No place is empty, so an
// index is 4 bits and a window of 16 floats is read once for all its steps.
#pragma once

#include "single.h"

namespace {

constexpr size_t nm_window = 16;
constexpr size_t nm_steps = 8;  // whose indices a word has
constexpr size_t nm_run = 6;    // windows between two places of zeros of x (program/panel.h)

SECATEUR_INLINE size_t nm_place(size_t window) { return nm_window * window + window / nm_run; }

template <typename Math, int L>
SECATEUR_INLINE void nm_plain(const secateur_stream* stream, const secateur_panel* panel) {
  const uint16_t* counts = static_cast<const uint16_t*>(stream->counts);
  const uint32_t* words = static_cast<const uint32_t*>(stream->index);
  const float* value = stream->values;
  for (size_t tile = 0; tile < stream->groups; ++tile, counts += 2) {
    const size_t each = counts[0], steps = each * counts[1];
    float sums[16];
    begin_single<Math>(*panel, 16 * tile, 16, sums);
    for (size_t step = 0; step < steps; ++step, value += 16) {
      const float* x = panel->x + nm_place(step / each);
      const uint32_t* word = words + step / nm_steps * 16;
      for (size_t lane = 0; lane < 16; ++lane) {
        const size_t at = word[lane] >> 4 * (step % nm_steps) & 15;
        sums[lane] = Math::add_one(sums[lane], value + lane, x + at);
      }
    }
    for (size_t lane = 0; lane < 16; ++lane) panel->y[16 * tile + lane] = sums[lane];
    words += (steps + nm_steps - 1) / nm_steps * 16;
  }
  finish_single<Math, L>(*panel, 16 * stream->groups);
}

}  // namespace
