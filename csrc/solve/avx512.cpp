// AVX-512: 32 registers of 8 doubles.
#include "entries.h"

SECATEUR_SOLVERS(avx512, 8, 3, 8)
