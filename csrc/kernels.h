// Every kernel of every room, declared for the instruction sets of this architecture.
#pragma once

#include "conv/kernels.h"
#include "mask/kernels.h"
#include "roofs/kernels.h"
#include "solve/kernels.h"
#include "spmm/kernels.h"

extern "C" {
#define SECATEUR_KERNEL(kernel, isa) kernel##_fn secateur_##kernel##_##isa;
#include "kernels.def"
}
