// One sample of an unstructured weight: 16 lanes, each with a place of its own in a window of 64 columns of x. `Form` says
// how many rows a lane has and how many windows four steps have; kernels.h has the records.
#pragma once

#include <string.h>

#include "single.h"

namespace {

template <int Bases, int Rows>
struct EllForm {
  static constexpr size_t bases = Bases;  // windows of a record
  static constexpr size_t rows = Rows;    // of a lane
  static constexpr size_t record = 64 + 2 * Bases;
};

// One row a lane: fewest instructions. Two: rows that wait for each other lie 64 columns apart instead of 32, so that
// fewer places stay empty where weights are rare.
using EllOne = EllForm<1, 1>;
using EllTwin = EllForm<2, 2>;

constexpr size_t ell_steps = 4;
constexpr size_t ell_window = 64;
constexpr uint8_t ell_nothing = 63;  // the place of a lane that takes no part: the last of a window is nobody's

// The meaning of ell, and what runs where no permutation of 64 floats exists.
template <typename Math, int L>
struct PlainEll {
  template <typename Form>
  static SECATEUR_INLINE void run(const secateur_stream& stream, const secateur_panel& panel) {
    const uint32_t* records = static_cast<const uint32_t*>(stream.counts);
    const uint8_t* record = static_cast<const uint8_t*>(stream.index);
    const float* value = stream.values;
    for (size_t tile = 0; tile < stream.groups; tile += Form::rows) {
      const size_t height = 16 * (stream.groups - tile < Form::rows ? stream.groups - tile : Form::rows);
      float sums[16 * Form::rows] = {};
      begin_single<Math>(panel, 16 * tile, height, sums);
      for (uint32_t left = *records++; left > 0; --left, record += Form::record) {
        uint16_t first[Form::bases];
        memcpy(first, record, sizeof first);
        for (size_t step = 0; step < ell_steps; ++step, value += 16) {
          const float* x = panel.x + first[step * Form::bases / ell_steps];
          for (size_t lane = 0; lane < 16; ++lane) {
            const uint8_t at = record[2 * Form::bases + ell_steps * lane + step];
            const size_t place = at % ell_window;
            if (place == ell_nothing) continue;
            float& sum = sums[lane + 16 * (at / ell_window)];
            sum = Math::add_one(sum, value + lane, x + place);
          }
        }
      }
      memcpy(panel.y + 16 * tile, sums, height * sizeof(float));
    }
    finish_single<Math, L>(panel, 16 * stream.groups);
  }
};

template <typename Kernel>
SECATEUR_INLINE void ell_of(const secateur_stream* stream, const secateur_panel* panel) {
  switch (stream->unit) {
    case 16: return Kernel::template run<EllOne>(*stream, *panel);
    case 32: return Kernel::template run<EllTwin>(*stream, *panel);
  }
}

}  // namespace
