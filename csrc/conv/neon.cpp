// AArch64 NEON: 32 registers of 4 floats.
#include <arm_neon.h>

#include "entries.h"

SECATEUR_CONV(neon, 4, 14, 10, 6, 4)
