// Regions on the threads of the OpenMP runtime that torch uses, found at run time and never linked.
#pragma once

#include <cstddef>

#include "pool.h"

namespace secateur {

// The entry point that GCC calls for `#pragma omp parallel`: runs function(data) on a team of up to `threads`.
using GompParallel = void (*)(void (*function)(void*), void* data, unsigned threads, unsigned flags);

// Null where no such runtime is loaded (yet).
GompParallel find_gomp();

void run_on_gomp(GompParallel parallel, size_t pieces, size_t threads, Work work, void* context);

}  // namespace secateur
