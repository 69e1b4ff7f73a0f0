// NEON: 32 registers of 2 doubles.
#include "entries.h"

SECATEUR_SOLVERS(neon, 2, 1, 4)
