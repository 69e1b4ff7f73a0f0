// The reference: vectors of 4 floats, which the compiler turns into whatever the machine has.
#include "bf16_entries.h"
#include "entries.h"
#include "int8_entries.h"

namespace {

struct Square {
  static constexpr size_t side = 4, few = side;
  static void run(const float* from, size_t from_stride, float* to, size_t to_stride) {
    for (size_t i = 0; i < side; ++i) {
      for (size_t j = 0; j < side; ++j) to[i * to_stride + j] = from[j * from_stride + i];
    }
  }
  static void part(const float* from, size_t from_stride, float* to, size_t to_stride) { run(from, from_stride, to, to_stride); }
};

}  // namespace

SECATEUR_SPMM(portable, 4, 2, Square, PlainEll, nm_plain)
SECATEUR_BF16(portable, 4, 2, panel_to_pairs_plain, samples_to_pairs_plain, PlainEll)
SECATEUR_INT8(portable, 4, 2, panel_to_quads_plain, samples_to_quads_plain, PlainEll)

extern "C" void secateur_from_panel_past_portable(const float* panel, size_t n, size_t stride, size_t features, size_t width,
                                                  float* samples) {
  panel_to_samples<Square>(panel, n, stride, features, width, samples);
}
