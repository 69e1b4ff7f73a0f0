// The Python face of the thread pool: how many threads, and made-up programs for tests and tuning.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>

#include "bind.h"
#include "pool/machine.h"
#include "pool/pool.h"
#include "pool/probe.h"

namespace nb = nanobind;
using namespace nb::literals;
using secateur::Backend;
using secateur::Pool;

namespace {

Backend backend_of(const std::string& name) {
  if (name == "own") return Backend::own;
  if (name == "gomp") return Backend::gomp;
  throw std::invalid_argument("backend: '" + name + "' is not known; allowed are 'own' and 'gomp'");
}

nb::tuple probe(size_t regions, size_t pieces, size_t threads, double piece_us, double work_us, double program_us,
                double pause_us, const std::string& backend, size_t programs) {
  if (pieces > 1000000) throw std::invalid_argument("pieces: at most 1000000 are allowed");
  const secateur::Probe wanted{regions, pieces, threads, piece_us, work_us, program_us, pause_us, backend_of(backend)};
  secateur::ProbeResult result;
  {
    nb::gil_scoped_release release;
    result = secateur::run_probe(wanted, programs);
  }
  return nb::make_tuple(result.program_us, result.wrong, result.helped);
}

nb::tuple state() {
  const Pool::State now = Pool::instance().state();
  return nb::make_tuple(now.workers, now.asleep, now.alone);
}

}  // namespace

void secateur::bind_pool(nb::module_& m) {
  m.def("usable_threads", &secateur::usable_threads, "min(processors, affinity mask, control group quota rounded up).");
  m.def("quota_threads", &secateur::quota_threads, "root"_a = "",
        "The quota of the control groups in whole threads, 0 without one; the files are looked up under root.");
  m.def("pool_backend", [](const std::string& wanted) {
          return Pool::instance().resolve(backend_of(wanted)) == Backend::gomp ? "gomp" : "own";
        }, "wanted"_a, "The backend that a region would get here.");
  m.def("pool_state", &state, "(workers started, of them asleep, whether the caller works alone for a while).");
  m.def("pool_insist", [](bool on) { Pool::instance().insist(on); }, "on"_a,
        "Ask workers for help even where the other cores are busy.");
  m.def("pool_probe", &probe, "regions"_a, "pieces"_a, "threads"_a, "piece_us"_a = 0.0, "work_us"_a = 0.0,
        "program_us"_a = -1.0, "pause_us"_a = 0.0, "backend"_a = "own", "programs"_a = 1,
        "Run made-up programs: (microseconds of each, pieces that did not run exactly once, pieces run by workers).");
}
