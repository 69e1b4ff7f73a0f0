// AVX-512 F, BW, VL: 32 registers hold 4 rows by 4 vectors of 16, and one permutation reads 16 of 32 floats.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 says it of its own header (its bug 105593)
#endif
#include <immintrin.h>

#include "avx512.h"
#include "entries.h"

namespace {

struct MaskedSingles {
  static SECATEUR_INLINE __m512 add_where(__mmask16 there, __m512 sum, __m512 weight, __m512 x) {
    return _mm512_mask3_fmadd_ps(x, weight, sum, there);
  }
};

template <typename Math, int L>
using Ell = PermutedEll<Math, MaskedSingles>;

}  // namespace

SECATEUR_SPMM(avx512, 16, 4, Square, Ell, nm_permuted)

extern "C" void secateur_from_panel_past_avx512(const float* panel, size_t n, size_t stride, size_t features, size_t width,
                                                float* samples) {
  if (reinterpret_cast<uintptr_t>(samples) % 64 != 0 || stride % 16 != 0 || features % 16 != 0) {
    return panel_to_samples<Square>(panel, n, stride, features, width, samples);
  }
  panel_to_samples<Turn<true>>(panel, n, stride, features, width, samples);
}
