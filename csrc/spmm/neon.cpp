// AArch64 NEON: 32 registers hold 4 rows by 4 vectors of 4.
#include <arm_neon.h>

#include "entries.h"

namespace {

struct Square {
  static constexpr size_t side = 4, few = side;
  static void run(const float* from, size_t from_stride, float* to, size_t to_stride) {
    const float32x4_t a0 = vld1q_f32(from), a1 = vld1q_f32(from + from_stride);
    const float32x4_t a2 = vld1q_f32(from + 2 * from_stride), a3 = vld1q_f32(from + 3 * from_stride);
    const float32x4_t b0 = vzip1q_f32(a0, a2), b1 = vzip2q_f32(a0, a2);
    const float32x4_t b2 = vzip1q_f32(a1, a3), b3 = vzip2q_f32(a1, a3);
    vst1q_f32(to, vzip1q_f32(b0, b2));
    vst1q_f32(to + to_stride, vzip2q_f32(b0, b2));
    vst1q_f32(to + 2 * to_stride, vzip1q_f32(b1, b3));
    vst1q_f32(to + 3 * to_stride, vzip2q_f32(b1, b3));
  }
  static void part(const float* from, size_t from_stride, float* to, size_t to_stride) { run(from, from_stride, to, to_stride); }
};

}  // namespace

SECATEUR_SPMM(neon, 4, 4, Square, PlainEll, nm_plain)

extern "C" void secateur_from_panel_past_neon(const float* panel, size_t n, size_t stride, size_t features, size_t width,
                                               float* samples) {
  panel_to_samples<Square>(panel, n, stride, features, width, samples);
}
