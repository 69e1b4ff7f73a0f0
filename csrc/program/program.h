// Steps, one after the other, over chunks of samples. Nothing of a program changes while it runs: any number of threads
// may run one, each in an arena of its own.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <vector>

#include "../pool/pool.h"
#include "scratch.h"
#include "step.h"

namespace secateur {

class Program {
 public:
  // lanes: samples of a chunk; arena: floats; inputs, outputs: floats of one sample, row-major, of each.
  Program(size_t lanes, size_t arena, std::vector<size_t> inputs, std::vector<size_t> outputs);

  // each: neighbours that are added so run together for the first sample of a chunk, then for the second one, and so on:
  // what they hand on among themselves stays in the caches.
  void add(std::shared_ptr<const Step> step, bool each = false) {
    steps_.push_back(std::move(step));
    each_.push_back(each);
  }
  size_t inputs() const { return inputs_.size(); }
  size_t outputs() const { return outputs_.size(); }
  size_t steps() const { return steps_.size(); }

  void run(const float* const* inputs, float* const* outputs, size_t samples) const;

  // From now on `threads` take part at most, the caller among them. step_us: what each step takes on one thread for a
  // whole chunk; steps that are not worth a second thread stay with the caller.
  void share(size_t threads, Backend backend, std::vector<double> step_us);

  // Seconds that each step takes over all samples. For the choice of kernels and for people.
  std::vector<double> time(const float* const* inputs, float* const* outputs, size_t samples) const;

  // Tests begin with an arena of NaN, so that whatever is read before it was written shows.
  void poison() { poisoned_ = true; }

 private:
  // Memory of one run; it goes back to the shelf when the run is over.
  struct Arena {
    Aligned memory;
    std::vector<const float*> inputs;
    std::vector<float*> outputs;
    std::vector<const float*> sample_inputs;  // of one sample of the chunk
    std::vector<float*> sample_outputs;
  };
  class Lease {
   public:
    explicit Lease(const Program& program);
    ~Lease();
    Frame frame(const float* const* inputs, float* const* outputs, size_t first, size_t samples);
    // run(number of the step, frame) in the order of a program.
    template <typename Run>
    void walk(const Frame& frame, const Run& run);

   private:
    Frame sample(const Frame& frame, size_t i);

    const Program& program_;
    std::unique_ptr<Arena> arena_;
  };

  void run_shared(const float* const* inputs, float* const* outputs, size_t samples) const;
  void run_chunks(const float* const* inputs, float* const* outputs, size_t samples, Backend backend) const;
  void run_pieces(const Frame& frame, size_t step) const;
  void share_pieces(const Frame& frame, size_t step, Backend backend) const;

  size_t lanes_, floats_;
  std::vector<size_t> inputs_, outputs_;
  std::vector<std::shared_ptr<const Step>> steps_;
  std::vector<bool> each_;
  bool poisoned_ = false;
  size_t threads_ = 1;
  Backend backend_ = Backend::own;
  std::vector<double> step_us_;
  double chunk_us_ = 0;
  mutable std::atomic<double> gomp_again_{0};  // microseconds of the steady clock: not before
  mutable std::mutex shelf_lock_;
  mutable std::vector<std::unique_ptr<Arena>> shelf_;
};

}  // namespace secateur
