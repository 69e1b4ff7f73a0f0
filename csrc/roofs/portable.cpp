// The reference: vectors of 4 floats, which the compiler turns into whatever the machine has.
#include "loops.h"

SECATEUR_ROOFS(portable, 4, 12)
SECATEUR_BF16_ROOFS(portable, 4, 8)
