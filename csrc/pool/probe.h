// Made-up programs for the pool: what tests and measurements run in place of kernels.
#pragma once

#include <cstddef>
#include <vector>

#include "pool.h"

namespace secateur {

struct Probe {
  size_t regions;   // of a program, one after the other
  size_t pieces;    // of a region
  size_t threads;
  double piece_us;  // of work on a processor of one's own; 0: empty pieces
  double work_us;   // what the pool is told about a region
  double program_us;  // what the session is told; negative: no session
  double pause_us;    // sleep before each program
  Backend backend;
};

struct ProbeResult {
  std::vector<double> program_us;  // measured, one per program
  size_t wrong;                    // pieces of all programs that did not run exactly once
  size_t helped;                   // pieces that ran on another thread than the caller's
};

ProbeResult run_probe(const Probe& probe, size_t programs);

// Steps of the made-up work in a microsecond, measured once.
double probe_speed();

}  // namespace secateur
