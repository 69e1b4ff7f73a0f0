// AVX2 and FMA: 16 registers of 4 doubles.
#include "entries.h"

SECATEUR_SOLVERS(avx2, 4, 1, 4)
