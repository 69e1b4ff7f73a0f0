// The Python face of the roofs: what one core reaches at most, as the best of short runs.
#include <nanobind/nanobind.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <stdexcept>
#include <vector>

#include "bind.h"
#include "dispatch.h"

namespace nb = nanobind;
using namespace nb::literals;
using secateur::KernelTable;

namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t rounds = 20000;         // a tenth of a millisecond
constexpr size_t shortest_read = 1 << 22;  // bytes of a run: smaller arrays are read several times

// The largest amount per second of any run that begins within `seconds`. Runs that something else slowed do not count.
template <typename Run>
double best_rate(double seconds, Run run) {
  if (!(seconds > 0 && seconds <= 10)) throw std::invalid_argument("seconds: more than 0 and at most 10 are allowed");
  run();  // warms caches and clock
  double best = 0;
  const Clock::time_point end = Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  do {
    const Clock::time_point begin = Clock::now();
    const double amount = run();
    const double took = std::chrono::duration<double>(Clock::now() - begin).count();
    if (took > 0) best = std::max(best, amount / took);
  } while (Clock::now() < end);
  return best;
}

void check(bool right) {
  if (!right) throw std::runtime_error("a roof's loop computed something else than it should");
}

double fma_rate(const KernelTable& table, bool pairs, double seconds) {
  const nb::gil_scoped_release released;
  roof_fma_fn* const loop = pairs ? table.bf16_roof_fma : table.roof_fma;
  return best_rate(seconds, [loop] {
    float out[16];
    const auto operations = static_cast<double>(loop(rounds, 2.0f, 0.5f, 1.0f, out));  // all end at 2 = 1 + 2 / 2
    check(out[0] > 0 && std::fmod(out[0], 2.0f) == 0);
    return operations;
  });
}

double read_rate(const KernelTable& table, size_t bytes, double seconds) {
  if (bytes < 1024 || bytes > size_t(1) << 32) throw std::invalid_argument("bytes: 1024 to 2^32 are allowed");
  const nb::gil_scoped_release released;
  const size_t n = bytes / 1024 * 256, passes = std::max<size_t>(1, shortest_read / (4 * n));
  std::vector<float> memory(n + 16, 0.0f);
  float* x = memory.data();
  while (reinterpret_cast<uintptr_t>(x) % 64 != 0) ++x;
  return best_rate(seconds, [&] {
    for (size_t pass = 0; pass < passes; ++pass) {
      x[pass % n] += 1.0f;  // so that no two passes are the same to the compiler
      check(table.roof_read(x, n) > 0);
    }
    return 4.0 * static_cast<double>(n * passes);
  });
}

}  // namespace

void secateur::bind_roofs(nb::module_& m) {
  m.def("roof_fma", &fma_rate, "table"_a, "pairs"_a, "seconds"_a,
        "Operations per second of multiply-adds in registers, on this thread; pairs: of bf16.");
  m.def("roof_read", &read_rate, "table"_a, "bytes"_a, "seconds"_a,
        "Bytes per second of reading an array of so many over and over, on this thread.");
}
