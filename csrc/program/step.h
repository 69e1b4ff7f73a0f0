// What a program is made of. A program runs its samples in chunks of `lanes`; a step reads and writes values of one chunk.
#pragma once

#include <cstddef>

namespace secateur {

// One chunk of samples on its way through a program.
struct Frame {
  float* arena;                // 64-byte aligned; all values that are neither input nor output
  const float* const* inputs;  // row-major samples of this chunk, one pointer per input of the program
  float* const* outputs;
  size_t samples;              // of this chunk, from 1 to the program's lanes
  size_t image = 0;            // where images go one by one: which of the chunk
  bool past = false;           // an output is larger than the caches of one core, and better written past them
};

// So many floats, of all samples together. Written the usual way, every line of them is read from memory first, and pushes
// out weights that are needed again; smaller ones stay in the second cache for whoever reads them next.
constexpr bool past_caches(size_t floats) { return floats * sizeof(float) > size_t(2) << 20; }

// Where a value lies. Arena values are feature-major, in the step's own layout; the others are row-major.
struct Place {
  enum Where { arena, input, output };
  Where where = arena;
  size_t at = 0;    // floats into the arena, or the number of the input or output
  size_t each = 0;  // floats from image to image, where each has a place of its own

  const float* read(const Frame& frame) const { return where == input ? frame.inputs[at] : write(frame); }
  float* write(const Frame& frame) const { return where == output ? frame.outputs[at] : frame.arena + at + frame.image * each; }
};

// Checked once, at creation, and never changed: a step may run on several threads at once, in different frames.
class Step {
 public:
  virtual ~Step() = default;
  // Independent parts, that may run at the same time.
  virtual size_t pieces() const { return 1; }
  virtual void run(const Frame& frame, size_t piece) const = 0;
};

}  // namespace secateur
