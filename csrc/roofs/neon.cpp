// AArch64 NEON: 32 registers of 4 floats.
#include <arm_neon.h>

#include "loops.h"

SECATEUR_ROOFS(neon, 4, 24)
