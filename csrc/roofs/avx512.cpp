// AVX-512 F, BW, VL: 32 registers of 16 floats.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 says it of its own header (its bug 105593)
#endif
#include <immintrin.h>

#include "loops.h"

SECATEUR_ROOFS(avx512, 16, 24)
