// AVX2 and FMA: 16 registers of 8 floats.
#include <immintrin.h>

#include "entries.h"

SECATEUR_CONV(avx2, 8, 13, 6, 2, 3)
