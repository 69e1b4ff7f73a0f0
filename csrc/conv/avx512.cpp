// AVX-512 F, BW, VL: 32 registers of 16 or 8 floats.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 says it of its own header (its bug 105593)
#endif
#include <immintrin.h>

#include "entries.h"

SECATEUR_CONV(avx512, 16, 14, 10, 6, 4)
