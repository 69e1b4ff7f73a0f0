// The reference: vectors of 2 doubles, which the compiler turns into whatever the machine has.
#include "entries.h"

SECATEUR_SOLVERS(portable, 2, 1, 2)
