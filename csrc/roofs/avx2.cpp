// AVX2 and FMA: 16 registers of 8 floats.
#include <immintrin.h>

#include "loops.h"

SECATEUR_ROOFS(avx2, 8, 12)
