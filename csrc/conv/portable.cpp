// The reference: vectors of 4 floats, which the compiler turns into whatever the machine has.
#include "entries.h"

SECATEUR_CONV(portable, 4, 8, 4, 2, 2)
