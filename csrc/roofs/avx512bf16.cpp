// AVX-512 with vdpbf16ps.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 says it of its own header (its bug 105593)
#endif
#include <immintrin.h>

#include "loops.h"

SECATEUR_BF16_ROOFS(avx512bf16, 16, 24)
