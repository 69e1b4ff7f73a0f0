// AVX2 and FMA: 16 registers hold 4 rows by 2 vectors of 8.
#include <immintrin.h>

#include "entries.h"

namespace {

struct Square {
  static constexpr size_t side = 8, few = side;
  static void run(const float* from, size_t from_stride, float* to, size_t to_stride) {
    __m256 a[8], b[8];
#pragma GCC unroll 8
    for (size_t i = 0; i < 8; ++i) a[i] = _mm256_loadu_ps(from + i * from_stride);
#pragma GCC unroll 4
    for (size_t i = 0; i < 8; i += 2) {
      b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
      b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
    }
#pragma GCC unroll 2
    for (size_t i = 0; i < 8; i += 4) {
      a[i] = _mm256_shuffle_ps(b[i], b[i + 2], 0x44);
      a[i + 1] = _mm256_shuffle_ps(b[i], b[i + 2], 0xee);
      a[i + 2] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0x44);
      a[i + 3] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0xee);
    }
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; ++i) {
      _mm256_storeu_ps(to + i * to_stride, _mm256_permute2f128_ps(a[i], a[i + 4], 0x20));
      _mm256_storeu_ps(to + (i + 4) * to_stride, _mm256_permute2f128_ps(a[i], a[i + 4], 0x31));
    }
  }
  static void part(const float* from, size_t from_stride, float* to, size_t to_stride) { run(from, from_stride, to, to_stride); }
};

}  // namespace

SECATEUR_SPMM(avx2, 8, 2, Square, PlainEll, nm_plain)

extern "C" void secateur_from_panel_past_avx2(const float* panel, size_t n, size_t stride, size_t features, size_t width,
                                               float* samples) {
  panel_to_samples<Square>(panel, n, stride, features, width, samples);
}
